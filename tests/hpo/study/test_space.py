"""A definition and a trial give a configuration; parameter names are stable; defaults can be drawn."""

import json
from dataclasses import fields
from pathlib import Path

import optuna
import pytest

from sparse_evidence.core.config import (
    LOSSES,
    MODELS,
    SOLVED,
    AbmilConfig,
    BCEConfig,
    CandidateConfig,
    FocalConfig,
    IrisConfig,
    LinearConfig,
    TrainingConfig,
    WeightedBCEConfig,
)
from sparse_evidence.core.errors import ConfigError
from sparse_evidence.core.models import REGISTRY
from sparse_evidence.core.models.solved import SolvedModel
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.defaults import SPACES, model_space, training_space
from sparse_evidence.hpo.study.definition import load
from sparse_evidence.hpo.study.fields import Choices, Range

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "studies").glob("*.toml"))
DATA = '[data]\nsource = "editorials"\n'
FILE = DATA + '[search]\nspace = "file"\n'
MODEL = '[model]\nname = "iris"\n'


@pytest.fixture
def define(tmp_path):
    def defined(text):
        path = tmp_path / "study.toml"
        path.write_text(text, encoding="utf-8")
        return load(path, environ={})

    return defined


@pytest.fixture(params=SHIPPED, ids=lambda path: path.stem)
def shipped(request):
    return load(request.param, environ={})


def described(definition):
    return {parameter.name: str(parameter) for parameter in space.searched(definition)}


def test_the_parameters_of_quickstart():
    definition = load(ROOT / "studies" / "quickstart.toml", environ={})
    assert described(definition) == {
        "model": "one of iris, instance, retrieval",
        "model.k_retrieved": "2 to 6, where model is iris",
        "model.temperature": "0.05 to 1.0 (log), where model is iris",
        "model.num_queries": "one of 2, 4, 8, where model is iris",
        "model.hidden": "one of 32, 64, 128, where model is iris or instance",
        "model.sharpness": "0.5 to 4.0 (log), where model is instance",
        "model.C": "0.0001 to 0.01 (log), where model is retrieval",
        "model.top_k": "1 to 6, where model is retrieval",
        "model.similarity_weight": "2.0 to 8.0 (log), where model is retrieval",
        "model.pooling": "one of each, mean, where model is retrieval",
        "training.iris.learning_rate": "0.0003 to 0.003 (log), where model is iris",
        "training.accumulation_steps": "one of 1, 2, where model is iris",
        "training.instance.learning_rate": "0.001 to 0.01 (log), where model is instance",
    }
    assert space.default_parameters(definition) == {
        "model": "iris",
        "model.k_retrieved": 4,
        "model.temperature": 0.2,
        "model.num_queries": 4,
        "model.hidden": 64,
        "training.iris.learning_rate": 1e-3,
        "training.accumulation_steps": 1,
    }


def test_trial_0_is_the_default_configuration(shipped):
    defaults = space.default_parameters(shipped)
    distributions = space.distributions(shipped)
    drawn = {name: distributions[name] for name in defaults}
    optuna.trial.create_trial(value=0.0, params=defaults, distributions=drawn)  # raises if a default cannot be drawn
    candidate = space.suggest(shipped, optuna.trial.FixedTrial(defaults))
    assert candidate.loss == BCEConfig()
    assert candidate.model == MODELS[shipped.model[0].name](
        **{
            key: spec.default if isinstance(spec, (Range, Choices)) else spec
            for key, spec in shipped.model[0].specs.items()
        }
    )


def test_every_field_has_a_spec(shipped):
    assert [part.name for part in shipped.training] == [model.name for model in shipped.model]
    for part in shipped.training:
        assert set(part.specs) == {field.name for field in fields(TrainingConfig)}
    for registry, alternatives in ((MODELS, shipped.model), (LOSSES, shipped.loss)):
        for alternative in alternatives:
            names = {field.name for field in fields(registry[alternative.name])}
            assert {*alternative.specs, "name"} == names
    assert {field.name for field in fields(CandidateConfig)} == {"model", "training", "loss"}


