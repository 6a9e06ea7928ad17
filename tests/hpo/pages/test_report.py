"""The page of `hpo report`: its numbers are those of best.json, in every phase of a study, and it looks right."""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, installed
from colours import contrast, palettes
from in_process import Ended, hpo
from invented import invent_study
from loop_tools import tiny
from tiny import task

from sparse_evidence.core import metrics
from sparse_evidence.core.corpus.sources import SOURCES
from sparse_evidence.hpo.database import record
from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.database.record import CURVES
from sparse_evidence.hpo.database.studies import load_study
from sparse_evidence.hpo.pages import ranking
from sparse_evidence.hpo.pages.charts import Axis, Plot, axis_of, shortened
from sparse_evidence.hpo.pages.figures import thinned
from sparse_evidence.hpo.pages.report import report_page
from sparse_evidence.hpo.results import tables
from sparse_evidence.hpo.results.best import BestResult, best_result
from sparse_evidence.hpo.results.wording import better_by, interval_text, short
from sparse_evidence.hpo.running import conclusions, confirming, objective
from sparse_evidence.hpo.running.artifacts import Checkpoints, open_store
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.joining import join_study, measure_baselines
from sparse_evidence.hpo.running.task import StudyTask
from sparse_evidence.hpo.study.config import ConfirmConfig
from sparse_evidence.hpo.study.definition import StudyDefinition, load

TRIALS, SPLITS = 8, 2
HOSTILE = ("<script>document.title = 'owned'</script>", "[red]low[/red] & 'x' \"y\" {{ 7 * 7 }}")


