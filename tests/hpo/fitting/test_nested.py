"""Nested cross-validation: no step sees the posts of its outer fold, and the estimate is that of public functions."""

import io
import threading
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from sparse_evidence.core import selection
from sparse_evidence.core.baselines import Baselines, as_logits, chance
from sparse_evidence.core.errors import SplitError, UserError
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.fitted import load_model
from sparse_evidence.core.selection import Scorer
from sparse_evidence.hpo.database import connection, predictions, record
from sparse_evidence.hpo.database.studies import load_study
from sparse_evidence.hpo.errors import RefusedError
from sparse_evidence.hpo.fitting import nested
from sparse_evidence.hpo.fitting.fit import fit_result
from sparse_evidence.hpo.results import tables
from sparse_evidence.hpo.results.best import best_result
from sparse_evidence.hpo.results.status import study_status
from sparse_evidence.hpo.running.artifacts import open_store
from sparse_evidence.hpo.running.task import load_task
from sparse_evidence.hpo.running.worker import WorkerOptions, work
from sparse_evidence.hpo.study.definition import load

STUDY = """
name = "{metric}"
[data]
source = "synthetic"
posts = 120
criteria = 2
sentences_mean = 4
[split]
folds = 2
holdout = 0.2
[search]
space = "file"
metric = "{metric}"
trials = 2
pruner = {{ name = "none" }}
[[model]]
name = "retrieval"
C = {{ low = 1e-3, high = 1e-1, log = true }}
[[model]]
name = "linear"
C = {{ low = 1.0, high = 100.0, log = true }}
"""
OUTER = 3


def write(folder, metric):
    path = folder / f"{metric}.toml"
    path.write_text(STUDY.format(metric=metric))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nested")


@pytest.fixture(scope="module", params=["average_precision", "brier"])
def searched(request, folder, database_of_module):
    """A study and its child studies, whose trials are finished; their winners are of several kinds."""
    definition = load(write(folder, request.param), environ={})
    opened = nested.open_nested(definition, database_of_module, outer=OUTER)
    store = open_store(str(folder / "artifacts"))
    for fold in range(OUTER):
        child = opened.start(fold).definition
        work(child, database_of_module, store, WorkerOptions(2), stop=threading.Event())
    yield opened
    connection.engine_of(opened.study).dispose()


@pytest.fixture(scope="module")
def result(searched):
    assert searched.stored() is None
    of_folds = [nested.conclude_fold(searched, searched.start(fold), fold) for fold in range(OUTER)]
    return nested.conclude(searched, of_folds)


def child_of(opened, fold):
    """The definition, data and study of a child, as another process gets them from the file and the environment."""
    path = opened.task.definition.path
    definition = load(path, environ={"HPO_NESTED": f"{fold + 1}/{OUTER}"})
    return load_task(definition), load_study(connection.open_storage(opened.url), definition.name)


def test_the_posts_of_an_outer_fold_are_in_no_inner_fold(searched):
    posts = set(np.flatnonzero(searched.task.folds.assignment >= 0).tolist())
    left_out = []
    for fold in range(OUTER):
        task, study = child_of(searched, fold)
        assert task.identity() == record.identity(study) == searched.children[fold].identity()
        rows = searched.outer.validation(fold)
        left_out += rows.tolist()
        assert (task.folds.assignment[rows] == -1).all()
        inside = np.flatnonzero(task.folds.assignment >= 0)
        assert set(inside.tolist()) == posts - set(rows.tolist())
        assert not {task.corpus.groups[row] for row in rows} & {task.corpus.groups[row] for row in inside}
        stored = predictions.load(study)
        assert len(stored) == 2
        for logits in stored.values():
            assert np.isnan(logits[rows]).all()
            assert not np.isnan(logits[inside]).any()
        connection.engine_of(study).dispose()
    assert sorted(left_out) == sorted(posts)


def test_the_estimate_is_what_public_functions_give(searched, result, tmp_path):
    corpus, metric = searched.task.corpus, searched.task.definition.search.metric
    found = {}
    for fold in range(OUTER):
        task, study = child_of(searched, fold)
        rows = searched.outer.validation(fold)
        best = best_result(study)
        assert result["winners"][fold] == best["winner"]
        baselines = Baselines(next(iter(task.embedded.values())), corpus.groups, metric)
        predicted = baselines.predict(np.flatnonzero(task.folds.assignment >= 0), rows)
        posts = [corpus.posts[row] for row in rows]
        for name in ("winner", "default"):
            if best["winner"] == "zero_shot" and name == "winner":
                predicted[name] = predicted["zero_shot"]
                continue
            fit_result(best, task, tmp_path / name, what=name)
            predicted[name] = load_model(tmp_path / name).probabilities(posts)
        for name, probabilities in predicted.items():
            key = "procedure" if name == "winner" else name
            kind = best["winner"] if name == "winner" else name
            found.setdefault(key, np.full(corpus.labels.shape, np.nan))[rows] = as_logits(kind, probabilities)
        connection.engine_of(study).dispose()
    inside = searched.task.folds.assignment >= 0
    blocks = selection.make_blocks(corpus.groups, inside, searched.task.definition.search.seed)
    scorer = Scorer(metric, corpus.labels, searched.outer, blocks)
    assert found.keys() | {"chance"} == result["scores"].keys()
    left_out = {name: scorer.without_blocks(logits) for name, logits in found.items()}
    for name, logits in found.items():
        same(result["scores"][name], selection.estimate(scorer.value(logits), left_out[name]))
        np.testing.assert_allclose(result["scores"][name]["folds"], scorer.folds_of(logits), rtol=1e-6)
        if name != "procedure":
            difference = scorer.value(found["procedure"]) - scorer.value(logits)
            expected = selection.estimate(difference, left_out["procedure"] - left_out[name])
            same(result["gains"][name], expected)
    assert result["scores"]["chance"]["value"] == chance(corpus.labels, searched.outer, metric)
    assert result["scores"]["retrieval"]["interval"][0] < result["scores"]["retrieval"]["interval"][1]
    assert result["training_posts"] == [len(searched.outer.train(fold)) for fold in range(OUTER)]