def test_live_frozen_and_fixed_trials_agree(shipped):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    distributions = space.distributions(shipped)
    for _ in range(30):
        trial = study.ask()
        live = space.suggest(shipped, trial)
        assert trial.params.keys() <= distributions.keys()
        assert all(distributions[name] == drawn for name, drawn in trial.distributions.items())
        study.tell(trial, 0.0)
        assert space.suggest(shipped, study.trials[-1]) == live
        assert space.suggest(shipped, optuna.trial.FixedTrial(trial.params)) == live
        assert space.from_dict(json.loads(json.dumps(space.to_dict(live)))) == live


def test_the_first_trial_draws_the_enqueued_defaults(shipped):
    study = optuna.create_study()
    study.enqueue_trial(space.default_parameters(shipped))
    trial = study.ask()
    space.suggest(shipped, trial)
    assert trial.params == space.default_parameters(shipped)


def test_names_include_the_alternative_only_if_ranges_differ(define):
    definition = define(
        FILE
        + '[[model]]\nname = "iris"\nencoder = { choices = ["a", "b"] }\nhidden = { low = 8, high = 64, step = 8 }\n'
        + '[[model]]\nname = "linear"\nencoder = { choices = ["a", "b"] }\n'
    )
    assert described(definition) == {
        "model": "one of iris, linear",
        "model.encoder": "one of a, b, where model is iris or linear",
        "model.hidden": "8 to 64 in steps of 8, where model is iris",
    }
    trial = optuna.trial.FixedTrial({"model": "linear", "model.encoder": "b"})
    assert space.suggest(definition, trial).model == LinearConfig(encoder="b")

    definition = define(
        FILE
        + '[[model]]\nname = "iris"\nencoder = { choices = ["a", "b"] }\n'
        + '[[model]]\nname = "linear"\nencoder = { choices = ["a", "c"] }\n'
    )
    assert list(described(definition)) == ["model", "model.iris.encoder", "model.linear.encoder"]
    assert space.default_parameters(definition) == {"model": "iris", "model.iris.encoder": "a"}
    trial = optuna.trial.FixedTrial({"model": "linear", "model.linear.encoder": "c"})
    assert space.suggest(definition, trial).model == LinearConfig(encoder="c")


def test_a_key_fixed_in_one_alternative_and_searched_in_another(define):
    definition = define(
        FILE
        + '[[model]]\nname = "iris"\nencoder = "a"\n[[model]]\nname = "linear"\nencoder = { choices = ["b", "c"] }\n'
    )
    assert list(described(definition)) == ["model", "model.encoder"]
    assert space.suggest(definition, optuna.trial.FixedTrial({"model": "iris"})).model == IrisConfig(encoder="a")


def test_one_alternative_needs_no_parameter(define):
    definition = define(FILE + MODEL + '[loss]\nname = "focal"\ngamma = { low = 0, high = 4 }\n')
    assert described(definition) == {"loss.gamma": "0.0 to 4.0"}
    trial = optuna.trial.FixedTrial({"loss.gamma": 1.5})
    assert space.suggest(definition, trial).loss == FocalConfig(gamma=1.5)


def test_a_study_without_searched_parameters(define):
    definition = define(FILE + MODEL)
    assert space.distributions(definition) == space.default_parameters(definition) == {}
    assert space.suggest(definition, optuna.trial.FixedTrial({})) == CandidateConfig(
        IrisConfig(), TrainingConfig(), BCEConfig()
    )


def test_a_trial_without_the_parameter_is_refused(define):
    definition = define(FILE + MODEL + "k_retrieved = { low = 2, high = 6 }")
    with pytest.raises(ValueError, match=r"model\.k_retrieved"):
        space.suggest(definition, optuna.trial.FixedTrial({}))


# ---- the default space ------------------------------------------------------------------------------------------


def of_training_and_model(name):
    return {f"model.{key}" for key in model_space(name)} | {f"training.{key}" for key in training_space(name)}


@pytest.mark.parametrize("name", MODELS)
def test_data_and_model_name_search_the_default_space(define, name):
    definition = define(DATA + f'[model]\nname = "{name}"\n')
    defaults = space.default_parameters(definition)
    assert set(defaults) == of_training_and_model(name) == set(space.distributions(definition))
    assert defaults
    candidate = space.suggest(definition, optuna.trial.FixedTrial(defaults))
    assert candidate.loss == BCEConfig()
    changed = {key: spec.default for key, spec in model_space(name).items()}
    assert candidate.model == MODELS[name](**changed)