def shown(page: str) -> str:
    """What a reader sees of a page, without its pictures."""
    body = re.sub(r"<(style|svg|pre class=\"definition\").*?</(style|svg|pre)>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def first_screen(page: str) -> str:
    """What stands before the details."""
    return shown(page.partition('<section id="result" aria-labelledby="title">')[2].partition("<section ")[0])


# --- a study in all its phases ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phases:
    """A tiny study: its page and its result at every phase, and how to open it again."""

    data: StudyTask
    url: str
    pages: dict[str, str]
    best: dict[str, BestResult]

    def report(self, **changes: Any) -> str:
        """The page at the end, of another study file."""
        study = load_study(open_storage(self.url), "tiny")
        try:
            return report_page(study, replace(self.data.definition, **changes))
        finally:
            engine_of(study).dispose()


@pytest.fixture(scope="module")
def phases(database_of_module: str, tmp_path_factory: pytest.TempPathFactory) -> Phases:
    """Search a study to its end and confirm it, and make a page now and then."""
    folder = tmp_path_factory.mktemp("study")
    data = task(folder, epochs=3, patience=2)
    study = join_study(data.definition, data, database_of_module, trials=TRIALS)
    found = Phases(data, database_of_module, {}, {})
    checkpoints = Checkpoints(open_store(str(folder / "artifacts")), every_seconds=5)

    def look(phase: str) -> None:
        found.pages[phase] = report_page(study, data.definition)
        if phase != "empty":
            found.best[phase] = best_result(study, data.definition.path)

    def work(on: Any, count: int | None = None, budget: int | None = TRIALS) -> None:
        claims = Claims(engine_of(on), on, budget=budget, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)
        while (count is None or count > 0) and isinstance(claim := claims.claim(), Claim):
            count = None if count is None else count - 1
            with claim:
                objective.run(claim, data, checkpoints, device="cpu", stop=lambda: False)

    look("empty")
    measure_baselines(study, data)
    work(study, 5)
    claims = Claims(engine_of(study), study, budget=TRIALS, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)
    with claims.claim() as claim:  # type: ignore[union-attr]
        look("running")
        claim.release()
    look("interrupted")
    work(study)
    assert conclusions.conclude_search(study, data)
    look("unconfirmed")
    plan = confirming.make_plan(study, ConfirmConfig(2, SPLITS), record.ensemble(study) or {})
    confirm = confirming.open_confirming(study, plan)
    work(confirm.child, 1, None)
    look("confirming")
    work(confirm.child, None, None)
    while confirm.advance():
        work(confirm.child, None, None)
    assert conclusions.conclude_confirming(confirm, data)
    look("confirmed")
    engine_of(study).dispose()
    return found


def test_the_first_screen_says_what_was_found_and_how_sure_it_is(phases):
    text, best = first_screen(phases.pages["confirmed"]), phases.best["confirmed"]
    name = str(best["trial"]) if best["winner"] == "trial" else best["winner"]
    score = best["confirmed"]["scores"][name]
    assert best["claim"] in text.replace("\u00a0", " ")
    assert f"{short(score['mean'])} 95 % interval {interval_text(score['interval'])}" in text.replace("\u00a0", " ")
    assert f"confirmed on {SPLITS} fresh splits of 60 posts" in text
    assert "synthetic, 60 posts × 2 criteria" in text
    assert f"{TRIALS} trials ({best['trials']['complete']} complete, {best['trials']['pruned']} pruned)" in text
    confirmed = best["confirmed"]
    for gain in (confirmed["over_baseline"], confirmed["over_default"], *confirmed["over_others"]):
        if gain is not None:
            value, interval = better_by(best["metric"], gain)
            assert f"{short(value)} ({interval_text(interval)})" in text


def test_every_number_is_one_of_the_result(phases):
    page, best = phases.pages["confirmed"], phases.best["confirmed"]
    text = shown(page).replace("\u00a0", " ")
    for name, label, value in tables.candidates(best):
        found = tables.honest(best, name)
        cells = [label[0].upper() + label[1:], short(value) + ("*" if name == "ensemble" or name.isdecimal() else "")]
        cells += [short(found["value"]), "–" if name == "chance" else interval_text(found["interval"])]
        assert " ".join(cells) in text, cells
    for name, scores in best["cv"]["per_criterion"].items():
        measured = (scores[key] for key in ("average_precision", "f1", "precision", "sensitivity"))
        row = f"{name} {scores['positives']:.0f} of 60 {100 * scores['prevalence']:.1f} %"
        assert f"{row} {' '.join(map(short, measured))}" in text
    for key in ("data_sha256", "folds_sha256", "definition_sha256"):
        assert best["provenance"][key] in text
    for number in best["ensemble"]["folds"]:
        assert short(number) in page


@pytest.mark.parametrize(
    ("phase", "state", "step"),
    [
        ("empty", "no trial is complete yet", "0 of 8 trials finished, and no worker is running. Resume the search: "),
        ("running", "not finished", "Wait: 5 of 8 trials finished, "),
        ("interrupted", "not finished", "5 of 8 trials finished, and no worker is running. Resume the search: "),
        ("unconfirmed", "finished, not confirmed", "Confirm the result on fresh splits before you rely on its number"),
        ("confirming", "finished, being confirmed", "Confirming was interrupted, 1 of "),
        ("confirmed", "better than every baseline", ""),
    ],
)
def test_every_phase_says_what_to_do_next(phases, phase, state, step):
    text, path = first_screen(phases.pages[phase]), phases.data.definition.path
    assert state in text
    assert f"What to do next {step}" in text
    commands = {
        "empty": f"hpo run {path}",
        "running": "",
        "interrupted": f"hpo run {path}",
        "unconfirmed": f"hpo confirm {path}",
        "confirming": f"hpo confirm {path}",
        "confirmed": "hpo fit tiny.best.json -o model",
    }
    assert text.rpartition("What to do next")[2].count("hpo ") >= bool(commands[phase])
    assert commands[phase] in text


def test_a_result_that_beats_the_baselines_is_to_be_fitted_and_one_that_does_not_is_not_to_be_reported(phases):
    study = load_study(open_storage(phases.url), "tiny")
    stored = record.confirmed(study)
    chosen = record.ensemble(study)
    steps = {
        0.1: ("better than every baseline", "Train "),
        -0.1: ("not clearly better than every", "Do not report a gain"),
    }
    try:
        for low, (state, step) in steps.items():
            gain = {"name": "linear", "value": 0.2, "interval": [low, 0.3]}
            study.set_user_attr(record.CONFIRMED, {**stored, "winner": "ensemble", "over_baseline": gain})
            study.set_user_attr(record.ENSEMBLE, {**chosen, "over_baseline": gain})
            text = first_screen(report_page(study, phases.data.definition))
            assert text.startswith(state)
            assert f"What to do next {step}" in text
        study.set_user_attr(record.CONFIRMED, {**stored, "winner": "zero_shot"})
        assert "hpo fit" not in first_screen(report_page(study, phases.data.definition)), "it cannot be fitted"
    finally:
        study.set_user_attr(record.CONFIRMED, stored)
        study.set_user_attr(record.ENSEMBLE, chosen)
        engine_of(study).dispose()


def test_before_a_trial_is_complete_the_page_shows_what_there_is(phases):
    page = phases.pages["empty"]
    text = shown(page)
    assert "Nothing can be claimed yet: no trial is complete." in text
    assert "No trial has a value yet." in text
    assert "needs at least 10 complete trials" in text
    assert 'id="compared"' not in page
    assert "by criterion" not in text.lower()


def test_a_running_study_shows_its_worker_and_its_best_as_flattering(phases):
    text, best = shown(phases.pages["running"]), phases.best["running"]
    assert re.search(r"Workers now .* 5 \S+, slot 0 stage 1, epoch 0 ", text)
    assert f"{short(best['value'])} of trial {best['trial']}, the best one so far, on the folds that chose it" in text
    assert "beside the baselines" in first_screen(phases.pages["running"])


def test_pruned_trials_are_marked_as_of_fewer_folds(phases):
    study = load_study(open_storage(phases.url), "tiny")
    trials = study.get_trials()
    engine_of(study).dispose()
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert pruned, "the study prunes"
    history = re.search(r'<figure id="history".*?</figure>', phases.pages["confirmed"], re.DOTALL)[0]
    for trial in pruned:
        value, folds = short(trial.intermediate_values[trial.last_step]), trial.last_step
        told = f"trial {trial.number}: {value} on {folds} of 3 folds, pruned"
        assert re.search(rf'<circle class="hollow"[^>]*><title>{re.escape(told)}</title>', history), told
    assert history.count('class="hollow"') == len(pruned) + 1, "one is in the legend"
    stage = sum(trial.last_step == 1 for trial in pruned)
    assert f"1 fold {TRIALS} {stage} {TRIALS - stage} " in shown(phases.pages["confirmed"])


def test_the_page_holds_no_post_and_runs_no_script(phases):
    for page in phases.pages.values():
        assert not any(
            sentence in page for post in phases.data.corpus.posts for sentence in post.split(". ") if len(sentence) > 20
        )
        assert "<script" not in page
        assert "script-src &#39;none&#39;" in page
        assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
        assert 'style="' not in page, "the page's own policy forbids it"


# --- precision and recall ---------------------------------------------------------------------------------------------


def test_precision_and_recall_are_left_out_without_the_data_or_with_other_data(phases):
    assert "Precision and recall by criterion" in shown(phases.pages["confirmed"])
    assert "On 2 fresh splits, which chose nothing." in shown(phases.pages["confirmed"])
    assert "the baselines' predictions are stored when the result is confirmed" in shown(phases.pages["unconfirmed"])
    missing = shown(phases.report(data=SOURCES["pairs"](path="missing.csv")))
    assert "Left out. It needs the labels, and the study's data cannot be read where this page was made." in missing
    other = shown(phases.report(data=replace(phases.data.definition.data, seed=7)))
    assert "Left out. It needs the labels, and the data where this page was made are not those of the study." in other
    assert (
        first_screen(phases.report(data=SOURCES["pairs"](path="missing.csv"))).split("UTC")[1]
        == first_screen(phases.pages["confirmed"]).split("UTC")[1]
    )


def test_the_area_under_a_curve_is_the_average_precision():
    generator = np.random.default_rng(0)
    labels = (generator.uniform(size=4000) < 0.2).astype(np.int8)
    scores = generator.normal(size=4000) + labels
    precision = ranking.precision_at(labels, scores)
    assert precision.mean() == pytest.approx(metrics.average_precision(labels, scores), abs=5e-3)
    assert precision[-1] <= precision[0]
    scores[:100] = np.nan
    labels[100:200] = -1
    known = slice(200, None)
    expected = ranking.precision_at(labels[known], scores[known])
    assert np.array_equal(ranking.precision_at(labels, scores), expected), "posts without prediction or label"
    tied = ranking.precision_at(np.array([1, 0, 0, 1], np.int8), np.zeros(4))
    assert set(tied.tolist()) == {0.5}, "equal scores are one cut"
    assert np.isnan(ranking.precision_at(np.zeros(4, np.int8), np.arange(4.0))).all()


# --- many trials, odd names -------------------------------------------------------------------------------------------


@pytest.fixture
def invented(database: str, tmp_path: Path) -> Iterator[Callable[..., tuple[Any, StudyDefinition]]]:
    """Call it for a study of made-up trials, opened as the verb opens it."""
    opened = []

    def make(trials: int, **changes: Any) -> tuple[Any, StudyDefinition]:
        definition = load(tiny(tmp_path, pruner="same_folds"), environ={})
        engine_of(invent_study(database, definition, trials, **changes)).dispose()
        opened.append(load_study(open_storage(database, without=(CURVES,)), definition.name))
        return opened[-1], definition

    yield make
    for study in opened:
        engine_of(study).dispose()


@pytest.mark.slow
def test_a_page_of_5000_trials_is_small_and_says_what_is_left_out(invented):
    study, definition = invented(5000)
    began = time.process_time()
    page = report_page(study, definition)
    print(f"5,000 trials: {len(page):,} bytes, {time.process_time() - began:.1f} s of this process")
    assert len(page.encode()) < 5_000_000
    text = shown(page)
    assert "Of 5,000 trials, 1,500 are drawn: the best ones, and an even choice of the others." in text
    assert "3,000 trials have it" in text
    assert "1,500 trials have it" in text, "a conditional parameter"
    best = best_result(study)
    assert f"{short(best['value'])} of trial {best['trial']}, the best one so far" in text
    assert f"<title>trial {best['trial']}: {short(best['value'])}</title>" in page, "the best trial is drawn"


def test_names_and_values_that_look_like_markup_are_text(invented):
    study, definition = invented(30, criteria=HOSTILE, kinds=("plain", HOSTILE[0]))
    page = report_page(study, definition)
    assert "<script" not in page
    for name in HOSTILE:
        assert name in shown(page)
    assert '="alert' not in page
    assert page.count("{{ 7 * 7 }}") >= 1


def test_a_lower_value_is_better_for_some_metrics(database, tmp_path):
    data = task(tmp_path, metric="brier")
    study = join_study(data.definition, data, database, trials=4)
    claims = Claims(engine_of(study), study, budget=4, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)
    checkpoints = Checkpoints(open_store(str(tmp_path / "artifacts")), every_seconds=5)
    while isinstance(claim := claims.claim(), Claim):
        with claim:
            objective.run(claim, data, checkpoints, device="cpu", stop=lambda: False)
    assert conclusions.conclude_search(study, data)
    best = best_result(study)
    text = first_screen(report_page(study, data.definition)).replace("\u00a0", " ")
    assert best["claim"] in text
    assert "Gain in Brier score of the ensemble, corrected for selection" in text
    value, interval = better_by("brier", best["ensemble"]["over_baseline"])
    assert f"{short(value)} ({interval_text(interval)})" in text
    engine_of(study).dispose()


# --- charts -----------------------------------------------------------------------------------------------------------


def test_axes_hold_their_values_and_have_round_ticks():
    axis = axis_of([0.41, 0.59, float("nan"), float("inf")])
    assert axis.low < 0.41 < 0.59 < axis.high
    assert axis.ticks() == [0.45, 0.5, 0.55]
    assert Axis(-1.0, 52.0).ticks() == [0.0, 20.0, 40.0]
    assert Axis(1e-4, 1e-1, log=True).ticks() == [1e-4, 1e-3, 1e-2, 1e-1]
    assert Axis(1e-4, 1e-2, log=True).share(1e-3) == pytest.approx(0.5)
    assert Axis(1e-4, 1e-2, log=True).share(0.0) == 0.0
    assert (Axis(0.0, 1.0).share(7.0), Axis(0.0, 1.0).share(-7.0), Axis(2.0, 2.0).share(2.0)) == (1.0, 0.0, 0.5)
    for single in ([], [0.0], [0.7]):
        axis = axis_of(single)
        assert axis.low < axis.high
        assert axis.ticks()


def test_thinning_keeps_what_must_be_kept_and_the_order():
    kept = thinned(range(1000), 50, lambda number: number in {3, 500, 999})
    assert kept == sorted(kept)
    assert {3, 500, 999} <= set(kept)
    assert 40 <= len(kept) <= 50
    assert thinned(range(5), 50) == [0, 1, 2, 3, 4]
    assert thinned(range(1000), 2, lambda number: number < 10) == list(range(10))


def test_titles_are_escaped_and_long_labels_cut():
    plot = Plot(Axis(0.0, 1.0), Axis(0.0, 1.0), "<b>")
    plot.dot(0.5, 0.5, "dot", "</title><script>")
    plot.line([(0.0, 0.0), (1.0, 1.0)], "best", "<i>")
    svg = str(plot.svg())
    assert "<b>" not in svg
    assert "<script>" not in svg
    assert "<i>" not in svg
    assert shortened("all-MiniLM-L6-v2", 9) == "all-…6-v2"
    assert (shortened("abc", 3), shortened("abcd", 3)) == ("abc", "a…d")


# --- colours ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_lines_and_dots_have_enough_contrast(dark):
    colours = palettes("report")[dark]
    for part in ("series-1", "series-2", "series-3", "series-4", "series-5", "control", "warn"):
        assert contrast(colours[part], colours["card"]) >= 3, part
    for state in ("series-2", "series-4", "accent"):
        assert contrast(colours[state], colours["page"]) >= 4.5, state


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_the_verb_writes_the_page(phases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Ended:
        return hpo("report", phases.data.definition.path, "--storage", phases.url, *arguments)

    assert call() == (0, "written to tiny.report.html\n", "")
    page = tmp_path / "tiny.report.html"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert first_screen(page.read_text()).split("UTC")[1] == first_screen(phases.pages["confirmed"]).split("UTC")[1]
    assert call()[0] == 0, "a report is replaced"
    code, out, err = call("-o", "-")
    assert (code, err) == (0, "written to standard output\n")
    assert out.startswith("<!doctype html>")
    (tmp_path / "thesis.html").write_text("precious")
    code, out, err = call("-o", "thesis.html")
    assert (code, out) == (2, "")
    assert "thesis.html is no page of hpo report, and would be overwritten" in err
    assert (tmp_path / "thesis.html").read_text() == "precious"
    assert call("-o", "thesis.html", "--force")[0] == 0
    other = tmp_path / "other.toml"
    other.write_text(phases.data.definition.path.read_text().replace('"tiny"', '"other"'))
    code, _, err = hpo("report", other, "--storage", phases.url)
    assert code == 2
    assert "other" in err
    assert not (tmp_path / "other.report.html").exists()


# --- a real browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = installed()
    if executable is None:
        pytest.skip("no browser is installed")
    with Browser(executable, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


BEYOND = """
[...document.querySelectorAll("main *")].filter((element) => !element.closest(".scroll, .stretched")
  && element.getBoundingClientRect().right > innerWidth + 1).map((element) => element.outerHTML.slice(0, 80))
"""
CLIPPED = """
[...document.querySelectorAll("main svg text")].filter((text) => text.getBoundingClientRect().left < 0
  || text.getBoundingClientRect().height < 9).map((text) => text.textContent)
"""


def bottom_of(browser: Browser, selector: str) -> float:
    return float(browser.run(f"document.querySelector({selector!r}).getBoundingClientRect().bottom"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_looks_right_and_asks_for_nothing(browser, phases, pictures, width, dark):
    page, height = pictures / "confirmed.html", 900
    page.write_text(phases.pages["confirmed"])
    browser.console.clear()
    browser.requests.clear()
    browser.open(page.as_uri(), width=width, height=height, dark=dark, mobile=width < 500)
    picture = pictures / f"report-{width}-{'dark' if dark else 'light'}.png"
    browser.picture(picture)
    print(picture)
    assert browser.run("document.documentElement.scrollWidth") == width, "nothing is cut at the right"
    assert browser.run(BEYOND) == []
    assert browser.run(CLIPPED) == [], "labels are as large as on a desktop, and not cut"
    for part in (".claim", "#result .value", "#result .interval", *([".next"] if width > 1000 else [])):
        assert bottom_of(browser, part) <= height, f"{part} is on the first screen"
    assert browser.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(17, 21, 27)" if dark else "rgb(247, 246, 242)"
    )
    assert browser.console == []
    assert [request for request in browser.requests if not request.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("phase", ["empty", "running", "unconfirmed"])
def test_an_unfinished_study_looks_right_too(browser, phases, pictures, phase, width):
    page = pictures / f"{phase}.html"
    page.write_text(phases.pages[phase])
    browser.open(page.as_uri(), width=width, height=900, mobile=width < 500)
    browser.picture(pictures / f"{phase}-{width}.png")
    print(pictures / f"{phase}-{width}.png")
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run(BEYOND) == []
    assert bottom_of(browser, ".claim") < 900


def test_odd_and_long_names_break_nothing(browser, invented, pictures):
    long = "a_criterion_with_a_very_long_name_that_has_no_spaces_" * 3
    study, definition = invented(30, criteria=(*HOSTILE, long), kinds=("plain", long))
    page = pictures / "odd.html"
    page.write_text(report_page(study, definition))
    for width in (1280, 390):
        browser.open(page.as_uri(), width=width, height=900, mobile=width < 500)
        browser.picture(pictures / f"odd-{width}.png")
        assert browser.run("document.documentElement.scrollWidth") == width
        assert browser.run(BEYOND) == []
    assert browser.run("document.title") == "tiny: report of a search"