def same(stored, expected):
    found = [stored["value"], *stored["interval"]]
    np.testing.assert_allclose(found, [expected.value, expected.low, expected.high], rtol=1e-5, atol=1e-7)


def test_a_winner_is_fitted_in_one_of_the_studies(searched, result):
    """So what is compared above is not always a baseline that learns nothing."""
    expected = {"average_precision": {"zero_shot"}, "brier": {"ensemble", "retrieval"}}
    assert set(result["winners"]) == expected[searched.task.definition.search.metric]


def test_labels_of_the_outer_fold_change_no_prediction(searched, result):
    """Trials, fit and baselines of a child with other labels there score the same on the true labels."""
    for fold in range(OUTER):
        task, rows = searched.children[fold], searched.outer.validation(fold)
        labels = np.array(task.corpus.labels)
        labels[rows] = 1 - labels[rows]
        embedded = {view: replace(known, labels=labels) for view, known in task.embedded.items()}
        assert all(isinstance(known, EmbeddedCorpus) for known in embedded.values())
        blind = replace(task, corpus=replace(task.corpus, labels=labels), embedded=embedded)
        children = (*searched.children[:fold], blind, *searched.children[fold + 1 :])
        study = searched.start(fold).study
        found = nested.score_fold(replace(searched, children=children), study, fold)
        assert found["scores"] == record.outer_fold(study)["scores"]
        cv = blind.cross_validation(nested.choose(best_result(study), "default", task).recipes[0].candidate, trial=0)
        for _ in cv.epochs():
            pass
        np.testing.assert_allclose(cv.predictions(), predictions.load(study, [0])[0], atol=1e-4)  # stored compactly


def test_a_result_is_stored_once(searched, result, monkeypatch):
    of_folds = [record.outer_fold(searched.start(fold).study) for fold in range(OUTER)]
    monkeypatch.setattr(nested, "score_fold", None)  # nothing is trained again
    assert [nested.conclude_fold(searched, searched.start(fold), fold) for fold in range(OUTER)] == of_folds
    assert nested.conclude(searched, of_folds) == result == searched.stored() == record.nested(searched.study)
    assert replace(searched, trials=1).stored() == result
    assert replace(searched, trials=3).stored() is None
    assert replace(searched, outer=searched.task.outer_folds(2)).stored() is None


def test_the_status_and_the_table_say_it(searched, result):
    status = study_status(searched.study)["nested"]
    best = result["best_baseline"]
    gain = {key: result["gains"][best][key] for key in ("value", "interval")}
    assert status == {"outer": OUTER, "trials": 2, **{key: result["scores"]["procedure"][key] for key in gain},
                      "best_baseline": best, "gain": gain}  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables.nested_table("s", result))
    text = console.export_text()
    assert "the procedure, not this model" in text
    assert f"{min(result['training_posts'])} " in text
    assert "on posts that no step has seen" in text
    assert max(map(len, text.splitlines())) <= 80
    console.print(tables.status_table(study_status(searched.study)))
    assert "nested cross-validation: the procedure has" in console.export_text()


def test_the_study_itself_has_no_trial_and_can_be_run_later(searched, result):
    assert [trial.state.name for trial in searched.study.trials] == ["WAITING"], "only the default is queued"
    assert record.requested(searched.study) is None
    assert record.identity(searched.study) == searched.task.identity()


def test_outer_folds_that_cannot_be_made_leave_nothing_behind(folder, database):
    definition = load(write(folder, "average_precision"), environ={})
    with pytest.raises(SplitError, match="cannot be divided into 90 outer folds"):
        nested.open_nested(definition, database, outer=90)
    with pytest.raises(UserError, match="There is no study"):
        load_study(connection.open_storage(database), definition.name)


def test_a_child_study_is_not_nested_again(folder, database):
    definition = load(write(folder, "average_precision"), environ={"HPO_NESTED": "1/3"})
    with pytest.raises(UserError, match=r"HPO_NESTED is set, so this is the child study average_precision/nested/3/1"):
        nested.open_nested(definition, database, outer=3)


def test_other_data_are_refused(searched, folder):
    changed = folder / "changed.toml"
    text = searched.task.definition.path.read_text()
    changed.write_text(text.replace("posts = 120", "posts = 121"))
    with pytest.raises(RefusedError, match="posts is 121 here and 120 in the study"):
        nested.open_nested(load(changed, environ={}), searched.url, outer=OUTER)


def test_a_search_without_a_complete_trial_is_one_sentence(folder, database):
    path = write(folder, "average_precision")
    opened = nested.open_nested(load(path, environ={}), database, outer=2)
    with pytest.raises(UserError, match="no trial could be trained without outer fold 1 of 2 "):
        nested.conclude_fold(opened, opened.start(0), 0)
    connection.engine_of(opened.study).dispose()