def test_every_model_has_a_default_space_and_solved_models_search_no_training():
    assert set(MODELS) <= set(SPACES)
    assert {name for name, entry in REGISTRY.items() if issubclass(entry.model, SolvedModel)} == SOLVED
    assert not any(SPACES[name].training for name in SOLVED)


def test_what_the_file_mentions_replaces_the_default_space(define):
    settings = "num_queries = 3\nk_retrieved = { low = 3, high = 5 }\n"
    training = "[training]\nlearning_rate = 1e-4\nweight_decay = { low = 0.01, high = 0.1 }\n"
    parameters = described(define(DATA + MODEL + settings + training))
    assert parameters["model.k_retrieved"] == "3 to 5"
    assert parameters["training.weight_decay"] == "0.01 to 0.1"
    fixed = {"model.num_queries", "training.learning_rate"}
    assert set(parameters) == of_training_and_model("iris") - fixed | {"training.weight_decay"}
    assert described(define(FILE + MODEL + settings + training)) == {
        "model.k_retrieved": "3 to 5",
        "training.weight_decay": "0.01 to 0.1",
    }


def test_models_whose_default_training_differs_have_parameters_of_their_own(define):
    definition = define(DATA + '[[model]]\nname = "iris"\n[[model]]\nname = "abmil"\n')
    parameters = described(definition)
    assert parameters["training.iris.learning_rate"] == "0.0003 to 0.003 (log), where model is iris"
    assert parameters["training.abmil.learning_rate"] == "0.0003 to 0.01 (log), where model is abmil"
    assert parameters["training.accumulation_steps"] == "one of 1, 2, where model is iris"
    assert parameters["model.iris.hidden"] == "one of 32, 64, 128, where model is iris"
    assert parameters["model.abmil.hidden"] == "one of 64, 128, 256, where model is abmil"
    trial = optuna.trial.FixedTrial({"model": "abmil", "model.abmil.hidden": 64, "training.abmil.learning_rate": 5e-3})
    candidate = space.suggest(definition, trial)
    assert candidate.training == TrainingConfig(learning_rate=5e-3)
    shared = define(
        DATA
        + '[[model]]\nname = "iris"\n[[model]]\nname = "abmil"\n'
        + "[training]\nlearning_rate = { low = 1e-3, high = 1e-2 }\n"
    )
    assert described(shared)["training.learning_rate"] == "0.001 to 0.01"


# ---- parameters that do not apply -------------------------------------------------------------------------------

MIXED = (
    DATA
    + '[[model]]\nname = "linear"\n[[model]]\nname = "iris"\nhidden = 8\n'
    + "[training]\nlearning_rate = { low = 1e-3, high = 1e-2 }\n"
    + '[[loss]]\nname = "bce"\n[[loss]]\nname = "focal"\ngamma = { low = 0, high = 4 }\n'
)


def test_a_solved_model_draws_neither_training_nor_loss(define):
    definition = define(MIXED)
    parameters = described(definition)
    assert parameters["training.learning_rate"] == "0.001 to 0.01, where model is iris"
    assert parameters["loss"] == "one of bce, focal, where model is iris"
    assert parameters["loss.gamma"] == "0.0 to 4.0, where loss is focal and model is iris"
    assert space.default_parameters(definition) == {"model": "linear", "model.C": 3.0}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    solved = trained = 0
    for _ in range(40):
        trial = study.ask()
        candidate = space.suggest(definition, trial)
        study.tell(trial, 0.0)
        assert space.suggest(definition, study.trials[-1]) == candidate
        if candidate.model.name == "linear":
            solved += 1
            assert set(trial.params) == {"model", "model.C"}
            assert candidate.loss == BCEConfig()
        else:
            trained += 1
            assert {"model", "loss", "training.learning_rate"} <= set(trial.params)
            assert ("loss.gamma" in trial.params) is (candidate.loss.name == "focal")
    assert solved
    assert trained


