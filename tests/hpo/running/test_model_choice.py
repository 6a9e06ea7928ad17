"""A study that chooses between models: each has its own parameters and trains on its own kind of features."""

import math

import optuna
import pytest

from sparse_evidence.core.config import is_solved
from sparse_evidence.core.features.views import EmbeddedCorpus, TextCorpus
from sparse_evidence.core.training.crossval import CrossValidation
from sparse_evidence.hpo.running.task import embedded_views, encoder_names, load_task
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.definition import load

STUDY = """
[data]
source = "synthetic"
posts = 60
criteria = 2
[split]
folds = 2
[search]
space = "file"
[training]
epochs = 2
learning_rate = {{ low = 1e-3, high = 1e-2, log = true }}
[[model]]
name = "iris"
num_queries = {{ low = 1, high = 3 }}
hidden = 8
[[model]]
name = "abmil"
hidden = {{ choices = [8, 16] }}
[[model]]
name = "instance"
sharpness = {{ choices = [0.5, 2.0] }}
[[model]]
name = "linear"
[[model]]
name = "retrieval"
C = {{ low = 1e-4, high = 1e-1, log = true }}
[[model]]
name = "token"
encoder = {encoder}
reads = {{ choices = ["pairs", "posts"] }}
max_length = 48
"""
VIEWS = """
[data]
source = "synthetic"
posts = 60
criteria = 2
[split]
folds = 2
[search]
space = "file"
[training]
epochs = 1
[[model]]
name = "iris"
encoder = {{ choices = ["{encoder}", "all-MiniLM-L6-v2"] }}
window = {{ low = 1, high = 2, default = 2 }}
[[model]]
name = "abmil"
window = 3
"""
TOKEN_ONLY = '[data]\nsource = "synthetic"\nposts = 60\ncriteria = 2\n[split]\nfolds = 2\n[model]\nname = "token"\n'


@pytest.fixture(scope="module")
def definition(tmp_path_factory, tiny_encoder):
    path = tmp_path_factory.mktemp("study") / "choice.toml"
    path.write_text(STUDY.format(encoder=f'"{tiny_encoder}"'), encoding="utf-8")
    return load(path, environ={})


def test_each_model_has_its_own_parameters(definition, tiny_encoder):
    assert {parameter.name: str(parameter) for parameter in space.searched(definition)} == {
        "model": "one of iris, abmil, instance, linear, retrieval, token",
        "model.num_queries": "1 to 3, where model is iris",
        "model.hidden": "one of 8, 16, where model is abmil",
        "model.sharpness": "one of 0.5, 2.0, where model is instance",
        "model.C": "0.0001 to 0.1 (log), where model is retrieval",
        "model.reads": "one of pairs, posts, where model is token",
        "training.learning_rate": "0.001 to 0.01 (log), where model is iris or abmil or instance or token",
    }
    assert encoder_names(definition) == ["all-MiniLM-L6-v2", str(tiny_encoder)]
    assert embedded_views(definition) == [("all-MiniLM-L6-v2", 1)]


@pytest.mark.slow
def test_every_model_of_a_search_trains(definition, tiny_encoder):
    task = load_task(definition)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for name in ("iris", "abmil", "instance", "linear", "retrieval", "token", "token"):
        study.enqueue_trial({"model": name})
    trained = []
    for _ in range(7):
        trial = study.ask()
        candidate = space.suggest(definition, trial)
        features = task.features(candidate.model)
        assert isinstance(features, TextCorpus if candidate.model.name == "token" else EmbeddedCorpus)
        cv = CrossValidation(
            features,
            task.folds,
            candidate,
            stages=(1, 1),
            metric=definition.search.metric,
            criteria=task.criteria,
            seed=0,
        )
        events = list(cv.epochs())
        epochs = [1] if is_solved(candidate.model) else [1, 2]
        assert [(event.stage, event.epoch) for event in events] == [(stage, e) for stage in (0, 1) for e in epochs]
        assert all(math.isfinite(loss) for event in events for loss in event.train_loss + event.validation_loss)
        study.tell(trial, cv.summary().value)
        trained.append(candidate.model.name)
    assert trained == ["iris", "abmil", "instance", "linear", "retrieval", "token", "token"]
    assert study.best_value > task.baselines()["chance"]


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["0.0", "1.0", "{ low = 0.0, high = 1.0 }"])
def test_marks_are_part_of_the_data_of_models_that_learn_from_them(tmp_path, weight):
    path = tmp_path / "marks.toml"
    data = '[data]\nsource = "synthetic"\nposts = 60\ncriteria = 2\n[split]\nfolds = 2\n'
    path.write_text(f'{data}[model]\nname = "instance"\nevidence_weight = {weight}\n', encoding="utf-8")
    task = load_task(load(path, environ={}))
    identity = task.identity()["data_sha256"]
    assert (identity == task.corpus.fingerprint()) is (weight == "0.0")
    assert (identity == task.corpus.fingerprint(evidence=True)) is (weight != "0.0")
    assert task.embedded["all-MiniLM-L6-v2", 1].evidence.any()


@pytest.mark.slow
def test_the_search_chooses_the_encoder_and_the_window(tmp_path, tiny_encoder):
    """Only the encoders and windows that a model may choose are embedded, and each trial trains on its own."""
    path = tmp_path / "views.toml"
    path.write_text(VIEWS.format(encoder=tiny_encoder), encoding="utf-8")
    task = load_task(load(path, environ={}))
    default = "all-MiniLM-L6-v2"
    assert list(task.embedded) == [
        (default, 2),
        (default, 1),
        (str(tiny_encoder), 2),
        (str(tiny_encoder), 1),
        (default, 3),
    ]
    single, pairs = len(task.chunks), len(task.embedded[default, 2].embeddings)
    assert pairs < single == len(task.embedded[default, 1].embeddings)
    assert [view.embeddings.shape[1] for view in task.embedded.values()] == [384, 384, 16, 16, 384]
    assert task.texts == sum(len(view.embeddings) + 2 for view in task.embedded.values())
    for choice in ({"model": "iris", "model.encoder": str(tiny_encoder), "model.window": 1}, {"model": "abmil"}):
        candidate = space.suggest(task.definition, optuna.trial.FixedTrial(choice))
        assert task.features(candidate.model) is task.embedded[candidate.model.encoder, candidate.model.window]
        cv = task.cross_validation(candidate)
        assert all(math.isfinite(loss) for event in cv.epochs() for loss in event.validation_loss)
    assert load_task(task.definition).computed == 0


@pytest.mark.slow
def test_a_study_of_transformers_only_still_has_baselines(tmp_path, tiny_encoder):
    path = tmp_path / "token.toml"
    path.write_text(TOKEN_ONLY + f'encoder = "{tiny_encoder}"\n', encoding="utf-8")
    task = load_task(load(path, environ={}))
    assert list(task.encoders) == [str(tiny_encoder)]
    assert list(task.embedded) == [("all-MiniLM-L6-v2", 1)]
    baselines = task.baselines()
    assert baselines["linear"] > baselines["mean_prevalence"]
    assert min(baselines["retrieval"], baselines["zero_shot"]) > baselines["chance"]
