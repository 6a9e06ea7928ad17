"""The first screen of a report, as plain values: what was found, how sure that is, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from markupsafe import Markup

from ..database.record import BASELINE_NAMES, candidate_text
from ..results import winner
from ..results.tables import candidates, honest
from ..results.tracked import winners_value
from ..results.wording import (
    better_by,
    capitalized,
    confirming_text,
    count_text,
    duration,
    interval_text,
    pace_text,
    short,
    shown_baselines,
)
from ..study.config import ConfirmConfig
from .charts import Axis, axis_of, strip
from .snapshot import Snapshot


class Phase(Enum):
    """How far a study is."""

    EMPTY = "no trial is complete yet"
    RUNNING = "not finished"
    CONFIRMING = "finished, being confirmed"
    UNCONFIRMED = "finished, not confirmed"
    EQUAL = "not clearly better than every baseline"
    BETTER = "better than every baseline"


@dataclass(frozen=True)
class Line:
    """A gain, or a value, with its picture."""

    name: str
    text: str
    picture: Markup
    is_result: bool = False


@dataclass(frozen=True)
class Step:
    """What to do next: a sentence, and commands."""

    sentence: str
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Headline:
    """The first screen."""

    phase: Phase
    searched: tuple[tuple[str, str], ...]
    """What was searched: name and fact."""
    value: str
    interval: str
    """Empty if there is none."""
    of: str
    """What has the value."""
    where: str
    """On what it was measured."""
    claim: str
    lines_title: str
    lines: tuple[Line, ...]
    lines_note: str
    step: Step


def headline(snapshot: Snapshot) -> Headline:
    """The first screen of a study's report; every value and gain in it is one of `best.json`."""
    phase = phase_of(snapshot)
    value, interval, of, where = _value(snapshot)
    title, lines, note = _gains(snapshot) or _baselines(snapshot)
    claim = "Nothing can be claimed yet: no trial is complete." if snapshot.best is None else snapshot.best["claim"]
    return Headline(
        phase=phase,
        searched=tuple(_searched(snapshot)),
        value=value,
        interval=interval,
        of=of,
        where=where,
        claim=claim,
        lines_title=title,
        lines=lines,
        lines_note=note,
        step=_step(snapshot, phase),
    )


def phase_of(snapshot: Snapshot) -> Phase:
    """How far the study is."""
    trials, confirmed = snapshot.status["trials"], snapshot.confirmed
    if snapshot.best is None:
        return Phase.EMPTY
    if trials["finished"] < (trials["requested"] or 0):
        return Phase.RUNNING
    if snapshot.status["confirming"] is not None:
        return Phase.CONFIRMING
    if confirmed is None or confirmed["finished"] < trials["finished"]:
        return Phase.UNCONFIRMED
    better = winner.beats_baselines(snapshot.status["metric"], snapshot.best["ensemble"], confirmed)
    return Phase.BETTER if better else Phase.EQUAL


# --- what was searched ------------------------------------------------------------------------------------------------


def _searched(snapshot: Snapshot) -> list[tuple[str, str]]:
    stored, trials = snapshot.started_with, snapshot.status["trials"]
    source = stored["data"]
    data = [str(source.get("path") or source["source"])]
    if snapshot.post_counts is not None and snapshot.best is not None:
        posts, held_out = snapshot.post_counts
        criteria = len(snapshot.best["cv"]["per_criterion"])
        data.append(f"{count_text(posts, 'post')} × {count_text(criteria, 'criterion', 'criteria')}")
        data += [f"{held_out:,} more held out, which the search never sees"] if held_out else []
    names = [str(model["name"]) for model in stored["model"]]
    parameters = len({name for trial in snapshot.trials for name in trial.params})
    requested, finished = trials["requested"] or 0, trials["finished"]
    states = [f"{trials['complete']:,} complete", f"{trials['pruned']:,} pruned"]
    if failed := trials["infeasible"] + trials["failed"]:
        states.append(f"{failed:,} failed")
    count = count_text(max(requested, finished), "trial")
    count = f"{finished:,} of {count}" if finished < requested else count
    chance = (snapshot.status["baselines"] or {}).get("chance")
    return [
        ("Data", ", ".join(data)),
        *([("Chance", f"{short(chance)}, what guessing scores")] if chance is not None else []),
        ("Searched", f"{', '.join(names)}; {count_text(parameters, 'parameter')}"),
        ("Trials", f"{count} ({', '.join(states)}), on {snapshot.folds} folds"),
    ]


