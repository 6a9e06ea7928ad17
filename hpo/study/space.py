"""Definition + trial -> the configuration that core trains. The only module that names parameters.

A parameter is named after its place in the file: `training.learning_rate`, `model.k_retrieved`, `loss.gamma`.
`model` and `loss` are parameters themselves if the file has several alternatives. Alternatives that search a
key in the same way share a parameter; if their ranges differ, the name includes the alternative:
`loss.focal.alpha`. The default spaces of models differ in `[training]`, too: `training.abmil.learning_rate`.

A parameter that does not apply is not drawn: those of other alternatives, and `training` and `loss` of a model that is
solved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sparse_evidence.core.config import LOSSES, MODELS, CandidateConfig, TrainingConfig
from sparse_evidence.core.errors import ConfigError

from .definition import StudyDefinition
from .fields import Alternative, Choices, Range, Scalar, hint, shown
from .reader import not_applying, read_named, read_table

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
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Which choices of `model` and of `loss` it applies to; empty if it is always drawn."""

    def __str__(self) -> str:
        """`0.0 to 4.0, where loss is focal`."""
        conditions = " and ".join(f"{part} is {' or '.join(names)}" for part, names in self.where.items())
        return f"{self.spec}, where {conditions}" if conditions else str(self.spec)

    def applies(self, chosen: Mapping[str, str]) -> bool:
        """Return whether it is drawn, given the names of the chosen model and loss."""
        return all(chosen[part] in names for part, names in self.where.items())


def searched(definition: StudyDefinition) -> tuple[Parameter, ...]:
    """Every parameter of a study, in the order in which they are drawn."""
    models = _parameters_of("model", definition.model)
    trained = definition.trained
    if not trained:
        return tuple(models)
    parts = tuple(part for part in definition.training if part.name in trained)
    training = _training_parameters(parts, len(definition.model))
    condition = {"model": trained} if len(trained) < len(definition.model) else {}
    losses = (replace(loss, where={**loss.where, **condition}) for loss in _parameters_of("loss", definition.loss))
    return (*models, *training, *losses)


def notes(definition: StudyDefinition) -> list[str]:
    """Return, in a sentence each, what a user should know about what the study searches."""
    found = []
    unapplied = not_applying(definition.model, definition.training, definition.loss)
    if unapplied:
        names = " and ".join(alternative.name for alternative in definition.model)
        one = len(definition.model) == 1
        found.append(
            f"{', '.join(unapplied)} {'does' if len(unapplied) == 1 else 'do'} not apply: {names} "
            f"{'is' if one else 'are'} solved, not trained in epochs"
        )
    if not searched(definition):
        only_file = definition.search.space == "file"
        reason = (
            'the file has neither ranges nor choices, and [search] space is "file"'
            if only_file
            else ("the file gives a value for everything that is searched by default")
        )
        seeds = " with another seed" if definition.trained else ""
        found.append(f"nothing is searched: {reason}; every trial trains the same configuration{seeds}")
    return found


def suggest(definition: StudyDefinition, trial: BaseTrial) -> CandidateConfig:
    """Return the configuration that a trial trains: live, frozen, or `optuna.trial.FixedTrial`.

    Raises `ValueError` where a frozen or fixed trial lacks a parameter of this definition.
    """
    chosen = _first(definition)
    drawn: dict[tuple[str, str], Any] = {}
    for parameter in searched(definition):
        if parameter.applies(chosen):
            value = _draw(trial, parameter)
            if parameter.key:
                drawn[parameter.part, parameter.key] = value
            else:
                chosen[parameter.part] = value

    def values(part: str, alternatives: tuple[Alternative, ...], name: str) -> dict[str, Any]:
        """The settings of the chosen alternative; one that is searched but does not apply has its default."""
        specs = next(alternative.specs for alternative in alternatives if alternative.name == name)
        return {
            key: drawn.get((part, key), spec.default) if isinstance(spec, (Range, Choices)) else spec
            for key, spec in specs.items()
        }

    model, loss = chosen["model"], chosen["loss"]
    return CandidateConfig(
        MODELS[model](**values("model", definition.model, model)),
        TrainingConfig(**values("training", definition.training, model)),
        LOSSES[loss](**values("loss", definition.loss, loss)),
    )


