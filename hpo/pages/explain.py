"""The page of `hpo explain`: findings to one HTML file.

Texts are escaped by Jinja2. A browser that honours the page's Content-Security-Policy runs this script and no other,
and fetches nothing.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from sparse_evidence.core.fitted import FittedModel

from .findings import AGAINST, LEVELS, Findings, Post, factor, find
from .posts import ShownPosts
from .writing import GENERATOR

TEMPLATES = Path(__file__).parent / "templates"


def explain_page(model: FittedModel, shown: ShownPosts) -> str:
    """One HTML page that shows what a model looks for, and what it finds in some posts. It holds their text."""
    return render(find(model, shown))


def render(findings: Findings) -> str:
    """The page as HTML; everything that it needs is in it."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bound"] = lambda text: text.replace(" %", "\u00a0%")  # no line break before the sign
    style, script = stylesheet(), _read("explain.js")
    return environment.get_template("explain.html").render(
        findings=findings,
        info=findings.model.info,
        levels={level: factor(least) for level, least in {**LEVELS, "against": AGAINST}.items()},
        data={"threshold": findings.model.threshold, "posts": [_numbers(post) for post in findings.posts]},
        style=Markup(style),  # noqa: S704  (our own files)
        script=Markup(script),  # noqa: S704
        policy=_policy(style, script),
        generator=GENERATOR,
    )


def stylesheet() -> str:
    """The CSS of the page; the dark colours apply by the system's setting, and by the page's own."""
    return _read("explain.css").replace("/*dark*/", _read("dark.css"))


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


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