# --- the value --------------------------------------------------------------------------------------------------------


def _value(snapshot: Snapshot) -> tuple[str, str, str, str]:
    """The value to believe, its interval, what has it, and where it was measured."""
    best = snapshot.best
    if best is None:
        return "–", "", "no value yet", ""
    found, name = winners_value(best), winner.winner_key(best)
    if found is None or name is None:
        where = "on the folds that chose it: too good, neither corrected for that nor confirmed"
        return short(best["value"]), "", f"of trial {best['trial']}, the best one so far", where
    interval = "" if found["interval"] is None else interval_text(found["interval"])
    return short(found["value"]), interval, f"of {_named(best, name)}", _where(snapshot, best)


def _named(best: Mapping[str, Any], name: str) -> str:
    if name == "ensemble" and best["ensemble"] is not None:
        return f"the ensemble of {count_text(len(best['ensemble']['members']), 'trial')}"
    return candidate_text(name)


def _where(snapshot: Snapshot, best: Mapping[str, Any]) -> str:
    posts = "" if snapshot.post_counts is None else f" of {count_text(snapshot.post_counts[0], 'post')}"
    confirmed = best["confirmed"]
    if confirmed is None:
        return f"on the search's own folds{posts}, corrected for selection; not confirmed"
    finished = snapshot.status["trials"]["finished"]
    of = "" if confirmed["finished"] == finished else f", after the first {count_text(confirmed['finished'], 'trial')}"
    splits = count_text(confirmed["splits"], "fresh split")
    return f"confirmed on {splits}{posts}{of}: new folds of the same posts"


# --- gains ------------------------------------------------------------------------------------------------------------


def _gains(snapshot: Snapshot) -> tuple[str, tuple[Line, ...], str] | None:
    """The gains over the baselines and the default, with title and note; None if none is known."""
    best = snapshot.best
    if best is None:
        return None
    gains = [(gain["name"], *better_by(best["metric"], gain)) for gain in winner.gains(best)]
    if not gains:
        return None
    axis = axis_of([0.0, *(end for _, value, interval in gains for end in (value, *(interval or ())))])
    lines = tuple(
        Line(
            f"over {BASELINE_NAMES.get(name, f'the {name}s')}",
            estimate,
            strip(axis, estimate, interval=interval, value=value, zero=True, zero_label=row == 0),
        )
        for row, (name, value, interval) in enumerate(gains)
        for estimate in [f"{signed(value)} ({interval_text(interval)})"]
    )
    whose = "" if best["confirmed"] else " of the ensemble, corrected for selection"
    note = "Dot: the gain; line: its 95 % interval. A gain is clear if the whole line is right of 0."
    return f"Gain in {snapshot.metric}{whose}", lines, note


def signed(value: float) -> str:
    """`+0.030`, as a gain is printed."""
    return f"{'+' if value > 0 else ''}{short(value)}"


def _plain(name: str) -> str:
    return candidate_text(name).removeprefix("the ")


def _baselines(snapshot: Snapshot) -> tuple[str, tuple[Line, ...], str]:
    """With title and note, what has to be beaten, beside the best trial so far."""
    metric = snapshot.status["metric"]
    baselines = shown_baselines(metric, snapshot.status["baselines"] or {})
    found = [(_plain(key), value, False) for key, _, value in baselines if key in BASELINE_NAMES]
    if snapshot.best is not None and snapshot.best["value"] is not None:
        found.insert(0, (f"trial {snapshot.best['trial']}, the best one", snapshot.best["value"], True))
    axis = axis_of([value for _, value, _ in found])
    lines = tuple(Line(name, short(value), strip(axis, short(value), value=value), own) for name, value, own in found)
    note = "All on the same folds of the search. The best of many trials is also the luckiest: expect less."
    note = note if lines else "No baseline is measured yet."
    return f"{capitalized(snapshot.metric)} beside the baselines", lines, note


def compared(snapshot: Snapshot) -> tuple[list[dict[str, Any]], Axis]:
    """Every candidate: its value on the folds of the search and its honest one, with a picture, best.json's numbers."""
    best = snapshot.best
    if best is None:
        return [], Axis(0.0, 1.0)
    rows = [(name, label, value, honest(best, name)) for name, label, value in candidates(best)]
    ends = [value for _, _, value, found in rows for value in _ends(value, found)]
    axis, result = axis_of(ends), winner.winner_key(best)
    return [_compared(row, axis, row[0] == result) for row in rows], axis


