"""The page of `hpo explain`: findings to one HTML file."""

from __future__ import annotations

from typing import Any

from sparse_evidence.core.fitted import FittedModel

from . import html
from .findings import AGAINST, LEVELS, Findings, Post, factor, find
from .posts import ShownPosts


def explain_page(model: FittedModel, shown: ShownPosts) -> str:
    """One HTML page that shows what a model looks for, and what it finds in some posts. It holds their text."""
    return render(find(model, shown))


def render(findings: Findings) -> str:
    """The page as HTML; everything that it needs is in it."""
    return html.render(
        "explain",
        script=html.read("explain.js"),
        findings=findings,
        info=findings.model.info,
        levels={level: factor(least) for level, least in {**LEVELS, "against": AGAINST}.items()},
        data={"threshold": findings.model.threshold, "posts": [_numbers(post) for post in findings.posts]},
    )


def _numbers(post: Post) -> dict[str, Any]:
    """What the page's script needs of a post."""
    return {
        "shown": post.shown,
        "probability": [round(verdict.probability, 6) for verdict in post.verdicts],
        "met": [verdict.met for verdict in post.verdicts],
        "label": [verdict.label for verdict in post.verdicts],
        "marks": [
            {row: [found.level, found.label] for row, found in verdict.marks.items()} for verdict in post.verdicts
        ],
    }
