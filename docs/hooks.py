"""What the documentation site takes from the code, so that it cannot go stale.

MkDocs calls the functions named `on_…` while it builds the site. They insert what a page asks for (`<!-- insert: NAME
-->`), add the files of the repository that pages link to, and put drawings into the page, where they take its colours.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
"""Files outside docs/ that are pages of the site, or stand for one."""
FILES = "files"
"""The site's folder with the other files of the repository that pages link to."""
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")
INSERT = re.compile(r"^<!-- insert: (\w+) -->$", re.MULTILINE)
DRAWING = re.compile(r'<img alt="([^"]*)" src="([^"]+\.svg)" ?/?>')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the changelog and the conventions as pages, and every other file that a page links to."""
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, PAGES[name], content=LINK.sub(lambda link: _target(link[1], "", ""), text)))
    linked = {path for page in files.documentation_pages() for path in _outside(page)}
    for path in sorted(linked):
        files.append(File.generated(config, f"{FILES}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Insert what the page asks for, and make its links to files of the repository links to their copies."""
    markdown = INSERT.sub(lambda match: _insertion(match[1]), markdown)
    here = dirname(page.file.src_uri)
    return LINK.sub(lambda link: _target(link[1], join("docs", here), here), markdown)


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Put drawings into the page itself: only there do they follow its colours."""

    def inline(image: re.Match[str]) -> str:
        alternative, source = image.groups()
        drawing = (ROOT / "docs" / join(dirname(page.file.src_uri), source)).read_text(encoding="utf-8")
        drawing = re.sub(r"<style>.*?</style>\s*", "", drawing, flags=re.DOTALL)
        return drawing.replace("<svg ", f'<svg role="img" aria-label="{alternative}" ', 1)

    return DRAWING.sub(inline, html)


def _outside(page: File) -> Iterator[str]:
    """The files outside docs/ that a page links to, from the repository's root."""
    for link in LINK.findall(page.content_string if page.generated_by is None else ""):
        path = normpath(join("docs", dirname(page.src_uri), link))
        if not path.startswith("docs/") and path not in PAGES:
            if not (ROOT / path).is_file():
                raise PluginError(f"{page.src_uri} links to {link}, which is no file")
            yield path


def _target(link: str, folder: str, here: str) -> str:
    """Where a link of a page leads in the site.

    Args:
        link: as it is written: from the repository's folder in which its file is.
        folder: that folder, from the repository's root.
        here: the page's folder in the site.
    """
    path = normpath(join(folder, link))
    if path in PAGES:
        inside = PAGES[path]
    elif path.startswith("docs/"):
        inside = path.removeprefix("docs/")
    else:
        inside = f"{FILES}/{path}"
    return relpath(inside, here or ".")


# --- what pages insert ------------------------------------------------------------------------------------------------


def _insertion(name: str) -> str:
    try:
        make = {"settings": settings, "verbs": verbs, "exit_codes": exit_codes, "result": result}[name]
    except KeyError:
        raise PluginError(f"there is nothing to insert that is called {name}") from None
    return make()


def settings() -> str:
    """Every setting of a study file, table by table: allowed values, default, default space, meaning."""
    from sparse_evidence.core.config import LOSSES, MODELS, ChunksConfig, SplitConfig, TrainingConfig
    from sparse_evidence.core.corpus.sources import SOURCES
    from sparse_evidence.hpo.study.config import ConfirmConfig, PrunerConfig, SearchConfig, ServiceConfig
    from sparse_evidence.hpo.study.defaults import loss_space, model_space

    tables: list[tuple[str, str, type, Mapping[str, object]]] = [
        *((f'[data] source = "{name}"', f"data-{name}", cls, {}) for name, cls in SOURCES.items()),
        ("[chunks]", "chunks", ChunksConfig, {}),
        ("[split]", "split", SplitConfig, {}),
        ("[search]", "search", SearchConfig, {}),
        ("[search] pruner", "pruner", PrunerConfig, {}),
        *((f'[[model]] name = "{name}"', f"model-{name}", cls, model_space(name)) for name, cls in MODELS.items()),
        ("[training]", "training", TrainingConfig, {}),
        *((f'[[loss]] name = "{name}"', f"loss-{name}", cls, loss_space(name)) for name, cls in LOSSES.items()),
        ("[confirm]", "confirm", ConfirmConfig, {}),
        ("[service]", "service", ServiceConfig, {}),
    ]
    return "\n\n".join(_table(*table) for table in tables)


def _table(title: str, anchor: str, cls: type, searched: Mapping[str, object]) -> str:
    from sparse_evidence.core.config import MODELS
    from sparse_evidence.hpo.study.defaults import training_space
    from sparse_evidence.hpo.study.fields import fields_of
    from sparse_evidence.hpo.study.schema import json_schema

    described = json_schema()["$defs"][cls.__name__]["properties"]
    lines = [f"## `{title}` {{ #{anchor} }}", inspect.getdoc(cls) or ""]
    for key, field in fields_of(cls).items():
        entry = described[key]
        if "const" in entry:
            continue
        facts = [_allowed(field.allowed, entry), _default(entry, required=field.default is MISSING)]
        if key in searched:
            facts.append(f"searched by default: {searched[key]}")
        if cls.__name__ == "TrainingConfig":
            spaces = {name: training_space(name) for name in MODELS}
            ranges = [f"{space[key]} with `{name}`" for name, space in spaces.items() if key in space]
            facts += [f"searched by default: {'; '.join(ranges)}"] if ranges else []
        meaning = " ".join(entry.get("description", "").split())
        lines.append(_definition(f"`{key}` {{ #{anchor}.{key} }}", f"*{'; '.join(facts)}*", meaning))
    return "\n\n".join(line for line in lines if line)


