"""Precision and recall of a study's candidates, from their stored predictions and the labels of its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparse_evidence.core import metrics, selection
from sparse_evidence.core.corpus.data import UNLABELLED
from sparse_evidence.core.errors import UserError

from ..database import predictions
from ..database.record import BASELINE_NAMES, candidate_text
from ..results.winner import winner_key
from ..results.wording import capitalized, count_text, short
from ..running.conclusions import logits_on_split
from ..running.confirming import dropped_out, load_confirming
from .charts import Axis, Plot, swatch
from .figures import Figure, Key, Panel
from .snapshot import Snapshot

Labels = npt.NDArray[np.int8]
Logits = npt.NDArray[np.float32]
"""`[posts, criteria]`, NaN for posts in no fold."""

RECALLS = np.linspace(0.01, 1.0, 100)
SHOWN_CRITERIA = 12
"""Criteria with a picture of their own."""
TOLERANCE = 2e-3
"""Stored predictions are rounded, so the scores that they give differ a little from those of the trial."""


@dataclass(frozen=True)
class Ranking:
    """The figures, or why there are none."""

    figures: tuple[Figure, ...]
    missing: str = ""


def precision_recall(snapshot: Snapshot) -> Ranking:
    """Precision against recall: the winner, the default configuration and the baselines.

    On the fresh splits if the result is confirmed: there all predictions are stored, the baselines' too, and nothing
    was chosen on them. Otherwise on the folds of the search, without baselines.

    Raises:
        PredictionsError: stored predictions are damaged.
        StorageError: the database is unreachable.
    """
    if snapshot.best is None or snapshot.logits is None:
        return Ranking((), "No predictions of the best trial are stored.")
    try:
        corpus = snapshot.definition.data.load(snapshot.definition.path.parent)
    except UserError:
        return Ranking((), "It needs the labels, and the study's data cannot be read where this page was made.")
    if not _is_ours(snapshot, corpus.labels, snapshot.logits):
        return Ranking((), "It needs the labels, and the data where this page was made are not those of the study.")
    fresh = _on_fresh_splits(snapshot)
    found = fresh or _on_search_folds(snapshot)
    names = [criterion.name for criterion in corpus.criteria]
    curves = {name: _curves(corpus.labels, logits) for name, logits in found.items()}
    return Ranking((_overall(snapshot, curves, corpus.labels, confirmed=bool(fresh)), *_by_criterion(names, curves)))


def _is_ours(snapshot: Snapshot, labels: Labels, logits: Logits) -> bool:
    """Whether the labels give the scores that the trial has: then they are those of the study, in its order."""
    assert snapshot.best is not None, "there are predictions"
    stored = snapshot.best["cv"]["per_criterion"]
    if logits.shape != labels.shape or len(stored) != labels.shape[1]:
        return False
    rows = ~np.isnan(logits).any(axis=1)
    scores = metrics.average_precision_per_criterion(labels[rows], metrics.sigmoid(logits[rows]))
    positives = (labels[rows] == 1).sum(axis=0)
    expected = [known["average_precision"] for known in stored.values()]
    return positives.tolist() == [known["positives"] for known in stored.values()] and all(
        known is None or abs(score - known) < TOLERANCE for score, known in zip(scores.tolist(), expected, strict=True)
    )


def _on_search_folds(snapshot: Snapshot) -> dict[str, list[Logits]]:
    """The ensemble, the best single trial and the default configuration."""
    best = snapshot.best
    assert best is not None, "there are predictions"
    ensemble = best["ensemble"]
    members = [] if ensemble is None else [m["trial"] for m in ensemble["members"] for _ in range(m["picks"])]
    stored = predictions.load(snapshot.study, {best["trial"], *members, 0})
    found: dict[str, list[Logits]] = {}
    if members and set(members) <= set(stored):
        found["ensemble"] = [selection.mean_logits(stored, members).astype(np.float32)]
    found[str(best["trial"])] = [stored[best["trial"]]]
    complete = best["default"] is not None and best["default"]["value"] is not None
    return found | ({"default": [stored[0]]} if complete and 0 in stored and best["trial"] != 0 else {})


def _on_fresh_splits(snapshot: Snapshot) -> dict[str, list[Logits]]:
    """The winner, the default configuration and the baselines, a set of predictions for every split; empty if none."""
    confirm, confirmed = load_confirming(snapshot.study), snapshot.confirmed
    if confirm is None or confirmed is None or snapshot.best is None:
        return {}
    trials, members = confirm.child.get_trials(deepcopy=False), confirmed["members"]
    dropped, winner = dropped_out(trials), winner_key(snapshot.best)
    found: dict[str, list[Logits]] = {}
    for split in range(confirm.plan.splits):
        stored = logits_on_split(confirm, trials, split, dropped)
        if "0" in stored:
            stored["default"] = stored["0"]
        if members and all(str(member) in stored for member in members):
            mean = selection.mean_logits({member: stored[str(member)] for member in members}, members)
            stored["ensemble"] = mean.astype(np.float32)
        wanted = dict.fromkeys(name for name in (winner, "default", *BASELINE_NAMES) if name in stored)
        for name in wanted:
            found.setdefault(str(name), []).append(stored[str(name)])
    return found


# --- curves -----------------------------------------------------------------------------------------------------------


def _curves(labels: Labels, logits: Sequence[Logits]) -> npt.NDArray[np.float64]:
    """Precision at every recall `[criteria, recalls]`, as a mean over the splits; NaN without positives."""
    columns = range(labels.shape[1])
    splits = [[precision_at(labels[:, column], part[:, column]) for column in columns] for part in logits]
    return np.asarray(np.mean(splits, axis=0))


def precision_at(labels: npt.NDArray[np.int8], scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Precision where a recall is first reached, for every one of `RECALLS`; their mean is about average precision.

    Args:
        labels: int8 `[posts]`.
        scores: `[posts]`, NaN for posts that do not count.
    """
    known = ~np.isnan(scores) & (labels != UNLABELLED)
    order = np.argsort(-scores[known], kind="stable")
    ranked, hits = scores[known][order], (labels[known][order] == 1).cumsum()
    if not len(hits) or hits[-1] == 0:
        return np.full(len(RECALLS), np.nan)
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # equal scores are one cut
    recall, precision = hits[last] / hits[-1], hits[last] / (last + 1)
    return np.asarray(precision[np.searchsorted(recall, RECALLS - 1e-9)], dtype=np.float64)


