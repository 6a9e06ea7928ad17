"""What is exported as the result, and what may be claimed of it."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from sparse_evidence.hpo.database import record
from sparse_evidence.hpo.results import winner

METRIC = "average_precision"


def gain(value: float, low: float, high: float, name: str = "retrieval") -> dict[str, Any]:
    return {"name": name, "value": value, "interval": [low, high]}


ABOVE, UNCLEAR, BELOW = gain(0.02, 0.007, 0.032), gain(0.02, -0.002, 0.042), gain(-0.01, -0.03, 0.01)


def ensemble(over_baseline: dict[str, Any] | None = ABOVE) -> dict[str, Any]:
    return {"finished": 40, "corrected": {"value": 0.512, "interval": [0.48, 0.55]}, "over_baseline": over_baseline}


def score(mean: float, splits: int = 4) -> dict[str, Any]:
    return {"mean": mean, "interval": [mean - 0.03, mean + 0.03], "splits": [mean] * splits}


def confirmed(name: str | None = "ensemble", over_baseline: dict[str, Any] | None = ABOVE) -> dict[str, Any]:
    means = {"ensemble": 0.519, "27": 0.51, "30": 0.515, "default": 0.5, "retrieval": 0.499, "chance": 0.24}
    scores = {**{name: score(mean) for name, mean in means.items()}, "8": score(0.6, splits=1)}
    return {
        "finished": 40, "splits": 4, "scores": scores, "winner": name, "reason": "so it is",
        "over_baseline": over_baseline,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "claim"),
    [
        (
            confirmed(),
            "The ensemble beats every baseline: average precision 0.519 (95 % interval 0.489 to 0.549), 0.020 (0.007 "
            "to 0.032) above the retrieval baseline, on 4 fresh splits.",
        ),
        (
            confirmed("default"),
            "The default configuration beats every baseline: average precision 0.500 (95 % interval 0.470 to 0.530), "
            "0.020 (0.007 to 0.032) above the retrieval baseline, on 4 fresh splits.",
        ),
        (
            confirmed("27", UNCLEAR),
            "Not clearly better than every baseline: trial 27 has average precision 0.510 (95 % interval 0.480 to "
            "0.540), 0.020 (-0.002 to 0.042) above the retrieval baseline, on 4 fresh splits.",
        ),
        (
            confirmed("ensemble", BELOW),
            "Not better than every baseline: the ensemble has average precision 0.519 (95 % interval 0.489 to 0.549), "
            "0.010 (-0.010 to 0.030) below the retrieval baseline, on 4 fresh splits.",
        ),
        (
            confirmed("retrieval", gain(0.05, 0.04, 0.06, "linear")),
            "Nothing beats the baselines: the retrieval baseline has average precision 0.499 (95 % interval 0.469 to "
            "0.529), on 4 fresh splits, and nothing searched is clearly better.",
        ),
        (
            confirmed("ensemble", {"name": "chance", "value": 0.2, "interval": None}),
            "Not clearly better than every baseline: the ensemble has average precision 0.519 (95 % interval 0.489 to "
            "0.549), 0.200 (no interval) above chance, on 4 fresh splits.",
        ),
        (
            confirmed("ensemble", None),
            "Nothing can be said about baselines, none was scored: the ensemble has average precision 0.519 (95 % "
            "interval 0.489 to 0.549), on 4 fresh splits.",
        ),
        (confirmed(None, None), "Nothing can be claimed: so it is."),
    ],
)  # fmt: skip
def test_the_claim_of_a_confirmed_result(found, claim):
    for own in (ensemble(ABOVE), ensemble(UNCLEAR), ensemble(None), None):
        assert winner.choose_winner(METRIC, 0.9, own, found).claim == claim


def test_a_gain_that_vanishes_without_the_posts_that_score_it_is_not_claimed():
    """What was chosen by the noise of these labels is confirmed on other splits of the same posts."""
    assert winner.choose_winner(METRIC, 0.9, ensemble(BELOW), confirmed()).claim == (
        "Not clearly better than every baseline: the ensemble has average precision 0.519 (95 % interval 0.489 to "
        "0.549), 0.020 (0.007 to 0.032) above the retrieval baseline, on 4 fresh splits; but chosen without the posts "
        "that score it, the ensemble is not better."
    )


@pytest.mark.parametrize(
    ("over_baseline", "name", "claim"),
    [
        (
            ABOVE, "ensemble",
            "The ensemble beats every baseline: average precision 0.512 (95 % interval 0.480 to 0.550), 0.020 (0.007 "
            "to 0.032) above the retrieval baseline, on the folds of the search, corrected for selection; "
            "not confirmed.",
        ),
        (
            UNCLEAR, "ensemble",
            "Not clearly better than every baseline: the ensemble has average precision 0.512 (95 % interval 0.480 to "
            "0.550), 0.020 (-0.002 to 0.042) above the retrieval baseline, on the folds of the search, corrected for "
            "selection; not confirmed.",
        ),
        (
            BELOW, "retrieval",
            "Not better than every baseline: the ensemble has average precision 0.512 (95 % interval 0.480 to 0.550), "
            "0.010 (-0.010 to 0.030) below the retrieval baseline, on the folds of the search, corrected for "
            "selection; not confirmed.",
        ),
    ],
)  # fmt: skip
def test_the_claim_of_a_result_that_is_not_confirmed(over_baseline, name, claim):
    chosen = winner.choose_winner(METRIC, 0.9, ensemble(over_baseline), None)
    assert (chosen.name, chosen.claim) == (name, claim)
    assert chosen.reason.endswith("not confirmed")


def test_a_search_that_is_not_finished_claims_nothing():
    chosen = winner.choose_winner(METRIC, 0.4893, None, None)
    assert chosen.name == "trial"
    assert chosen.claim == (
        "Nothing can be claimed yet: average precision 0.489 is the best of all trials on the folds that chose it, "
        "neither corrected for that nor confirmed."
    )


def test_a_lower_brier_score_is_better():
    lower = gain(-0.02, -0.03, -0.01, "linear")
    claim = winner.choose_winner("brier", 0.1, None, confirmed("27", lower)).claim
    assert claim.startswith("Trial 27 beats every baseline: Brier score 0.510")
    assert "0.020 (0.010 to 0.030) better than the linear baseline" in claim
    claim = winner.choose_winner("brier", 0.1, None, confirmed("27", ABOVE)).claim
    assert claim.startswith("Not better than every baseline: trial 27 has")
    assert "0.020 (0.007 to 0.032) worse than the retrieval baseline" in claim


@pytest.mark.parametrize(
    ("name", "exported"), [("ensemble", "ensemble"), ("30", "trial"), ("linear", "linear"), (None, None)]
)
def test_the_winner_is_the_confirmed_one(name, exported):
    found = confirmed(name, None)
    found["scores"]["linear"] = score(0.46)
    chosen = winner.choose_winner(METRIC, 0.9, ensemble(), found)
    assert (chosen.name, chosen.reason) == (exported, "so it is")


def test_the_best_single_trial_when_confirmed():
    assert winner.confirmed_single(METRIC, confirmed()) == 30  # 8 was scored on one split only
    assert winner.confirmed_single("brier", confirmed()) == 27
    assert winner.confirmed_single(METRIC, confirmed("27")) == 27
    assert winner.confirmed_single(METRIC, confirmed() | {"scores": {"linear": score(0.4)}}) is None


def test_what_was_confirmed_counts_until_the_ensemble_is_of_more_trials():
    study = optuna.create_study()
    assert winner.current_confirmed(study) is None
    study.set_user_attr(record.CONFIRMED, {"finished": 40})
    assert winner.current_confirmed(study) == {"finished": 40}
    study.set_user_attr(record.ENSEMBLE, {"finished": 40})
    assert winner.current_confirmed(study) == {"finished": 40}
    study.set_user_attr(record.ENSEMBLE, {"finished": 50})
    assert winner.current_confirmed(study) is None
