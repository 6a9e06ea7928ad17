"""Definition + trial -> the configuration that core trains: the only place that knows parameter names.

A searched leaf is called after its place in the file: `training.learning_rate`, `model.k_retrieved`, `loss.gamma`.
`model` and `loss` are parameters themselves where the file has several alternatives. Alternatives that search a
key in the same way share one parameter; where their ranges differ the name carries the alternative:
`loss.focal.alpha`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sparse_evidence.core.config import LOSSES, MODELS, CandidateConfig, TrainingConfig
from sparse_evidence.core.errors import ConfigError

from .definition import Alternative, StudyDefinition, read_table
from .fields import Choices, Leaf, Range, Scalar, nearest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class Parameter:
    """One searched leaf."""

    name: str
    part: str
    """`model`, `training` or `loss`."""
    key: str
    """The field that it fills; empty where it picks the alternative itself."""
    leaf: Range | Choices
    alternatives: tuple[str, ...] = ()
    """The alternatives that have it, where it is only drawn for some."""


def searched(definition: StudyDefinition) -> tuple[Parameter, ...]:
    """Every parameter of a study, in the order in which they are drawn."""
    training = (
        Parameter(f"training.{key}", "training", key, leaf)
        for key, leaf in definition.training.items()
        if isinstance(leaf, (Range, Choices))
    )
    return (*_of("model", definition.model), *training, *_of("loss", definition.loss))


def suggest(definition: StudyDefinition, trial: BaseTrial) -> CandidateConfig:
    """Return the configuration that a trial trains: live, frozen, or `optuna.trial.FixedTrial`.

    Raises `ValueError` where a frozen or fixed trial lacks a parameter of this definition.
    """
    by_place = {
        (parameter.part, parameter.key, name): parameter
        for parameter in searched(definition)
        for name in parameter.alternatives or ("",)
    }

    def drawn(part: str, leaves: Mapping[str, Leaf], alternative: str = "") -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, leaf in leaves.items():
            place = by_place.get((part, key, alternative)) or by_place.get((part, key, ""))
            searching = place is not None and isinstance(leaf, (Range, Choices))
            values[key] = _draw(trial, place.name, place.leaf) if place and searching else leaf
        return values

    def picked(part: str, alternatives: tuple[Alternative, ...]) -> Alternative:
        place = by_place.get((part, "", ""))
        name = alternatives[0].name if place is None else _draw(trial, place.name, place.leaf)
        return next(alternative for alternative in alternatives if alternative.name == name)

    model = picked("model", definition.model)
    model_config = MODELS[model.name](**drawn("model", model.leaves, model.name))
    training = TrainingConfig(**drawn("training", definition.training))
    loss = picked("loss", definition.loss)
    return CandidateConfig(model_config, training, LOSSES[loss.name](**drawn("loss", loss.leaves, loss.name)))


def default_parameters(definition: StudyDefinition) -> dict[str, Scalar]:
    """Return the parameters of trial 0, the default configuration: the first alternatives, and every leaf's default."""
    first = {"model": definition.model[0].name, "loss": definition.loss[0].name, "training": ""}
    return {
        parameter.name: parameter.leaf.default
        for parameter in searched(definition)
        if not parameter.alternatives or first[parameter.part] in parameter.alternatives
    }


def parameters(definition: StudyDefinition) -> dict[str, str]:
    """Every parameter with what is searched, in words: `{"loss.gamma": "0.0 to 4.0, where loss is focal"}`."""
    return {
        parameter.name: str(parameter.leaf)
        + (f", where {parameter.part} is {' or '.join(parameter.alternatives)}" if parameter.alternatives else "")
        for parameter in searched(definition)
    }


def distributions(definition: StudyDefinition) -> dict[str, BaseDistribution]:
    """Every parameter's Optuna distribution, those of all alternatives included."""
    return {parameter.name: _distribution(parameter.leaf) for parameter in searched(definition)}


