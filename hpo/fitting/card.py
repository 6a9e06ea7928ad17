"""The model card: what a fitted model is, how good it is, and what it is not for; the README of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from sparse_evidence.core.fitted import FittedModel

from ..database.record import candidate_text
from ..results.wording import SCORE_KINDS, capitalized, estimate_text, metric_text, short


def model_card(model: FittedModel) -> str:
    """Markdown from the template `card.md.jinja`; holds no text of a post."""
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    environment.filters |= {"cell": _cell, "capital": capitalized}
    template = environment.from_string((files(__package__) / "card.md.jinja").read_text(encoding="utf-8"))
    info = model.info
    scores = [(info["fitted"], info["score"]), *info["baselines"].items()]
    return template.render(
        model=model,
        info=info,
        winner=str(info["winner"]),
        metric=metric_text(info["metric"]),
        scores=[(name, score) for name, score in scores if score is not None],
        candidate=candidate_text,
        estimate=_estimate,
        short=short,
        kinds=SCORE_KINDS,
    )


def _estimate(name: str, score: Mapping[str, Any]) -> str:
    """A value with its interval; chance is not estimated."""
    return short(score["value"]) if name == "chance" else estimate_text(score["value"], score["interval"])


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
