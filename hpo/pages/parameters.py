"""What a search found out about the parameters: their importance, and the trials as lines through them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ..database import record
from ..results.wording import count_text, setting_text, short
from .charts import Axis, Lane, Strand, axis_of, bar, parallel, swatch
from .figures import Figure, Key, Panel, thinned, thinned_note
from .snapshot import Snapshot

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

LEAST_TRIALS = 10
"""Importance needs so many complete trials."""
LEAST_SHARE = 0.01
"""Of the importance: parameters with less are only named."""
TOP_TRIALS = 5
"""Importance compares the best tenth of the trials with all, but at least so many."""
SHOWN_STRANDS = 150
"""Trials in parallel coordinates; more cannot be told apart."""
BEST_STRANDS = 5
"""The best trials, which stand out there."""
LANES = 8
"""Parameters there: the most important ones."""
STYLES = ("pruned", "complete", "top", "winner")
"""Of a line in parallel coordinates; the later ones lie above."""


# --- importance -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Importance:
    """How much a parameter matters."""

    name: str
    text: str
    trials: int
    """Complete trials that have the parameter."""
    picture: Markup


@dataclass(frozen=True)
class Importances:
    """The parameters by importance; those that hardly matter are only named."""

    shown: tuple[Importance, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All parameters, the most important one first."""
        return [*(entry.name for entry in self.shown), *self.others]


def importances(snapshot: Snapshot) -> Importances:
    """Every parameter's share of the importance, the largest first; nothing with too few complete trials."""
    complete = [trial for trial in snapshot.ranked if trial.params]
    if len(complete) < LEAST_TRIALS:
        return Importances()
    found = _ped_anova(snapshot, len(complete))
    largest = max(found.values(), default=0.0) or 1.0
    shown = tuple(
        Importance(
            name,
            text := f"{100 * share:.0f} %",
            sum(name in trial.params for trial in complete),
            bar(share / largest, f"{name}: {text}"),
        )
        for name, share in found.items()
        if share >= LEAST_SHARE
    )
    return Importances(shown, tuple(name for name, share in found.items() if share < LEAST_SHARE))


def _ped_anova(snapshot: Snapshot, complete: int) -> dict[str, float]:
    """PED-ANOVA (Watanabe et al., IJCAI 2023), as Optuna has extended it to parameters that only some trials have."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    top = min(max(0.1, TOP_TRIALS / complete), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that few trials have: the page says how many
        found = get_param_importances(snapshot.study, evaluator=PedAnovaImportanceEvaluator(target_quantile=top))
    return dict(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))  # of equal ones in the same order


# --- parallel coordinates ---------------------------------------------------------------------------------------------


def parallel_coordinates(snapshot: Snapshot, ranked: Sequence[str]) -> Figure | None:
    """The trials as lines through their parameters, an axis each; None if fewer than two parameters were searched.

    Args:
        snapshot: the study.
        ranked: names of the parameters by importance; if there are none, they are taken by name.
    """
    spaces = _spaces(snapshot)
    if len(spaces) < 2 or not snapshot.ranked:
        return None
    order = [name for name in ranked if name in spaces] or sorted(spaces)
    names = sorted(order[:LANES], key=lambda name: "." in name)  # which model, which loss: before their settings
    best = record.best_first(snapshot.study, snapshot.trials)[:BEST_STRANDS]
    styles = {trial.number: "top" for trial in best} | {snapshot.ranked[0].number: "winner"}
    known = [trial for trial in snapshot.trials if trial.params and trial.state.name in {"COMPLETE", "PRUNED"}]
    shown = thinned(known, SHOWN_STRANDS, lambda trial: trial.number in styles)
    up = axis_of(trial.value for trial in snapshot.ranked if trial.value is not None)
    by_style: dict[str, list[Strand]] = {style: [] for style in STYLES}
    for trial in shown:
        value = trial.value if record.cv(trial) is not None else None
        style = styles.get(trial.number, "pruned" if value is None else "complete")
        start = None if value is None else up.share(value)
        by_style[style].append(_strand(trial, start, names, spaces, f"strand-{style}"))
    lanes = [Lane(f"{snapshot.metric} of complete trials", [(0.0, short(up.low)), (1.0, short(up.high))])]
    lanes += [Lane(name, _labels(spaces[name]), any(name not in trial.params for trial in shown)) for name in names]
    strands = [strand for style in STYLES for strand in by_style[style]]
    notes = thinned_note(len(shown), len(known), "the best ones")
    if len(names) < len(spaces):
        notes += (f"These are the {len(names)} most important of {len(spaces)} parameters.",)
    caption = (
        "Where the lines of the best trials meet, that setting may matter; where they spread over the axis, it does "
        "not. A line through a ring at the left belongs to a trial without that parameter."
    )
    panel = Panel(parallel(lanes, strands, "parameters of the trials"))
    return Figure("Trials and their parameters", caption, (panel,), _keys(snapshot, len(best)), notes=notes)


def _keys(snapshot: Snapshot, best: int) -> tuple[Key, ...]:
    texts = {
        "winner": f"trial {snapshot.ranked[0].number}, the exported single trial",
        "top": f"the best {count_text(best, 'complete trial')}",
        "complete": "complete",
        "pruned": "pruned",
    }
    return tuple(Key(swatch(f"strand-{style}", "line"), text) for style, text in texts.items())


def _spaces(snapshot: Snapshot) -> dict[str, BaseDistribution]:
    """Every parameter that may have more than one value, and what it may be."""
    found: dict[str, BaseDistribution] = {}
    for trial in snapshot.trials:
        found = {**trial.distributions, **found}
    return {name: space for name, space in found.items() if not space.single()}


def _strand(
    trial: FrozenTrial,
    start: float | None,
    names: Sequence[str],
    spaces: Mapping[str, BaseDistribution],
    style: str,
) -> Strand:
    """The line of a trial; that of a pruned one has no value to start from."""
    shares = [_share(spaces[name], trial.params[name]) if name in trial.params else None for name in names]
    settings = ", ".join(f"{name} {setting_text(trial.params[name])}" for name in names if name in trial.params)
    title = f"trial {trial.number} ({'pruned' if start is None else short(trial.value)}): {settings}"
    return Strand([start, *shares], style, title, first=1 if start is None else 0)


def _share(space: BaseDistribution, value: Any) -> float | None:  # noqa: ANN401 (what Optuna stores)
    """Where a value lies on the axis of its parameter; None if it cannot be on it."""
    if isinstance(space, CategoricalDistribution):
        return space.choices.index(value) / (len(space.choices) - 1) if value in space.choices else None
    return _axis(space).share(value)


def _axis(space: BaseDistribution) -> Axis:
    assert isinstance(space, (FloatDistribution, IntDistribution)), "Optuna has no other distributions"
    return Axis(space.low, space.high, space.log)


def _labels(space: BaseDistribution) -> list[tuple[float, str]]:
    """What stands below the axis of a parameter, and where."""
    if isinstance(space, CategoricalDistribution):
        last = len(space.choices) - 1
        return [(position / last, setting_text(choice)) for position, choice in enumerate(space.choices)]
    axis = _axis(space)
    return [(0.0, setting_text(axis.low)), (1.0, f"{setting_text(axis.high)}{' (log)' if axis.log else ''}")]
