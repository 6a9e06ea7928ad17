"""Templates to one complete HTML page: everything is escaped, and a browser is told to fetch and run nothing else."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from .writing import generator

TEMPLATES = Path(__file__).parent / "templates"


def render(verb: str, *, script: str = "", **context: object) -> str:
    """The page of a verb as HTML, from its template and its style sheet; everything that it needs is in it.

    What a template is given is escaped by Jinja2, unless it is `Markup`. A browser that honours the page's
    Content-Security-Policy runs this script and no other, and fetches nothing.

    Args:
        verb: names the template `VERB.html` and the style sheet `VERB.css`.
        script: JavaScript of the page.
        context: what the template is given.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bound"] = _bound
    style = stylesheet(verb)
    return environment.get_template(f"{verb}.html").render(
        style=Markup(style),  # noqa: S704  (our own files)
        script=Markup(script),  # noqa: S704
        policy=_policy(style, script),
        generator=generator(verb),
        **context,
    )


def stylesheet(verb: str) -> str:
    """The CSS of a page; the dark colours apply by the system's setting, and by the page's own."""
    return read("page.css").replace("/*dark*/", read("dark.css")) + read(f"{verb}.css")


def read(name: str) -> str:
    """The content of a file in `templates/`."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _bound(text: str) -> str:
    """The text without a line break before a percent sign."""
    return text.replace(" %", "\u00a0%")


def _policy(style: str, script: str) -> str:
    scripts = f"'{_hash(script)}'" if script else "'none'"
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src {scripts}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
