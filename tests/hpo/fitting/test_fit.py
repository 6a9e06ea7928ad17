"""From the result of a real study to a model: everything that was tuned is used, and other data are refused."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import processes
import pytest

from sparse_evidence.core.errors import UserError
from sparse_evidence.core.fitted import load_model
from sparse_evidence.hpo.errors import RefusedError
from sparse_evidence.hpo.fitting import fit, recipes
from sparse_evidence.hpo.fitting.card import model_card
from sparse_evidence.hpo.results.wording import capitalized
from sparse_evidence.hpo.running.task import load_task
from sparse_evidence.hpo.study.definition import load

STUDY = """
name = "fitted"
[data]
source = "synthetic"
posts = 150
criteria = 2
sentences_mean = 5
[split]
folds = 3
holdout = 0.2
[search]
space = "file"
trials = 5
[[model]]
name = "instance"
hidden = { choices = [8, 16] }
sharpness = { low = 0.5, high = 4.0 }
[[model]]
name = "retrieval"
C = { low = 1e-3, high = 1e-1, log = true }
[training]
epochs = 6
batch_size = 16
learning_rate = { low = 3e-3, high = 3e-2, log = true }
[[loss]]
name = "focal"
gamma = { low = 0.5, high = 3.0 }
[confirm]
leaders = 2
splits = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, database_of_module):
    """A folder where `hpo run --fit` has run."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(STUDY)
    command = ["run", "study.toml", "--workers", "1"]
    options = ["--out", "results/best.json", "--fit", "models/first", "--storage", database_of_module]
    (folder / "results").mkdir()
    done = processes.call(*command, *options, cwd=folder, env={})
    assert done.returncode == 0, done.stderr
    assert "fitted" in done.stdout
    return folder


@pytest.fixture(scope="module")
def best(folder):
    return recipes.read_best(folder / "results" / "best.json")


@pytest.fixture(scope="module")
def task(folder, best):
    return load_task(load(fit.study_file(best, folder / "results" / "best.json")))


@pytest.fixture(scope="module")
def posts(task):
    held_out = np.flatnonzero(task.folds.assignment < 0)[:8]
    return [task.corpus.posts[row] for row in held_out]


def test_run_with_fit_writes_the_model_that_fit_writes(folder, best, task, tmp_path):
    model, _ = fit.fit_result(best, task, folder / "models" / "second")
    for name in ("weights.safetensors", "model.json", "README.md"):
        first, second = (folder / "models" / number / name for number in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    assert model.info["study_file"] == "../../study.toml"
    model, _ = fit.fit_result(best, task, tmp_path / "model")
    assert (tmp_path / "model" / model.info["study_file"]).resolve() == folder / "study.toml"


def test_out_of_fold_predictions_are_those_of_the_search(best, task):
    """A single trial, trained again for its best epoch, has the value that the search reports."""
    trial = recipes.choose(best, "trial", task)
    (recipe,) = trial.recipes
    cv = task.confirmation(recipe.candidate, seed=recipe.seed, epochs=recipe.epochs)
    for _ in cv.epochs():
        pass
    assert cv.summary().value == pytest.approx(best["value"], abs=1e-6)


@pytest.mark.parametrize("what", recipes.CHOICES)
def test_everything_that_can_be_fitted_predicts(best, task, tmp_path, what, posts):
    model, chosen = fit.fit_result(best, task, tmp_path / "model", what=what)
    probabilities = load_model(tmp_path / "model").probabilities(posts)
    assert np.array_equal(probabilities, model.probabilities(posts))
    assert probabilities.shape == (len(posts), 2)
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"\n{capitalized(chosen.text)} of the study fitted" in card
    assert model.info["fitted"] == chosen.name
    confirmed = best["confirmed"]["scores"]
    expected = confirmed[chosen.name]["mean"] if chosen.name in confirmed else best["value"]
    assert model.info["score"]["value"] == pytest.approx(expected)


def test_a_tuned_parameter_that_is_dropped_changes_the_model(best, task, tmp_path):
    """So nothing that the search has chosen is ignored by fitting."""
    instance = next(
        trained
        for trained in (best["default"], *best["ensemble"]["members"])
        if trained["config"]["model"]["name"] == "instance"
    )
    chosen = {**best, "default": instance}
    (recipe,) = recipes.choose(chosen, "default", task).recipes

    def weights(changed):
        config = json.loads(json.dumps({"default": changed}))["default"]
        fit.fit_result({**chosen, "default": config}, task, tmp_path / "model", what="default")
        return (tmp_path / "model" / "weights.safetensors").read_bytes()

    whole = weights(instance)
    tuned = {"model": ("hidden", "sharpness"), "training": ("learning_rate",), "loss": ("gamma",)}
    for part, names in tuned.items():
        defaults = {field.name: field.default for field in fields(getattr(recipe.candidate, part))}
        for name in names:
            config = {**instance["config"], part: {**instance["config"][part]}}
            config[part].pop(name)
            if instance["config"][part][name] == defaults[name]:
                config[part][name] = 2 * defaults[name]
            assert weights({**instance, "config": config}) != whole, f"{part}.{name} changes nothing"
    assert weights({**instance, "seed": instance["seed"] + 1}) != whole
    assert weights({**instance, "epochs": instance["epochs"] + 1}) != whole


def test_the_card_says_what_the_result_says(best, task, folder):
    card = (folder / "models" / "first" / "README.md").read_text()
    assert best["claim"] in card
    assert "## What it is not for" in card
    model = load_model(folder / "models" / "first")
    assert card == model_card(model)
    for criterion in task.corpus.criteria:
        assert criterion.name in card
    for post in task.corpus.posts:
        assert post not in card


def test_the_claim_is_made_of_the_winner_alone(best, task, tmp_path):
    other = next(what for what in ("linear", "retrieval") if what != best["winner"])
    model, _ = fit.fit_result(best, task, tmp_path / "model", what=other)
    card = (tmp_path / "model" / "README.md").read_text()
    assert best["claim"] not in card
    assert "This is not the winner of its study" in card
    assert other not in model.info["baselines"], "it is not its own baseline"


def test_other_encoder_weights_are_refused(best, task, tmp_path):
    other = {**best, "provenance": {**best["provenance"], "encoders_sha256": "0" * 64}}
    with pytest.raises(RefusedError, match="other encoder weights"):
        fit.fit_result(other, task, tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda best: best.pop("winner"), "winner"),
        (lambda best: best.update(provenance=[]), "provenance"),
        (lambda best: best.update(ensemble=[]), "ensemble"),
        (lambda best: best["ensemble"]["members"][0].pop("weight"), "ensemble.members.0.weight"),
        (lambda best: best["ensemble"]["members"].append(None), "ensemble.members"),
        (lambda best: best["default"].update(epochs="4"), "default.epochs"),
    ],
)
def test_an_altered_result_is_refused(best, tmp_path, change, where):
    altered = json.loads(json.dumps(best))
    change(altered)
    (tmp_path / "best.json").write_text(json.dumps(altered))
    with pytest.raises(UserError, match=f"was altered: {where}"):
        recipes.read_best(tmp_path / "best.json")


def test_other_data_are_refused(best, task, tmp_path):
    labels = np.array(task.corpus.labels)
    labels[0] = 1 - labels[0]
    changed = replace(task, corpus=replace(task.corpus, labels=labels))
    with pytest.raises(RefusedError, match="other posts, labels or groups"):
        fit.fit_result(best, changed, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not the result of a study"),
        ('{"schema": 1, "study": "a", "config": {}, "provenance": {}}', "has schema 1"),
    ],
)
def test_other_files_are_refused(tmp_path, content, sentence):
    path = tmp_path / "best.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        recipes.read_best(path)


def test_chance_cannot_be_fitted(best, task):
    with pytest.raises(UserError, match="learns nothing that could be fitted"):
        recipes.choose({**best, "winner": "chance"}, "winner", task)
    with pytest.raises(UserError, match="has no ensemble"):
        recipes.choose({**best, "ensemble": None}, "ensemble", task)


def test_a_result_without_a_study_file_asks_for_it(best):
    nameless = {**best, "provenance": {**best["provenance"], "study_file": None}}
    with pytest.raises(UserError, match="give it with --study"):
        fit.study_file(nameless, Path("best.json"))