def _ends(value: float | None, found: Mapping[str, Any] | None) -> list[float]:
    shown = [] if value is None else [value]
    return shown if found is None else [*shown, found["value"], *(found["interval"] or ())]


def _compared(
    row: tuple[str, str, float | None, Mapping[str, Any] | None],
    axis: Axis,
    is_result: bool,
) -> dict[str, Any]:
    name, label, value, found = row
    interval = None if found is None or name == "chance" else found["interval"]  # chance is not estimated
    chosen = value is not None and (name == "ensemble" or name.isdecimal())
    text = "" if found is None else short(found["value"])
    shown = value if found is None else found["value"]
    return {
        "name": capitalized(label),
        "search": f"{short(value)}{'*' if chosen else ''}",
        "true": text,
        "interval": "" if interval is None else interval_text(interval),
        "picture": strip(axis, f"{label}: {text or short(value)}", interval=interval, value=shown),
        "is_result": is_result,
    }


# --- what to do next --------------------------------------------------------------------------------------------------


def _step(snapshot: Snapshot, phase: Phase) -> Step:
    file, status = shlex.quote(str(snapshot.definition.path)), snapshot.status
    if phase in {Phase.EMPTY, Phase.RUNNING}:
        return _wait(snapshot, f"hpo run {file}")
    if phase == Phase.CONFIRMING:
        confirming = status["confirming"] or {"finished": 0, "planned": 0}
        told = confirming_text(confirming["finished"], confirming["planned"]).removeprefix("confirming: ")
        if snapshot.is_worked_on:
            return Step(f"Wait until the result is confirmed on fresh splits, {told}. Then make this page again.")
        return Step(f"Confirming was interrupted, {told}. Resume it:", (f"hpo confirm {file}",))
    if phase == Phase.UNCONFIRMED:
        leaders = "" if snapshot.definition.confirm.leaders else f" --leaders {ConfirmConfig().leaders}"
        sentence = "Confirm the result on fresh splits before you rely on its number: these folds chose it."
        return Step(sentence, (f"hpo confirm {file}{leaders}",))
    return _use(snapshot, phase)


def _wait(snapshot: Snapshot, resume: str) -> Step:
    """What to do while trials are missing."""
    trials, pace = snapshot.status["trials"], snapshot.status["pace"]
    told = f"{trials['finished']:,} of {count_text(trials['requested'] or 0, 'trial')} finished"
    if not snapshot.is_worked_on:
        return Step(f"{told}, and no worker is running. Resume the search:", (resume,))
    speed = ""
    if pace["trials_per_hour"] is not None and pace["seconds_left"] is not None:
        speed = f", {pace_text(pace['trials_per_hour'])}, about {duration(pace['seconds_left'])} left"
    return Step(f"Wait: {told}{speed}. The result is confirmed afterwards; then make this page again.")


def _use(snapshot: Snapshot, phase: Phase) -> Step:
    """What to do with a confirmed result."""
    best = snapshot.best
    assert best is not None, "something is confirmed"
    name = winner.winner_key(best)
    result = shlex.quote(f"{best['study']}.best.json")
    fit = f"hpo fit {result} -o model"
    if phase == Phase.BETTER and name is not None:
        held_out = snapshot.post_counts is not None and snapshot.post_counts[1] > 0
        evaluate = "hpo evaluate model" if held_out else "hpo evaluate model POSTS"
        on = "once on the posts that were held out" if held_out else "on other labelled posts"
        return Step(f"Train {candidate_text(name)} on all posts of the search, and measure it {on}:", (fit, evaluate))
    gain = best["confirmed"]["over_baseline"] if best["confirmed"] else None
    width = "" if gain is None else f" ({interval_text(better_by(best['metric'], gain)[1])})"
    over = "the baselines" if gain is None else candidate_text(gain["name"])
    sentence = (
        f"Do not report a gain over {over}. More labelled posts would narrow the gain's interval{width}; "
        "another model or encoder may raise the gain."
    )
    if name is None or name in {"chance", "zero_shot"}:  # nothing that could be fitted
        return Step(sentence)
    return Step(f"{sentence} If you need a model now, this trains {candidate_text(name)}:", (fit,))