def _allowed(allowed: str, entry: Mapping[str, Any]) -> str:
    choices = entry.get("enum")
    return f"one of {', '.join(f'`{choice}`' for choice in choices)}" if choices else allowed


def _default(entry: Mapping[str, Any], *, required: bool) -> str:
    if "default" not in entry:
        return "required" if required else "default: see below"
    empty = entry["default"] in ([], {})
    return "default empty" if empty else f"default `{json.dumps(entry['default'], ensure_ascii=False)}`"


def _definition(term: str, facts: str, meaning: str) -> str:
    return f"{term}\n:   {facts}" + (f"\n    <br>{meaning}" if meaning else "")


def verbs() -> str:
    """Every verb: how it is called, what it does, its arguments and options, as its help prints them."""
    from sparse_evidence.hpo.cli.app import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # it is a group
    return "\n\n".join(_verb(name, command) for name, command in commands.items())


def _verb(name: str, command: Any) -> str:  # noqa: ANN401 - typer's own class, which has no public name
    arguments = [part for part in command.params if part.param_type_name == "argument"]
    synopsis = " ".join([f"hpo {name}", *(_argument(part) for part in arguments)])
    lines = [f"## hpo {name} {{ #{name} }}", f"```\n{synopsis} [OPTIONS]\n```", inspect.cleandoc(command.help or "")]
    for part in command.params:
        if part.param_type_name == "argument":
            term = f"`{_argument(part)}`"
        else:
            value = f" {part.metavar or 'VALUE'}" if not part.is_flag else ""
            term = ", ".join(f"`{option}{value}`" for option in part.opts)
        default = part.default if part.show_default and not getattr(part, "is_flag", False) else None
        shown = f" Default: `{default}`." if default not in (None, "", ...) and not callable(default) else ""
        lines.append(f"{term}\n:   {_escaped(part.help or '')}{shown}")
    return "\n\n".join(lines)


def _argument(part: Any) -> str:  # noqa: ANN401 - as above
    name = str(part.metavar or part.name.upper()).strip("[]")
    return name if part.required else f"[{name}]"


def _escaped(text: str) -> str:
    return re.sub(r"([<>*_])", r"\\\1", " ".join(text.split()))


def exit_codes() -> str:
    """Every exit code and what it means."""
    from sparse_evidence.hpo.errors import Exit

    source = inspect.getsource(Exit)
    rows = ["| code | name | means |", "|---|---|---|"]
    for code in Exit:
        found = re.search(rf'^    {code.name} = \d+\n    """(.*?)"""$', source, re.DOTALL | re.MULTILINE)
        if found is None:
            raise PluginError(f"Exit.{code.name} has no docstring")
        rows.append(f"| {int(code)} | `{code.name}` | {' '.join(found[1].split())} |")
    return "\n".join(rows)


def result() -> str:
    """Every key of `best.json`, from its schema."""
    schema = json.loads((ROOT / "studies" / "best.schema.json").read_text(encoding="utf-8"))
    parts = [_keys(schema)]
    for name, entry in schema["$defs"].items():
        kind = "" if entry.get("type") == "object" else f"*{_kind(entry)}*\n\n"
        parts.append(f"## {name} {{ #{name} }}\n\n{kind}{_keys(entry)}")
    return "\n\n".join(parts)


def _options(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The forms that a value may have."""
    return [entry, *entry.get("anyOf", []), *entry.get("oneOf", []), *entry.get("allOf", [])]


def _keys(entry: Mapping[str, Any]) -> str:
    lines = [entry.get("description", "")]
    for option in _options(entry):
        if option is not entry and "properties" in option and "description" in option:
            lines.append(option["description"])
        for key, value in option.get("properties", {}).items():
            lines.append(f"`{key}`\n:   *{_kind(value)}*\n    <br>{_described(value)}")
    return "\n\n".join(line for line in lines if line)


def _described(entry: Mapping[str, Any]) -> str:
    text = _plain(" ".join(str(entry.get("description", "")).split()))
    inner = [
        f"`{key}` ({_kind(value)}){': ' + _plain(value['description']) if value.get('description') else ''}"
        for option in _options(entry)
        for part in (option, option.get("items", {}))
        for key, value in part.get("properties", {}).items()
    ]
    return f"{text}{' Keys: ' if inner else ''}{'; '.join(inner)}"


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*")


def _kind(entry: Mapping[str, Any]) -> str:
    """The type of a value in words; a part with a section of its own is a link to it."""
    if "const" in entry:
        return f"`{json.dumps(entry['const'])}`"
    if "enum" in entry:
        return f"one of {', '.join(f'`{json.dumps(value)}`' for value in entry['enum'])}"
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return f"[{name}](#{name})"
    if isinstance(entry.get("type"), list):
        return " or ".join(entry["type"])
    if entry.get("type") == "array" and "items" in entry:
        return f"array of {_kind(entry['items'])}"
    forms = [_kind(option) for option in _options(entry)[1:]]
    return str(entry.get("type") or " or ".join(dict.fromkeys(forms)) or "any")
