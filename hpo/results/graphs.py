"""Graphs of ours that optuna-dashboard draws beside its own: what every confirmed candidate is worth.

optuna-dashboard draws figures in the JSON of plotly, which it finds in pieces among a study's system attributes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from sparse_evidence.core.metrics import METRICS

from ..database import record
from . import winner
from .wording import capitalized, count_text, metric_text

if TYPE_CHECKING:
    from optuna import Study

# They can be read on the page's light and on its dark background; the figure itself has none.
RESULT_COLOUR, OTHER_COLOUR, TEXT_COLOUR, GRID_COLOUR = "#2f8fb0", "#7d8794", "#737e8b", "rgba(125, 135, 148, 0.3)"
NO_COLOUR = "rgba(0, 0, 0, 0)"


def study_graphs(study: Study) -> dict[str, str]:
    """System attributes with our graphs of a study; none before it is confirmed."""
    from optuna_dashboard._custom_plot_data import SYSTEM_ATTR_PLOT_DATA, split_plot_data

    confirmed = winner.current_confirmed(study)
    if confirmed is None or confirmed["winner"] is None:
        return {}
    text = json.dumps(confirmed_figure(record.metric(study), confirmed))
    return cast(dict[str, str], split_plot_data(text, f"{SYSTEM_ATTR_PLOT_DATA}confirmed:"))


def confirmed_figure(metric: str, confirmed: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and 95 % interval of every candidate that was scored on all fresh splits, the best one on top.

    Args:
        metric: a name in `METRICS`.
        confirmed: from `winner.current_confirmed`.

    Returns:
        A figure as plotly's JSON.
    """
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    scores = winner.fully_scored(confirmed)
    names = sorted(scores, key=lambda name: sign * scores[name]["mean"])
    means = [scores[name]["mean"] for name in names]
    ends = [scores[name]["interval"] or [mean, mean] for name, mean in zip(names, means, strict=True)]
    colours = [RESULT_COLOUR if name == confirmed["winner"] else OTHER_COLOUR for name in names]
    intervals = {
        "type": "data",
        "symmetric": False,
        "array": [high - mean for mean, (_, high) in zip(means, ends, strict=True)],
        "arrayminus": [mean - low for mean, (low, _) in zip(means, ends, strict=True)],
        "color": OTHER_COLOUR,
        "thickness": 2,
    }
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": means,
        "y": [capitalized(record.candidate_text(name).removeprefix("the ")) for name in names],
        "error_x": intervals,
        "marker": {"size": 10, "color": colours},
        "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
    }
    on = count_text(confirmed["splits"], "fresh split")
    layout = {
        "title": {"text": f"Confirmed on {on}: {metric_text(metric)}, 95 % intervals", "y": 0.88, "yanchor": "bottom"},
        "xaxis": {"gridcolor": GRID_COLOUR, "zeroline": False},
        "yaxis": {"automargin": True, "dtick": 1, "gridcolor": GRID_COLOUR},
        "margin": {"t": 70, "b": 40},
        "font": {"color": TEXT_COLOUR},
        "paper_bgcolor": NO_COLOUR,
        "plot_bgcolor": NO_COLOUR,
    }
    return {"data": [points], "layout": layout}