def _overall(
    snapshot: Snapshot, curves: Mapping[str, npt.NDArray[np.float64]], labels: Labels, *, confirmed: bool
) -> Figure:
    """The mean over the criteria."""
    plot = Plot(Axis(0.0, 1.0), Axis(0.0, 1.0), "precision against recall, mean over the criteria", height=300)
    chance = float(((labels == 1).sum(0) / np.maximum((labels >= 0).sum(0), 1)).mean())
    plot.level(chance, "baseline", f"random order: {short(chance)}")
    styles = _styles(curves)
    for name, curve in reversed(list(curves.items())):
        plot.line(_points(curve[~np.isnan(curve).any(axis=1)].mean(axis=0)), styles[name], candidate_text(name))
    keys = (*_keys(styles), Key(swatch("baseline", "line"), f"random order {short(chance)}"))
    if confirmed and snapshot.confirmed is not None:
        where = f"On {count_text(snapshot.confirmed['splits'], 'fresh split')}, which chose nothing."
    else:
        where = (
            "On the folds of the search, which flatter what was chosen on them; the baselines' predictions are stored "
            "when the result is confirmed."
        )
    caption = (
        "Read it from the left: of the posts that are ranked first, how many meet the criterion (precision), until a "
        "share of all that do is found (recall). A curve that is higher at the recall that you need is better."
    )
    notes = (where, "Mean over the criteria; all folds of a split are ranked together.")
    return Figure("Precision and recall", caption, (Panel(plot.svg()),), keys, "precision, by recall", notes)


def _by_criterion(names: Sequence[str], curves: Mapping[str, npt.NDArray[np.float64]]) -> list[Figure]:
    """A picture for every criterion: the winner against the best baseline; nothing for a single criterion."""
    if len(names) < 2:
        return []
    first, *others = curves
    rivals = [name for name in others if name in BASELINE_NAMES] or others
    rival = max(rivals, key=lambda name: float(np.nanmean(curves[name])), default=None)
    styles = {name: style for name, style in _styles(curves).items() if name in {first, rival}}
    panels = []
    for column, criterion in enumerate(names[:SHOWN_CRITERIA]):
        plot = Plot(Axis(0.0, 1.0), Axis(0.0, 1.0), f"precision against recall of {criterion}", height=130)
        for name in reversed(styles):
            plot.line(_points(curves[name][column]), styles[name], candidate_text(name))
        panels.append(Panel(plot.svg(), criterion))
    notes = (f"The first {SHOWN_CRITERIA} of {len(names)} criteria.",) if len(names) > SHOWN_CRITERIA else ()
    caption = "Criteria whose two curves lie together gain nothing from the search."
    keys = tuple(_keys(styles))
    return [Figure("Precision and recall by criterion", caption, tuple(panels), keys, "precision, by recall", notes)]


def _styles(curves: Mapping[str, object]) -> dict[str, str]:
    return {name: f"curve curve-{number}" for number, name in enumerate(curves)}


def _keys(styles: Mapping[str, str]) -> list[Key]:
    return [
        Key(swatch(style, "line"), capitalized(candidate_text(name).removeprefix("the ")))
        for name, style in styles.items()
    ]


def _points(precision: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """The points of a curve; none if it is undefined."""
    return [] if np.isnan(precision).any() else list(zip(RECALLS.tolist(), precision.tolist(), strict=True))
