"""Plan, status and result as a person reads them: everything that matters, in 80 columns."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from sparse_evidence.hpo.results import tables, wording
from sparse_evidence.hpo.results.console import make_console, show
from sparse_evidence.hpo.results.plan import ChunksPerPost, Cost, Criterion, NearDuplicates, Plan
from sparse_evidence.hpo.study.fields import Choices, Range
from sparse_evidence.hpo.study.space import Parameter

NAMES = [
    "depressed_mood", "anhedonia", "appetite_change", "sleep_issues", "psychomotor", "fatigue", "worthlessness",
    "cognitive_issues", "suicidal_thoughts", "special_case",
]  # fmt: skip


def drawn(renderable: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(cell_len, text.splitlines())) <= width
    return text


def unwrapped(text: str) -> str:
    """The text without the line breaks of table cells."""
    return " ".join(text.split())


# --- the plan ---------------------------------------------------------------------------------------------------------


def planned(folds: int = 5, **changed: object) -> Plan:
    values = {
        "study": "redsm5", "path": "studies/redsm5_iris.toml", "posts": 1484, "groups": 700, "held_out": 297,
        "chunks": 20_000, "chunks_per_post": ChunksPerPost(1, 12, 90), "stages": (folds,),
        "validation_posts": (237,) * folds, "texts": 20_010, "embedded_now": 0, "short_posts": {4: 0.125, 12: 0.5},
        "metric": "average_precision",
        "baselines": {"linear": 0.4589, "retrieval": 0.501, "zero_shot": 0.4378, "chance": 0.2407,
                      "mean_prevalence": 0.2, "criterion_only_auroc": 0.61, "criterion_only_f1": 0.458,
                      "all_positive_f1": None},
        "trials": 300, "cost": Cost(epoch_seconds=0.5, shortest_seconds=20.0, longest_seconds=112.0),
        "criteria": tuple(Criterion(name, 328, 0.221, (0.0236,) * folds, 0.216) for name in NAMES),
        "parameters": (
            Parameter("training.accumulation_steps", "training", "accumulation_steps", Choices((1, 2, 4), 1)),
            Parameter("loss.gamma", "loss", "gamma", Range(0.0, 4.0), {"loss": ("focal",)}),
        ),
        "near_duplicates": NearDuplicates(0, 0, 0, ()), "notes": ("3 rows were repeated",),
    }  # fmt: skip
    return Plan(**{**values, **changed})


def test_names_and_paths_that_look_like_markup_are_shown_as_they_are():
    name, encoder = "mood [/low]", "/models/[/bold]"
    parameter = Parameter("model.encoder", "model", "encoder", Choices((encoder, "default"), "default"))
    shown = drawn(
        tables.plan_table(
            planned(criteria=(Criterion(name, 5, 0.1, (0.1,) * 5, 0.1),), parameters=(parameter,), path="[/a].toml")
        )
    )
    for text in (name, encoder, "[/a].toml"):
        assert text in shown
    result = drawn(tables.result_table(best(params={"model.encoder": encoder}), "[/b].json"))
    for text in (encoder, "[/b].json"):
        assert text in result


@pytest.mark.parametrize("folds", [2, 5, 10, 50])
def test_a_plan_of_ten_criteria_and_many_folds_is_readable(folds):
    text = drawn(tables.plan_table(planned(folds)))
    assert "…" not in text
    for name in NAMES:
        row = next(line for line in text.splitlines() if line.startswith(name))
        ends = ("22", "22") if folds == 10 else ("22.1", "21.6")
        assert row.split() == [name, "328", ends[0], *["2.4"] * (2 if folds == 50 else folds), ends[1]]
    assert "training.accumulation_steps" in text
    assert "note: 3 rows were repeated" in text


def test_a_plan_says_what_the_study_is_and_costs():
    text = unwrapped(drawn(tables.plan_table(planned())))
    for expected in (
        "redsm5 (studies/redsm5_iris.toml)", "1,484 in 700 groups, 297 of them held out",
        "20,000; 1 to 90 per post, median 12", "5, in stages of 5; validation posts 237, 237, 237, 237, 237",
        "20,010 texts (all embeddings cached)", "12.5 % at k = 4, 50.0 % at k = 12",
        "average precision: retrieval 0.5010, linear 0.4589, zero-shot 0.4378, chance 0.2407",
        "all called positive: F1 –",
        "0.50 s for all 5 folds", "2 parameters to search", "training.accumulation_steps one of 1, 2, 4",
        "loss.gamma 0.0 to 4.0, where loss is focal",
        "20 s to 1 min 52 s for 300 trials and one worker (without pruning; from all trials stopping early to none)",
    ):  # fmt: skip
        assert expected in text


def test_a_plan_names_near_duplicates_by_id():
    assert "near-duplicates none in different groups" in unwrapped(drawn(tables.plan_table(planned())))
    duplicates = NearDuplicates(1, 2, 2, (("p[3]", "p9"),))
    one = unwrapped(drawn(tables.plan_table(planned(near_duplicates=duplicates))))
    assert "near-duplicates 1 pair in different groups, 2 posts of 2 groups (p[3] and p9): folds may" in one
    assert "merge_near_duplicates = true in [split] makes such groups one" in one
    pairs = tuple((f"p{number}", f"q{number}") for number in range(20))
    many = unwrapped(drawn(tables.plan_table(planned(near_duplicates=NearDuplicates(1234, 1500, 7, pairs)))))
    assert (
        "1,234 pairs in different groups, 1,500 posts of 7 groups (p0 and q0, p1 and q1, p2 and q2, …): folds" in many
    )


def test_embeddings_that_were_computed_are_counted():
    assert wording.texts_text(1814, 0) == "1,814 texts (all embeddings cached)"
    assert wording.texts_text(1814, 300) == "1,814 texts (300 embedded now, 1,514 cached or repeated)"


# --- the result -------------------------------------------------------------------------------------------------------


def best(**changed: object) -> dict[str, object]:
    """What an export of a study without an ensemble holds."""
    baselines = {
        "linear": 0.4589, "linear_folds": [0.4589] * 5, "retrieval": 0.4672, "retrieval_folds": [0.4672] * 5,
        "zero_shot": 0.4378, "zero_shot_folds": [0.4378] * 5, "chance": 0.2407, "mean_prevalence": 0.2,
        "criterion_only_f1": 0.458,
    }  # fmt: skip
    cv = {
        "mean": 0.4971, "std": 0.05, "folds": [0.4971] * 5, "best_epoch": 7, "epochs": 13, "threshold": 0.31,
        "pooled": {"f1": 0.51}, "floors": baselines,
        "per_criterion": {"a": {"positives": 158.0, "prevalence": 158 / 399}, "b": {"positives": 0, "prevalence": 0.0}},
    }  # fmt: skip
    return {
        "study": "quickstart", "metric": "average_precision", "value": 0.4971, "trial": 17, "cv": cv,
        "params": {"loss": "focal", "training.learning_rate": 0.00312345}, "confirmed": None, "ensemble": None,
        "default": {"trial": 0, "value": 0.4432}, "winner": "trial",
        "reason": "the best single trial", "claim": "Nothing.",
        "trials": {"complete": 31, "pruned": 9, "infeasible": 0, "failed": 0, "requested": 40},
    } | changed  # fmt: skip


def ensemble() -> dict[str, object]:
    members = [{"trial": 17, "picks": 3}, {"trial": 3, "picks": 1}]
    return {
        "finished": 40, "members": members, "value": 0.5312, "threshold": 0.2,
        "corrected": {"value": 0.5021, "interval": [0.4611, 0.5431]},
        "best": {"trial": 17, "value": 0.4971, "corrected": {"value": 0.4513, "interval": [0.4111, 0.4911]}},
        "over_default": {"name": "default", "value": 0.06, "interval": [0.02, 0.1]},
        "over_baseline": {"name": "retrieval", "value": 0.035, "interval": [-0.005, 0.075]},
    }  # fmt: skip


def confirmed(**changed: object) -> dict[str, object]:
    means = {"ensemble": 0.519, "17": 0.4711, "8": 0.4822, "default": 0.4433, "linear": 0.4531, "retrieval": 0.4612,
             "chance": 0.2407}  # fmt: skip
    return {
        "finished": 40, "splits": 4, "winner": "ensemble", "reason": "the ensemble has the best mean",
        "scores": {name: {"mean": mean, "interval": [mean - 0.04, mean + 0.04]} for name, mean in means.items()},
        "over_default": {"name": "default", "value": 0.0757, "interval": [0.05, 0.1]},
        "over_baseline": {"name": "retrieval", "value": 0.0578, "interval": [0.02, 0.08]},
        "over_others": [{"name": "linear", "value": 0.0659, "interval": [0.03, 0.1]}],
    } | changed  # fmt: skip


def row(text: str, start: str) -> str:
    """The only line that begins with a text, with single spaces."""
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return " ".join(line.split())


def test_a_result_without_an_ensemble_has_one_column_of_values():
    text = drawn(tables.result_table(best(), "results/best.json"))
    assert row(text, "best single trial 17") == "best single trial 17 0.497*"
    assert row(text, "default configuration") == "default configuration 0.443"
    assert row(text, "retrieval baseline") == "retrieval baseline 0.467"
    assert row(text, "linear baseline") == "linear baseline 0.459"
    assert row(text, "zero-shot baseline") == "zero-shot baseline 0.438"
    assert row(text, "chance") == "chance 0.241"
    for expected in (
        "* flattering: chosen for its value on these very folds", "mean over folds, of about 80 posts each",
        "winner the best single trial", "Nothing.", "trial 17 best epoch 7 of 13",
        "pooled F1 0.510 at threshold 0.310 (0.458 without reading the posts)", "loss focal",
        "training.learning_rate 0.003123", "31 complete, 9 pruned, 0 failed of 40 requested",
        "written to results/best.json",
    ):  # fmt: skip
        assert expected in unwrapped(text)
    assert "95 %" not in text


def test_a_result_that_is_not_confirmed_is_corrected():
    text = drawn(tables.result_table(best(ensemble=ensemble(), winner="ensemble"), "best.json"))
    assert row(text, "ensemble of 2 trials") == "ensemble of 2 trials 0.531* 0.502 0.461 to 0.543"
    assert row(text, "best single trial 17") == "best single trial 17 0.497* 0.451 0.411 to 0.491"
    assert row(text, "retrieval baseline") == "retrieval baseline 0.467"
    for expected in (
        "corrected: for that choice", "gain over retrieval 0.035 (95 % interval -0.005 to 0.075), the ensemble's",
        "gain over default 0.060", "average of trials 17 (weight 3), 3; threshold 0.200",
    ):  # fmt: skip
        assert expected in unwrapped(text)
    assert "confirmed" not in text


def test_a_confirmed_result_shows_both_values_of_everything():
    result = best(ensemble=ensemble(), confirmed=confirmed(), winner="ensemble", trial=8, value=0.4901)
    text = drawn(tables.result_table(result, "best.json"))
    assert row(text, "ensemble of 2 trials") == "ensemble of 2 trials 0.531* 0.519 0.479 to 0.559"
    assert row(text, "trial 17, best in the search") == "trial 17, best in the search 0.497* 0.471 0.431 to 0.511"
    assert row(text, "trial 8, best when confirmed") == "trial 8, best when confirmed 0.490* 0.482 0.442 to 0.522"
    assert row(text, "default configuration") == "default configuration 0.443 0.443 0.403 to 0.483"
    assert row(text, "zero-shot baseline") == "zero-shot baseline 0.438"  # not scored on fresh splits
    assert row(text, "chance") == "chance 0.241 0.241"
    for expected in (
        "trained again on 4 fresh splits",
        "gain over retrieval 0.058 (95 % interval 0.020 to 0.080)",
        "gain over linear 0.066 (95 % interval 0.030 to 0.100)",
    ):
        assert expected in unwrapped(text)
    assert "the ensemble's" not in text


def test_the_winner_is_the_green_row():
    for winner, start in (("ensemble", "ensemble of"), ("trial", "best single"), ("retrieval", "retrieval")):
        result = best(ensemble=ensemble(), confirmed=confirmed(), winner=winner)
        console = Console(file=io.StringIO(), width=80, highlight=False, force_terminal=True, color_system="standard")
        console.print(tables.result_table(result, "best.json"))
        assert isinstance(console.file, io.StringIO)
        (line,) = (line for line in console.file.getvalue().splitlines() if "\x1b[1;32m" in line)
        assert start in line


def test_a_gain_of_the_brier_score_is_positive_where_the_value_is_lower():
    lower = {"name": "linear", "value": -0.02, "interval": [-0.03, -0.01]}
    result = best(metric="brier", ensemble=ensemble(), confirmed=confirmed(over_baseline=lower), winner="ensemble")
    text = unwrapped(drawn(tables.result_table(result, "best.json")))
    assert "gain over linear 0.020 (95 % interval 0.010 to 0.030)" in text


def test_the_default_may_be_the_best_trial_or_unknown():
    text = drawn(tables.result_table(best(trial=0), None))
    assert "best single trial 0 (the default)" in text
    assert "default configuration" not in text
    assert "written to no file; `hpo export` writes quickstart.best.json" in unwrapped(text)
    assert "default" not in drawn(tables.result_table(best(default=None), None))
    pruned = {"trial": 0, "value": None}
    assert row(drawn(tables.result_table(best(default=pruned), None)), "default") == "default configuration –"


def test_a_result_without_baselines_or_counts():
    without = best()
    without["cv"] |= {"floors": None, "per_criterion": {}}
    text = drawn(tables.result_table(without, "best.json"))
    assert "baseline" not in text
    assert "posts each" not in text


# --- the status -------------------------------------------------------------------------------------------------------


def status(**changed: object) -> dict[str, object]:
    worker = {
        "host": "a-machine-with-a-long-name.example.org", "pid": 123456, "slot": 7, "gpu": None, "trial": 1234,
        "attempt": 1, "stage": 1, "epoch": 39, "released": False, "heartbeat_age": 3.2, "held_seconds": 75.0,
    }  # fmt: skip
    return {
        "study": "quickstart", "metric": "average_precision", "workers": [worker], "attempts": {"3": 2},
        "infeasible_reasons": {}, "storage": "postgresql://",
        "trials": {"requested": 40, "finished": 12, "complete": 8, "pruned": 4, "infeasible": 0, "failed": 0,
                   "running": 1, "released": 0},
        "best": {"value": 0.4971, "trial": 3, "model": "iris", "params": {}},
        "baselines": {"linear": 0.4589, "mean_prevalence": 0.2},
        "pace": {"trials_per_hour": 45.0, "seconds_left": 840.0},
        "confirming": None, "ensemble": None, "confirmed": None, "claim": None, "nested": None,
    } | changed  # fmt: skip


def test_a_status_with_workers():
    text = drawn(tables.status_table(status()))
    for expected in (
        "12 of 40 trials finished", "8 complete, 4 pruned, 1 running\n",
        "best average precision 0.4971 (trial 3, iris)",
        "Baselines (average precision): linear 0.4589, prevalence (mean) 0.2000", "45.0 trials/h, 14 min 00 s left",
        "started more than once: trial 3 (2 times)", "123456", "1 min 15 s", "3 s ago",
    ):  # fmt: skip
        assert expected in text.replace(" \n", "\n").replace("  \n", "\n")


def test_a_worker_that_has_finished_no_epoch_shows_no_position():
    state = status()
    state["workers"][0] |= {"stage": 0, "epoch": 0, "heartbeat_age": 75.0}
    assert "1234 1 – – 1 min 15 s just claimed 7" in unwrapped(drawn(tables.status_table(state)))
    state["workers"][0] |= {"released": True}
    assert "1 min 15 s released 7" in unwrapped(drawn(tables.status_table(state)))


def test_a_gpu_is_named_by_the_start_of_its_uuid():
    state = status()
    state["workers"][0]["gpu"] = "GPU-1a2b3c4d-5e6f-7890-abcd-ef0123456789"
    text = drawn(tables.status_table(state))
    assert "GPU-1a2b3c4d 123456" in unwrapped(text)
    assert "5e6f" not in text


def test_a_status_without_workers_has_no_pace():
    pace = {"trials_per_hour": None, "seconds_left": None}
    text = drawn(tables.status_table(status(workers=[], best=None, baselines=None, attempts={}, pace=pace)))
    for expected in ("no worker is running", "no score yet", "Baselines (average precision): not measured yet"):
        assert expected in text
    assert "left" not in text
    assert "more than once" not in text


def test_a_status_shows_released_trials_as_released():
    state = status()
    state["workers"][0]["released"] = True
    state["trials"] |= {"running": 0, "released": 1}
    text = drawn(tables.status_table(state))
    assert "8 complete, 4 pruned, 0 running, 1 released" in text
    assert "ago" not in text


def test_a_status_shows_how_far_confirming_is():
    confirming = {"study": "quickstart/confirm", "finished": 23, "planned": 44}
    assert "confirming: 23 of 44 trained" in drawn(tables.status_table(status(confirming=confirming)))
    assert "confirming" not in drawn(tables.status_table(status()))


def test_a_status_says_what_is_concluded():
    assert "ensemble" not in drawn(tables.status_table(status()))
    corrected = {"value": 0.5021, "interval": [0.4611, 0.5431]}
    state = status(
        ensemble={"finished": 12, "trials": [3, 4], "value": 0.5312, "corrected": corrected},
        confirmed={"finished": 10, "reason": "the ensemble has the best mean"}, claim="The ensemble is fine.",
    )  # fmt: skip
    text = unwrapped(drawn(tables.status_table(state)))
    assert (
        "ensemble of 2 trials: 0.531 on the folds of the search, corrected for selection 0.502 (95 % interval 0.461 to "
        "0.543) confirmed: the ensemble has the best mean; of the first 10 trials The ensemble is fine."
    ) in text


# --- text for values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3725, "1 h 02 min"), (200_000, "2 days 7 h")],
)
def test_durations(seconds, expected):
    assert wording.duration(seconds) == expected


@pytest.mark.parametrize(
    ("trials_per_hour", "expected"), [(12.34, "12.3 trials/h"), (60, "60.0 trials/h"), (210, "3.5 trials/min")]
)
def test_a_pace_is_per_minute_where_there_is_more_than_one_trial_a_minute(trials_per_hour, expected):
    assert wording.pace_text(trials_per_hour) == expected


def test_baselines_are_shown_in_one_order_whatever_was_measured():
    baselines = {"chance": 0.2, "linear": 0.6, "retrieval": 0.7, "mean_prevalence": 0.1}
    assert wording.baselines_text("auroc", baselines) == "retrieval 0.7000, linear 0.6000, chance 0.2000"
    assert wording.baselines_text("auroc", None) == "not measured yet"


def test_an_older_database_has_the_prevalence_as_a_baseline_of_average_precision():
    baselines = {"linear": 0.6, "linear_folds": [0.5, 0.7], "mean_prevalence": 0.2}
    assert wording.baselines_text("average_precision", baselines) == "linear 0.6000, prevalence (mean) 0.2000"
    assert wording.baselines_text("auroc", baselines) == "linear 0.6000"
    older = best()
    older["cv"]["floors"] = baselines
    text = unwrapped(drawn(tables.result_table(older, "best.json")))
    assert "linear baseline 0.600" in text
    assert "prevalence (mean) 0.200" in text


def test_user_data_are_shown_as_they_are(capsys):
    """Names, paths and messages may look like markup or emoji; the console parses none of it."""
    text = "mood [/i] [red]low[/red] :warning: \\[x]"
    console = make_console()
    table = tables.plain_table(text)
    table.add_column(text, no_wrap=True)
    table.add_row(text)
    for printed in (text, table):
        show(console, printed)
    assert capsys.readouterr().out.count(text) == 4


def test_consoles_are_made_in_one_place():
    root = Path(tables.__file__).parents[1]
    made = [file for file in root.rglob("*.py") if re.search(r"(?<!make_)\bConsole\(", file.read_text())]
    assert [file.name for file in made] == ["console.py"]
    assert not [file for file in root.rglob("*.py") if re.search(r"from_markup|\brich import print", file.read_text())]
