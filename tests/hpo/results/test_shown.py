"""What the dashboard shows of a study: numbers that agree with `best.json`, and notes that say why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import pytest
import sqlalchemy as sa
from study_in_work import (
    COMPLETE,
    INFEASIBLE,
    PRUNED_AT_THE_END_OF_A_STAGE,
    PRUNED_WITHIN_A_STAGE,
    REASON,
    RUNNING,
    make_study,
)
from wsgi import request

from sparse_evidence.hpo.database import record
from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.database.record import CURVES, CV, PRUNED
from sparse_evidence.hpo.database.studies import load_study
from sparse_evidence.hpo.results import dashboard, notes, shown
from sparse_evidence.hpo.results.best import best_result
from sparse_evidence.hpo.results.why import why

Ask = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def in_work(tmp_path_factory: pytest.TempPathFactory, database_of_module: str) -> Iterator[str]:
    """The URL of a database with a study in work."""
    study = make_study(tmp_path_factory.mktemp("study"), database_of_module)
    yield database_of_module
    engine_of(study).dispose()


@pytest.fixture
def pages() -> Iterator[Callable[..., Ask]]:
    """Call it for a function that asks a dashboard over a database for a page: its status and its content."""
    storages = []

    def serve(url: str, *, changes: bool = False) -> Ask:
        storages.append(open_storage(url, retry_seconds=0.5, without=(CURVES,)))
        if changes:
            storages.append(open_storage(url, retry_seconds=0.5))
        application = dashboard.application(storages[0], storages[1] if changes else None, host="localhost")

        def ask(path: str, method: str = "GET", **sent: Any) -> tuple[int, Any]:
            body = json.dumps(sent).encode() if sent else b""
            status, _, content = request(application, path, method, body=body, headers={"HOST": "localhost"})
            return status, json.loads(content) if content.startswith(b"{") else content

        return ask

    yield serve
    for storage in storages:
        engine_of(storage).dispose()


def study_page(ask: Ask) -> dict[str, Any]:
    status, page = ask("/api/studies/1")
    assert status == 200
    return page


def attributes(shown: dict[str, Any]) -> dict[str, str]:
    return {pair["key"]: pair["value"] for pair in shown["user_attrs"]}


# ---- a study in work -------------------------------------------------------------------------------------------------


def test_the_page_of_a_study_names_the_metric_and_says_what_to_beat(in_work, pages):
    page = study_page(pages(in_work))
    assert page["objective_names"] == ["average precision"]
    stored = load_study(open_storage(in_work), "tiny")
    baselines, best = record.baselines(stored), best_result(stored)
    assert baselines is not None
    assert attributes(page)["baseline linear"] == str(round(baselines["linear"], 4))
    assert f"trial {best['trial']}: {best['value']:.4f}" in page["note"]["body"]
    assert shown.escaped(best["claim"]) in page["note"]["body"]
    assert f"linear {baselines['linear']:.4f}" in page["note"]["body"].lower()
    assert max(len(value) for value in attributes(page).values()) < 100


def test_the_intermediate_values_of_a_complete_trial_are_means_that_end_in_its_value(in_work, pages):
    trials = study_page(pages(in_work))["trials"]
    stored = load_study(open_storage(in_work), "tiny").trials
    for number in COMPLETE:
        scores = stored[number].user_attrs[CV]["folds"]
        steps = {step["step"]: step["value"] for step in trials[number]["intermediate_values"]}
        assert list(steps) == [1, 2, 3]
        assert steps[3] == stored[number].value == trials[number]["values"][0]
        assert [steps[1], steps[2]] == pytest.approx([scores[0], fmean(scores[:2])])


def test_pruned_trials_have_no_value_and_say_of_how_many_folds_theirs_was(in_work, pages):
    page = study_page(pages(in_work))
    for number, folds, mean in ((PRUNED_AT_THE_END_OF_A_STAGE, "2", "0.25"), (PRUNED_WITHIN_A_STAGE, "1", "0.25")):
        trial = page["trials"][number]
        assert "values" not in trial
        found = attributes(trial)
        assert (found["folds"], found["mean of these folds"]) == (folds, mean)
    best = best_result(load_study(open_storage(in_work), "tiny"))
    assert [trial["number"] for trial in page["best_trials"]] == [best["trial"]]
    assert page["best_trials"][0]["values"] == [best["value"]]


def test_the_attributes_of_a_trial_are_short_and_agree_with_the_result(in_work, pages):
    page = study_page(pages(in_work))
    best = best_result(load_study(open_storage(in_work), "tiny"))
    found = attributes(page["trials"][best["trial"]])
    cv = best["cv"]
    assert found["decision threshold"] == str(round(cv["threshold"], 4))
    assert (found["best epoch"], found["epochs"]) == (str(cv["best_epoch"]), str(cv["epochs"]))
    assert found["fold values"] == " ".join(f"{score:.4f}" for score in cv["folds"])
    other = next(number for number in COMPLETE if number != 0)
    gain = float(attributes(page["trials"][other])["gain over default"])
    assert gain == pytest.approx(page["trials"][other]["values"][0] - page["trials"][0]["values"][0], abs=6e-5)
    for trial in page["trials"]:
        assert all(len(value) < 100 for value in attributes(trial).values())


def test_the_notes_say_why(in_work, pages):
    note = [trial["note"]["body"] for trial in study_page(pages(in_work))["trials"]]
    assert (
        "average precision 0.250000 on these folds, but the pruning rule asked for at least 0.250004"
        in (note[PRUNED_AT_THE_END_OF_A_STAGE])
    )
    assert "the best 50 % of 1 other trial had" in note[PRUNED_AT_THE_END_OF_A_STAGE]
    assert "it had average precision 0.2500 and could be expected to reach 0.3750, but" in note[PRUNED_WITHIN_A_STAGE]
    assert r"a \*loss\* of \<nan\> in epoch\_3" in note[INFEASIBLE]
    assert "0.5000 on its first 1 of 3 folds so far" in note[RUNNING]
    assert note[0].startswith("Complete: average precision 0.")
    assert "The default configuration (trial 0) has" in note[1]
    assert "equal" in note[1] or " better" in note[1] or " worse" in note[1]


def test_a_study_of_an_earlier_version_is_shown_alike(database, tmp_path, pages):
    study = make_study(tmp_path, database)
    with engine_of(study).begin() as connection:
        connection.execute(sa.text("DELETE FROM trial_user_attributes WHERE key = :key"), {"key": PRUNED})
        connection.execute(sa.text("UPDATE trial_intermediate_values SET intermediate_value = 0.9 WHERE step = 3"))
    page = study_page(pages(database))
    assert page["trials"][0]["intermediate_values"][-1]["value"] == page["trials"][0]["values"][0]
    assert "did not store the threshold" in page["trials"][PRUNED_AT_THE_END_OF_A_STAGE]["note"]["body"]
    engine_of(study).dispose()


def test_a_study_that_hpo_did_not_create_is_shown_as_it_is(database, pages):
    import optuna

    theirs = optuna.create_study(storage=database, study_name="theirs")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    page = study_page(pages(database))
    assert ("objective_names" in page, page["note"]["body"]) == (False, "")
    assert [trial["values"] for trial in page["trials"]] == [trial.values for trial in theirs.trials]


# ---- a finished study ------------------------------------------------------------------------------------------------


def test_why_agrees_with_the_result(database, tmp_path, pages):
    study = make_study(tmp_path, database, concluded=True)
    best = best_result(study)
    explained = {number: why(study, number) for number in range(len(study.trials))}
    first, other = explained[best["trial"]], explained[1 - best["trial"]]
    assert (first["rank"], first["value"], first["folds"], first["behind"]) == (
        1,
        best["value"],
        best["cv"]["folds"],
        0,
    )
    assert other["rank"] == 2
    assert other["behind"] == pytest.approx(best["value"] - study.trials[other["trial"]].value)
    assert other["differs"] == {
        name: [study.trials[other["trial"]].params[name], value] for name, value in best["params"].items()
    }
    assert best["ensemble"] is not None
    weights = {member["trial"]: member["weight"] for member in best["ensemble"]["members"]}
    assert {number: found["weight"] for number, found in explained.items() if found["weight"]} == weights
    assert explained[INFEASIBLE]["reason"] == REASON
    assert explained[PRUNED_WITHIN_A_STAGE]["pruned"] == study.trials[PRUNED_WITHIN_A_STAGE].user_attrs[PRUNED]
    assert explained[PRUNED_WITHIN_A_STAGE]["reported"] == {"folds": 1, "value": 0.25}
    assert json.dumps(explained, allow_nan=False)
    assert shown.escaped(best["claim"]) in study_page(pages(database))["note"]["body"]
    engine_of(study).dispose()


@pytest.mark.parametrize(
    ("value", "other", "expected"),
    [(0.25, 0.5, ("0.2500", "0.5000")), (0.25, 0.250004, ("0.250000", "0.250004")), (0.5, 0.5, ("0.5000", "0.5000"))],
)
def test_two_numbers_that_differ_are_told_apart(value, other, expected):
    assert notes.distinct(value, other) == expected


# ---- reading and writing ---------------------------------------------------------------------------------------------


def test_a_note_that_somebody_writes_replaces_ours_and_nothing_else_is_lost(database, tmp_path, pages):
    study = make_study(tmp_path, database)
    before = load_study(open_storage(database), "tiny").trials
    ask = pages(database, changes=True)
    assert ask("/api/studies/1/1/note", "PUT", version=1, body="mine")[0] == 204
    page = study_page(ask)
    assert page["trials"][0]["note"] == {"version": 1, "body": "mine"}
    assert page["trials"][1]["note"]["version"] == 0
    assert ask("/api/studies/1/rename", "POST", study_name="renamed")[0] == 201
    after = load_study(open_storage(database), "renamed").trials  # copied from what is stored, not from what is shown
    assert [trial.user_attrs for trial in after] == [trial.user_attrs for trial in before]
    assert [trial.values for trial in after] == [trial.values for trial in before]
    engine_of(study).dispose()


def test_the_pages_answer_without_the_database_and_go_on_once_it_is_back(own_server, tmp_path, pages):
    server, url = own_server
    study = make_study(tmp_path, url)
    ask = pages(url)
    before = study_page(ask)
    server.stop()
    status, refused = ask("/api/studies")
    assert (status, refused) == (503, {"reason": "the database is unreachable; the page goes on once it is back"})
    assert ask("/api/studies/1")[0] == 503
    assert ask("/csv/1")[0] == 503
    assert (ask("/api/meta")[0], ask("/dashboard/")[0]) == (200, 200)
    server.start()
    assert study_page(ask)["trials"] == before["trials"]
    engine_of(study).dispose()


def test_a_confirmed_study_has_a_graph_of_its_candidates(database, tmp_path, pages):
    study = make_study(tmp_path, database)
    assert study_page(pages(database))["plotly_graph_objects"] == []
    scores = {
        "ensemble": {"mean": 0.5, "interval": [0.4, 0.6], "splits": [0.4, 0.6]},
        "0": {"mean": 0.3, "interval": [0.2, 0.4], "splits": [0.3]},
        "linear": {"mean": 0.7, "interval": None, "splits": [0.7, 0.7]},
        "chance": {"mean": 0.1, "interval": [0.1, 0.1], "splits": [0.1, 0.1]},
    }
    stored = {"finished": 6, "splits": 2, "winner": "ensemble", "reason": "the best", "scores": scores,
              "members": [0], "over_baseline": None, "over_default": None, "over_others": []}  # fmt: skip
    study.set_user_attr(record.CONFIRMED, stored)
    (graph,) = study_page(pages(database))["plotly_graph_objects"]
    figure = json.loads(graph["graph_object"])
    assert "2 fresh splits: average precision" in figure["layout"]["title"]["text"]
    (points,) = figure["data"]
    assert dict(zip(points["y"], points["x"], strict=True)) == {
        "Chance": 0.1, "Ensemble": 0.5, "Linear baseline": 0.7,
    }, "those that were scored on all splits"  # fmt: skip
    assert points["error_x"]["array"] == pytest.approx([0, 0.1, 0])
    assert points["error_x"]["arrayminus"] == pytest.approx([0, 0.1, 0])