def to_dict(candidate: CandidateConfig) -> dict[str, dict[str, Any]]:
    """Return a configuration as plain JSON values: `{"model": {...}, "training": {...}, "loss": {...}}`."""
    return asdict(candidate)


def from_dict(nested: Mapping[str, Any]) -> CandidateConfig:
    """Return the configuration that `to_dict` wrote. What is not in there has its default.

    Raises `ConfigError` that lists every unknown key and every value outside what is allowed.
    """
    if not isinstance(nested, Mapping):
        raise ConfigError("the configuration is not a table of model, training and loss; export the study again")
    known = ("model", "training", "loss")
    problems = [f"{key}: unknown key, allowed: {', '.join(known)}" for key in nested if key not in known]
    model = _named("model", nested.get("model"), MODELS, problems)
    training = read_table(TrainingConfig, nested.get("training", {}), "training", problems)
    loss = _named("loss", nested.get("loss"), LOSSES, problems)
    if problems or model is None or loss is None:
        raise ConfigError(f"the configuration cannot be used: {'; '.join(problems)}")
    return CandidateConfig(model[0](**model[1]), TrainingConfig(**training), loss[0](**loss[1]))


def _of(part: str, alternatives: tuple[Alternative, ...]) -> Iterator[Parameter]:
    """Return the parameters of `[[model]]` or `[[loss]]`: which one, then each one's leaves."""
    several = len(alternatives) > 1
    if several:
        names = tuple(alternative.name for alternative in alternatives)
        yield Parameter(part, part, "", Choices(names, names[0]))
    places: dict[str, dict[str, Range | Choices]] = {}
    for alternative in alternatives:
        for key, leaf in alternative.leaves.items():
            if isinstance(leaf, (Range, Choices)):
                places.setdefault(key, {})[alternative.name] = leaf
    for key, leaves in places.items():
        if len({_space(leaf) for leaf in leaves.values()}) == 1:
            yield Parameter(f"{part}.{key}", part, key, next(iter(leaves.values())), tuple(leaves) if several else ())
        else:
            for name, leaf in leaves.items():
                yield Parameter(f"{part}.{name}.{key}", part, key, leaf, (name,))


def _space(leaf: Range | Choices) -> tuple[object, ...]:
    """Tell what is drawn from: a leaf without its default."""
    if isinstance(leaf, Range):
        return (leaf.low, leaf.high, leaf.log, leaf.step, leaf.integer)
    return leaf.values


def _draw(trial: BaseTrial, name: str, leaf: Range | Choices) -> Any:  # noqa: ANN401 - the field's type
    if isinstance(leaf, Choices):
        return trial.suggest_categorical(name, leaf.values)
    if leaf.integer:
        return trial.suggest_int(name, int(leaf.low), int(leaf.high), step=int(leaf.step or 1), log=leaf.log)
    return trial.suggest_float(name, leaf.low, leaf.high, step=leaf.step, log=leaf.log)


def _distribution(leaf: Range | Choices) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(leaf, Choices):
        return CategoricalDistribution(leaf.values)
    if leaf.integer:
        return IntDistribution(int(leaf.low), int(leaf.high), step=int(leaf.step or 1), log=leaf.log)
    return FloatDistribution(leaf.low, leaf.high, step=leaf.step, log=leaf.log)


def _named(
    part: str, table: object, registry: Mapping[str, type[Any]], problems: list[str]
) -> tuple[type[Any], dict[str, Any]] | None:
    """Return the class that a table names, and its checked values; None with the reason in `problems`."""
    name = table.get("name") if isinstance(table, Mapping) else None
    if not isinstance(name, str) or name not in registry:
        meant = nearest(str(name), registry)
        hint = f"did you mean {meant}?" if meant else f"allowed: {', '.join(registry)}"
        problems.append(f"{part} name: {name!r} is unknown, {hint}")
        return None
    return registry[name], read_table(registry[name], table, part, problems, skip=["name"])
