"""A JSON schema of the study file, from which editors complete and check it.

`python -m sparse_evidence.hpo.study.schema > docs/study.schema.json` writes the copy that the study files name in their first line.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from sparse_evidence.core.config import LOSSES, MODELS, ChunksConfig, SplitConfig, TrainingConfig

from .definition import NAME, PrunerConfig, SearchConfig, ServiceConfig
from .fields import Field, fields_of


def json_schema() -> dict[str, Any]:
    """Return a JSON schema (draft 2020-12) of the study file, from which editors complete and check it."""
    from sparse_evidence.core.corpus.sources import SOURCES
    from sparse_evidence.core.metrics import METRICS

    search = _table_schema(SearchConfig)
    search["properties"]["metric"]["enum"] = list(METRICS)
    search["properties"]["pruner"] = _table_schema(PrunerConfig)
    sources = [_table_schema(cls, named=("source", name)) for name, cls in SOURCES.items()]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Study",
        "type": "object",
        "additionalProperties": False,
        "required": ["data", "model"],
        "properties": {
            "name": {"type": "string", "pattern": f"^{NAME}$", "description": "Left out: the file's name."},
            "data": {"oneOf": sources},
            "chunks": _table_schema(ChunksConfig),
            "split": _table_schema(SplitConfig),
            "search": search,
            "model": _alternatives_schema(MODELS),
            "training": _table_schema(TrainingConfig, searchable=True),
            "loss": _alternatives_schema(LOSSES),
            "service": _table_schema(ServiceConfig),
        },
    }


def _alternatives_schema(registry: Mapping[str, type]) -> dict[str, Any]:
    one = {"oneOf": [_table_schema(cls, searchable=True, named=("name", name)) for name, cls in registry.items()]}
    return {"anyOf": [one, {"type": "array", "minItems": 1, "items": one}]}


def _table_schema(cls: type, *, searchable: bool = False, named: tuple[str, str] | None = None) -> dict[str, Any]:
    notes = _notes(cls)
    properties: dict[str, Any] = {}
    for key, field in fields_of(cls).items():
        entry = _searchable_schema(field) if searchable else dict(field.schema)
        if named and key == named[0]:
            entry = {"const": named[1]}
        elif field.default is not MISSING and field.default is not None:
            entry["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        if key in notes:
            entry["description"] = notes[key]
        properties[key] = entry
    required = [key for key, field in fields_of(cls).items() if field.default is MISSING]
    required += [named[0]] if named and named[0] not in required else []
    return {
        "type": "object",
        "description": inspect.getdoc(cls) or "",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


def _searchable_schema(field: Field) -> dict[str, Any]:
    """Return a value, a range (of numbers), or choices."""
    value = field.schema
    listed = {"type": "array", "items": value, "minItems": 2, "uniqueItems": True}
    options = [value, _object_schema({"choices": listed, "default": value}, ["choices"])]
    if field.kind in ("integer", "number"):
        step = {"type": field.kind, "exclusiveMinimum": 0}
        parts = {"low": value, "high": value, "log": {"type": "boolean"}, "step": step, "default": value}
        options.insert(1, _object_schema(parts, ["low", "high"]))
    return {"anyOf": options}


def _object_schema(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _notes(cls: type) -> dict[str, str]:
    """Return the comments that stand below the fields of a dataclass."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError):  # installed without its source
        return {}
    assert isinstance(body, ast.ClassDef)
    notes = {}
    for field, note in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(note, ast.Expr):
            text = note.value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                notes[field.target.id] = inspect.cleandoc(text.value)
    return notes


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
