"""What is confirmed: rounds of successive halving, and who wins on fresh splits."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from claim_tools import IDENTITY, claimed
from optuna.trial import FrozenTrial, TrialState

from sparse_evidence.hpo.database import connection, studies
from sparse_evidence.hpo.database.record import CONFIRM, CURVES, CV, REASON
from sparse_evidence.hpo.running import conclusions
from sparse_evidence.hpo.running.claims import Claims
from sparse_evidence.hpo.running.conclusions import FreshScores
from sparse_evidence.hpo.running.confirming import (
    Entry,
    Plan,
    dropped_out,
    leaders_left,
    make_plan,
    next_round,
    planned,
    rounds,
)
from sparse_evidence.hpo.study.config import ConfirmConfig

LEADERS = tuple(range(10, 18))
PLAN = Plan(
    finished=40, leaders=LEADERS, members=(10, 11, 30), default=0, splits=4,
    epochs={str(number): number for number in (0, *LEADERS, 30)},
)  # fmt: skip


def finished(
    entries: list[Entry], values: dict[int, float] | None = None, fail: tuple[int, ...] = ()
) -> list[FrozenTrial]:
    """The trials of a round, each with its value; those of configurations in `fail` are infeasible."""
    return [
        optuna.create_trial(state=TrialState.FAIL, user_attrs={CONFIRM: entry, REASON: "diverged"})
        if entry.get("trial") in fail
        else optuna.create_trial(value=(values or {}).get(entry.get("trial", -1), 0.1), user_attrs={CONFIRM: entry})
        for entry in entries
    ]


def run_all(plan: Plan, values: dict[int, float], *, maximize: bool = True) -> list[list[Entry]]:
    """The rounds of a whole plan."""
    trials: list[FrozenTrial] = []
    played = []
    while entries := next_round(plan, trials, maximize=maximize):
        assert planned(plan, trials, maximize=maximize) >= len(trials) + len(entries)
        played.append(entries)
        trials += finished(entries, values)
        assert planned(plan, trials, maximize=maximize) >= len(trials)
    assert planned(plan, trials, maximize=maximize) == len(trials)
    return played


@pytest.mark.parametrize(
    ("leaders", "splits", "expected"),
    [
        (8, 4, [(8, [0]), (4, [1]), (2, [2, 3])]),
        (8, 2, [(8, [0]), (4, [1])]),
        (8, 1, [(8, [0])]),
        (5, 6, [(5, [0]), (3, [1]), (2, [2, 3, 4, 5])]),
        (2, 3, [(2, [0, 1, 2])]),
        (1, 3, [(1, [0, 1, 2])]),
    ],
)
def test_leaders_are_halved_until_two_share_the_remaining_splits(leaders, splits, expected):
    assert [(count, list(of)) for count, of in rounds(leaders, splits)] == expected


def test_the_better_half_goes_on_and_the_others_are_always_there():
    values = {number: number / 100 for number in LEADERS}
    first, second, third = run_all(PLAN, values)
    trained = [{entry["trial"] for entry in entries if "trial" in entry} for entries in (first, second, third)]
    always = {0, 10, 11, 30}
    assert trained == [{*LEADERS, *always}, {14, 15, 16, 17, *always}, {16, 17, *always}]
    assert [sorted({entry["split"] for entry in entries}) for entries in (first, second, third)] == [[0], [1], [2, 3]]
    assert sum("baselines" in entry for entries in (first, second, third) for entry in entries) == 4
    assert all(entry["epochs"] == entry["trial"] for entry in first if "trial" in entry)
    assert [entry["round"] for entry in third] == [2] * len(third)
    downwards = run_all(PLAN, values, maximize=False)
    assert {entry["trial"] for entry in downwards[2] if "trial" in entry} == {10, 11, 0, 30}


def test_the_order_counts_all_splits_so_far_and_of_equals_the_first_leader():
    trials = finished(next_round(PLAN, [], maximize=True), dict.fromkeys(LEADERS, 0.5))
    assert leaders_left(PLAN, trials, 1, maximize=True) == LEADERS[:4]
    trials += finished(next_round(PLAN, trials, maximize=True), {10: 0.2, 11: 0.4, 12: 0.3, 13: 0.1})
    assert leaders_left(PLAN, trials, 2, maximize=True) == (11, 12)


def test_what_cannot_be_trained_drops_out_with_its_reason():
    trials = finished(next_round(PLAN, [], maximize=True), {number: 1.0 - number / 100 for number in LEADERS}, (10, 30))
    assert dropped_out(trials) == {10: "diverged", 30: "diverged"}
    second = next_round(PLAN, trials, maximize=True)
    assert {entry["trial"] for entry in second if "trial" in entry} == {11, 12, 13, 14, 0}
    everything = finished(next_round(PLAN, [], maximize=True), fail=(0, *LEADERS, 30))
    assert next_round(PLAN, everything, maximize=True) == [{"baselines": True, "split": 1, "round": 1}]


# --- the winner -------------------------------------------------------------------------------------------------------

WINNERS: dict[str, tuple[dict[str, list[float]], str]] = {
    "the best mean": ({"ensemble": [0.5, 0.6], "3": [0.4, 0.5], "default": [0.3, 0.4]}, "ensemble"),
    "a baseline as good as the ensemble": ({"ensemble": [0.50, 0.60], "linear": [0.49, 0.605]}, "linear"),
    "the simplest of those as good": (
        {"ensemble": [0.5, 0.6], "default": [0.51, 0.589], "retrieval": [0.51, 0.589], "linear": [0.4, 0.5]},
        "retrieval",
    ),
    "a single trial does not displace the ensemble": ({"ensemble": [0.5, 0.6], "3": [0.5, 0.599]}, "ensemble"),
    "a single trial that is a little better": ({"ensemble": [0.5, 0.6], "3": [0.6, 0.61]}, "ensemble"),
    "a baseline as good as the ensemble, which is as good as the best trial": (
        {"3": [0.60, 0.61], "ensemble": [0.59, 0.60], "retrieval": [0.60, 0.585]}, "retrieval",
    ),
    "a single trial that is better does": ({"ensemble": [0.5, 0.6], "3": [0.6, 0.7]}, "3"),
    "a baseline that is best": ({"ensemble": [0.5, 0.6], "linear": [0.6, 0.7], "retrieval": [0.7, 0.8]}, "retrieval"),
    "a difference that is the same on all splits": ({"ensemble": [0.5, 0.75], "default": [0.375, 0.625]}, "ensemble"),
    "one split": ({"ensemble": [0.5], "default": [0.4]}, "ensemble"),
}  # fmt: skip


def choose(values: dict[str, list[float]], *, maximize: bool = True) -> tuple[str | None, str]:
    scores = {
        name: FreshScores(dict(enumerate(by_split)), {split: np.full(2, value) for split, value in enumerate(by_split)})
        for name, by_split in values.items()
    }
    return conclusions.choose(scores, maximize=maximize)


@pytest.mark.parametrize("case", WINNERS)
def test_the_winner(case):
    values, winner = WINNERS[case]
    assert choose(values)[0] == winner
    negative = {name: [-value for value in by_split] for name, by_split in values.items()}
    assert choose(negative, maximize=False)[0] == winner


def test_the_reason_says_why_in_words():
    assert (
        choose({"ensemble": [0.5, 0.6], "zero_shot": [0.1, 0.1]})[1]
        == "the ensemble has the best mean on 2 fresh splits (0.5500)"
    )
    assert choose({"3": [0.5], "default": [0.5]})[1] == (
        "the default configuration is simpler than trial 3 and is as good within one standard error on 1 fresh split "
        "(difference 0.0000, standard error 0.0000)"
    )
    assert choose({}) == (None, "nothing could be trained on fresh splits")


def test_a_pruned_default_is_trained_for_its_best_epoch_so_far(database):
    """Its curves are read although a worker's storage leaves them out."""
    storage = connection.open_storage(database, without=(CURVES,))
    study = studies.open_study(storage, "s", direction="maximize", identity=IDENTITY)
    terms = {"heartbeat_seconds": 1.0, "grace_seconds": 10.0, "max_attempts": 3}
    queue = Claims(connection.engine_of(study), study, budget=2, **terms)
    default, other = claimed(queue), claimed(queue)
    curves = {"scores": [[0.1, 0.3, 0.2], [0.1, 0.2], []]}
    default.finish(TrialState.PRUNED, attributes={CURVES: curves}, reports={2: 0.25})
    other.finish(TrialState.COMPLETE, 0.4, attributes={CV: {"best_epoch": 7}})
    plan = make_plan(study, ConfirmConfig(leaders=8, splits=3), {"finished": 2, "members": [1, 1]})
    assert plan == Plan(2, (1,), (1, 1), default=0, splits=3, epochs={"0": 2, "1": 7})
    connection.engine_of(study).dispose()