def test_notes_say_what_does_not_apply_and_that_nothing_is_searched(define):
    linear = '[model]\nname = "linear"\n'
    ranges = "[training]\nlearning_rate = { low = 1e-3, high = 1e-2 }\n"
    ranges += '[loss]\nname = "focal"\ngamma = { low = 0, high = 4 }\n'
    definition = define(DATA + linear + ranges)
    assert list(described(definition)) == ["model.C"]
    assert space.notes(definition) == [
        "[training] learning_rate, [[loss]] gamma do not apply: linear is solved, not trained in epochs"
    ]
    again = "every trial trains the same configuration"  # and without a seed: linear has none
    assert space.notes(define(FILE + linear)) == [
        f'nothing is searched: the file has neither ranges nor choices, and [search] space is "file"; {again}'
    ]
    assert space.notes(define(DATA + linear + "C = 1\n")) == [
        f"nothing is searched: the file gives a value for everything that is searched by default; {again}"
    ]
    (note,) = space.notes(define(FILE + MODEL))
    assert note.endswith(f"{again} with another seed")
    assert space.notes(define(MIXED)) == space.notes(define(DATA + MODEL)) == []


def test_from_dict_reports_every_mistake():
    nested = space.to_dict(CandidateConfig(IrisConfig(), TrainingConfig(), FocalConfig()))
    assert nested["loss"]["alpha"] is None
    nested["loss"]["gama"] = nested["loss"].pop("gamma")
    nested["model"]["k_retrieved"] = {"low": 2, "high": 6}
    nested["training"]["epochs"] = 0
    nested["extra"] = {}
    with pytest.raises(ConfigError) as caught:
        space.from_dict(nested)
    for fragment in (
        "extra: unknown key",
        "model k_retrieved: a range is not allowed here",
        "training epochs: 0 is not allowed",
        "loss gama: unknown key, did you mean gamma?",
    ):
        assert fragment in str(caught.value)
    with pytest.raises(ConfigError, match='model name: "irs" is unknown, did you mean "iris"'):
        space.from_dict({"model": {"name": "irs"}, "training": {}, "loss": {"name": "bce"}})
    with pytest.raises(ConfigError, match="loss name: missing, give one of"):
        space.from_dict({"model": {"name": "iris"}})


# --- configurations of other studies ----------------------------------------------------------------------------------


def test_the_parameters_of_a_configuration_are_found_again(shipped):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(30):
        trial = study.ask()
        candidate = space.suggest(shipped, trial)
        study.tell(trial, 0.0)
        parameters, unfit = space.fitting_parameters(shipped, candidate)
        assert (parameters, unfit) == (study.trials[-1].params, [])


OTHER = """
[[model]]
name = "iris"
k_retrieved = { low = 2, high = 4 }
[[model]]
name = "linear"
[training]
epochs = { choices = [5, 10] }
learning_rate = { low = 1e-3, high = 1e-2, log = true }
[[loss]]
name = "bce"
[[loss]]
name = "focal"
gamma = { low = 0.0, high = 2.0, step = 0.5 }
"""


def test_what_does_not_fit_is_named(define):
    definition = define(FILE + OTHER)

    def fitting(model, loss, **training):
        return space.fitting_parameters(definition, CandidateConfig(model, TrainingConfig(**training), loss))

    assert fitting(IrisConfig(k_retrieved=3), FocalConfig(gamma=1.5), epochs=5) == (
        {"model": "iris", "model.k_retrieved": 3, "training.epochs": 5, "training.learning_rate": 3e-3,
         "loss": "focal", "loss.gamma": 1.5},
        [],
    )  # fmt: skip
    parameters, unfit = fitting(IrisConfig(k_retrieved=9), FocalConfig(gamma=0.7), epochs=40, learning_rate=1.0)
    assert parameters == {"model": "iris", "loss": "focal"}
    assert unfit == [
        "model.k_retrieved 9 (here 2 to 4)",
        "training.epochs 40 (here one of 5, 10)",
        "training.learning_rate 1.0 (here 0.001 to 0.01 (log))",
        "loss.gamma 0.7 (here 0.0 to 2.0 in steps of 0.5)",
    ]
    without_loss = fitting(IrisConfig(k_retrieved=2), WeightedBCEConfig(), epochs=5)
    assert without_loss[1] == ["loss weighted_bce"]
    assert not any(name.startswith("loss") for name in without_loss[0])
    assert fitting(LinearConfig(), WeightedBCEConfig()) == ({"model": "linear"}, []), "a solved model has no loss"
    assert fitting(AbmilConfig(), BCEConfig(), epochs=5) == ({}, ["model abmil"])
