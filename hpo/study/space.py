"""Definition + trial -> the configuration that core trains. The only module that names parameters.

A parameter is named after its place in the file: `training.learning_rate`, `model.k_retrieved`, `loss.gamma`.
`model` and `loss` are parameters themselves if the file has several alternatives. Alternatives that search a
key in the same way share a parameter; if their ranges differ, the name includes the alternative:
`loss.focal.alpha`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sparse_evidence.core.config import LOSSES, MODELS, CandidateConfig, TrainingConfig
from sparse_evidence.core.errors import ConfigError

from .definition import StudyDefinition
from .fields import Alternative, Choices, ParameterSpec, Range, Scalar, hint
from .reader import read_named, read_table

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class Parameter:
    """One searched parameter."""

    name: str
    part: str
    """`model`, `training` or `loss`."""
    key: str
    """The field that it fills; empty if it chooses between the alternatives."""
    spec: Range | Choices
    alternatives: tuple[str, ...] = ()
    """The alternatives that have it; empty if it is always drawn."""

    def __str__(self) -> str:
        """`0.0 to 4.0, where loss is focal`."""
        condition = f", where {self.part} is {' or '.join(self.alternatives)}" if self.alternatives else ""
        return f"{self.spec}{condition}"


def searched(definition: StudyDefinition) -> tuple[Parameter, ...]:
    """Every parameter of a study, in the order in which they are drawn."""
    training = (
        Parameter(f"training.{key}", "training", key, spec)
        for key, spec in definition.training.items()
        if isinstance(spec, (Range, Choices))
    )
    return (*_parameters_of("model", definition.model), *training, *_parameters_of("loss", definition.loss))


def suggest(definition: StudyDefinition, trial: BaseTrial) -> CandidateConfig:
    """Return the configuration that a trial trains: live, frozen, or `optuna.trial.FixedTrial`.

    Raises `ValueError` where a frozen or fixed trial lacks a parameter of this definition.
    """
    by_place = {
        (parameter.part, parameter.key, name): parameter
        for parameter in searched(definition)
        for name in parameter.alternatives or ("",)
    }

    def draw(part: str, specs: Mapping[str, ParameterSpec], alternative: str = "") -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, spec in specs.items():
            parameter = by_place.get((part, key, alternative)) or by_place.get((part, key, ""))
            searching = parameter is not None and isinstance(spec, (Range, Choices))
            values[key] = _draw(trial, parameter) if parameter and searching else spec
        return values

    def pick(part: str, alternatives: tuple[Alternative, ...]) -> Alternative:
        parameter = by_place.get((part, "", ""))
        name = alternatives[0].name if parameter is None else _draw(trial, parameter)
        return next(alternative for alternative in alternatives if alternative.name == name)

    model = pick("model", definition.model)
    model_config = MODELS[model.name](**draw("model", model.specs, model.name))
    training = TrainingConfig(**draw("training", definition.training))
    loss = pick("loss", definition.loss)
    return CandidateConfig(model_config, training, LOSSES[loss.name](**draw("loss", loss.specs, loss.name)))


def default_parameters(definition: StudyDefinition) -> dict[str, Scalar]:
    """Return the parameters of trial 0, the default configuration: first alternatives, and the default of each spec."""
    first = {"model": definition.model[0].name, "loss": definition.loss[0].name, "training": ""}
    return {
        parameter.name: parameter.spec.default
        for parameter in searched(definition)
        if not parameter.alternatives or first[parameter.part] in parameter.alternatives
    }


def distributions(definition: StudyDefinition) -> dict[str, BaseDistribution]:
    """Every parameter's Optuna distribution, those of all alternatives included."""
    return {parameter.name: _distribution(parameter.spec) for parameter in searched(definition)}


def to_dict(candidate: CandidateConfig) -> dict[str, dict[str, Any]]:
    """Return a configuration as JSON values: `{"model": {...}, "training": {...}, "loss": {...}}`."""
    return asdict(candidate)


def from_dict(nested: Mapping[str, Any]) -> CandidateConfig:
    """Return the configuration that `to_dict` wrote. A missing key has its default.

    Raises a `ConfigError` that lists every unknown key and every value that is not allowed.
    """
    if not isinstance(nested, Mapping):
        raise ConfigError("the configuration is not a table of model, training and loss; export the study again")
    known = ("model", "training", "loss")
    problems = [f"{key}: unknown key, {hint(key, known)}" for key in nested if key not in known]
    model = read_named(nested.get("model", {}), "model", MODELS, problems)
    training = read_table(TrainingConfig, nested.get("training", {}), "training", problems)
    loss = read_named(nested.get("loss", {}), "loss", LOSSES, problems)
    if problems or model is None or loss is None:
        raise ConfigError(f"the configuration cannot be used: {'; '.join(problems)}")
    return CandidateConfig(model[0](**model[1]), TrainingConfig(**training), loss[0](**loss[1]))


def _parameters_of(part: str, alternatives: tuple[Alternative, ...]) -> Iterator[Parameter]:
    """Return the parameters of `[[model]]` or `[[loss]]`: the choice between alternatives, then their fields."""
    is_list = len(alternatives) > 1
    if is_list:
        names = tuple(alternative.name for alternative in alternatives)
        yield Parameter(part, part, "", Choices(names, names[0]))
    by_key: dict[str, dict[str, Range | Choices]] = {}
    for alternative in alternatives:
        for key, spec in alternative.specs.items():
            if isinstance(spec, (Range, Choices)):
                by_key.setdefault(key, {})[alternative.name] = spec
    for key, specs in by_key.items():
        if len({_space(spec) for spec in specs.values()}) == 1:
            yield Parameter(f"{part}.{key}", part, key, next(iter(specs.values())), tuple(specs) if is_list else ())
        else:
            for name, spec in specs.items():
                yield Parameter(f"{part}.{name}.{key}", part, key, spec, (name,))


def _space(spec: Range | Choices) -> tuple[object, ...]:
    """Return the part of a spec that is searched: everything but its default."""
    if isinstance(spec, Range):
        return (spec.low, spec.high, spec.log, spec.step, spec.integer)
    return spec.values


def _draw(trial: BaseTrial, parameter: Parameter) -> Any:  # noqa: ANN401 - the field's type
    name, spec = parameter.name, parameter.spec
    if isinstance(spec, Choices):
        return trial.suggest_categorical(name, spec.values)
    if spec.integer:
        return trial.suggest_int(name, int(spec.low), int(spec.high), step=int(spec.step or 1), log=spec.log)
    return trial.suggest_float(name, spec.low, spec.high, step=spec.step, log=spec.log)


def _distribution(spec: Range | Choices) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(spec, Choices):
        return CategoricalDistribution(spec.values)
    if spec.integer:
        return IntDistribution(int(spec.low), int(spec.high), step=int(spec.step or 1), log=spec.log)
    return FloatDistribution(spec.low, spec.high, step=spec.step, log=spec.log)