def default_parameters(definition: StudyDefinition) -> dict[str, Scalar]:
    """Return the parameters of trial 0, the default configuration: first alternatives, and the default of each spec."""
    first = _first(definition)
    return {parameter.name: parameter.spec.default for parameter in searched(definition) if parameter.applies(first)}


def queued_mistakes(definition: StudyDefinition, parameters: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """Return every unknown parameter of a queued trial with a hint, and a clause for every wrong value."""
    known = {parameter.name: parameter for parameter in searched(definition)}
    unknown = [f"{name} ({hint(name, known)})" for name in parameters if name not in known]
    wrong = [
        f"{name} is {shown(value)}, but it is searched in {known[name].spec}"
        for name, value in parameters.items()
        if name in known and not known[name].spec.contains(value)
    ]
    return unknown, wrong


def fitting_parameters(definition: StudyDefinition, candidate: CandidateConfig) -> tuple[dict[str, Scalar], list[str]]:
    """Return the parameters that make a trial of this study train a configuration, as far as this study searches it.

    Args:
        definition: the study.
        candidate: a configuration, usually of another study.

    Returns:
        The parameters with values that this study may draw, by name, and a clause for everything that does not fit. If
        the model does not, nothing does.
    """
    chosen = {"model": candidate.model.name, "loss": candidate.loss.name}
    if chosen["model"] not in {alternative.name for alternative in definition.model}:
        return {}, [f"model {chosen['model']}"]
    tables = to_dict(candidate)
    knows_loss = chosen["loss"] in {alternative.name for alternative in definition.loss}
    parameters: dict[str, Scalar] = {}
    unfit = [] if knows_loss or chosen["model"] not in definition.trained else [f"loss {chosen['loss']}"]
    for parameter in searched(definition):
        if not parameter.applies(chosen) or (parameter.part == "loss" and not knows_loss):
            continue
        value = tables[parameter.part][parameter.key] if parameter.key else chosen[parameter.part]
        if parameter.spec.contains(value):
            parameters[parameter.name] = value
        else:
            unfit.append(f"{parameter.name} {value} (here {parameter.spec})")
    return parameters, unfit


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


def _first(definition: StudyDefinition) -> dict[str, str]:
    """The first model and the first loss: what trial 0 uses, and every trial where there is no choice."""
    return {"model": definition.model[0].name, "loss": definition.loss[0].name}


def _parameters_of(part: str, alternatives: tuple[Alternative, ...]) -> Iterator[Parameter]:
    """Return the parameters of `[[model]]` or `[[loss]]`: the choice between alternatives, then their fields."""
    is_list = len(alternatives) > 1
    if is_list:
        names = tuple(alternative.name for alternative in alternatives)
        yield Parameter(part, part, "", Choices(names, names[0]))
    for name, key, spec, owners in _fields_of(part, alternatives):
        yield Parameter(name, part, key, spec, {part: owners} if is_list else {})


def _training_parameters(alternatives: tuple[Alternative, ...], models: int) -> Iterator[Parameter]:
    """Return the parameters of `[training]` with each trained model, of so many models in all."""
    for name, key, spec, owners in _fields_of("training", alternatives):
        yield Parameter(name, "training", key, spec, {"model": owners} if len(owners) < models else {})


def _fields_of(
    part: str, alternatives: tuple[Alternative, ...]
) -> Iterator[tuple[str, str, Range | Choices, tuple[str, ...]]]:
    """Yield the name, key and spec of every field that is searched, and the alternatives that have it."""
    by_key: dict[str, dict[str, Range | Choices]] = {}
    for alternative in alternatives:
        for key, spec in alternative.specs.items():
            if isinstance(spec, (Range, Choices)):
                by_key.setdefault(key, {})[alternative.name] = spec
    for key, specs in by_key.items():
        if len({_space(spec) for spec in specs.values()}) == 1:
            yield f"{part}.{key}", key, next(iter(specs.values())), tuple(specs)
        else:
            for name, spec in specs.items():
                yield f"{part}.{name}.{key}", key, spec, (name,)


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
