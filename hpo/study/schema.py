"""A JSON schema of study files, with which editors complete and check them.

`make schema` writes the copy, `studies/study.schema.json`, to which the first line of a study file refers.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from sparse_evidence.core.config import LOSSES, MODELS, ChunksConfig, SplitConfig, TrainingConfig

from .config import ConfirmConfig, PrunerConfig, SearchConfig, ServiceConfig
from .fields import Field, fields_of
from .reader import NAME


def json_schema() -> dict[str, Any]:
    """Return a JSON schema (draft 2020-12) of the study file; every table of it is in `$defs`."""
    from sparse_evidence.core.corpus.sources import SOURCES
    from sparse_evidence.core.metrics import METRICS

    plain = (ChunksConfig, SplitConfig, PrunerConfig, ConfirmConfig, ServiceConfig, SearchConfig)
    tables = {cls.__name__: _table(cls) for cls in plain}
    tables["SearchConfig"]["properties"]["metric"]["enum"] = list(METRICS)
    tables["SearchConfig"]["properties"]["pruner"] = _ref(PrunerConfig)
    tables["TrainingConfig"] = _table(TrainingConfig, searchable=True)
    for registry in (MODELS, LOSSES):
        tables |= {cls.__name__: _table(cls, searchable=True, tag=("name", name)) for name, cls in registry.items()}
    tables |= {cls.__name__: _table(cls, tag=("source", name)) for name, cls in SOURCES.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Study",
        "type": "object",
        "additionalProperties": False,
        "required": ["data", "model"],
        "properties": {
            "name": {"type": "string", "pattern": f"^{NAME}$", "description": "Default: the file's name."},
            "data": _any_of(SOURCES),
            "chunks": _ref(ChunksConfig),
            "split": _ref(SplitConfig),
            "search": _ref(SearchConfig),
            "model": _alternatives(MODELS),
            "training": _ref(TrainingConfig),
            "loss": _alternatives(LOSSES),
            "confirm": _ref(ConfirmConfig),
            "service": _ref(ServiceConfig),
        },
        "$defs": tables,
    }


def _ref(cls: type) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _any_of(registry: Mapping[str, type]) -> dict[str, Any]:
    return {"oneOf": [_ref(cls) for cls in registry.values()]}


def _alternatives(registry: Mapping[str, type]) -> dict[str, Any]:
    return {"anyOf": [_any_of(registry), {"type": "array", "minItems": 1, "items": _any_of(registry)}]}


def _table(cls: type, *, searchable: bool = False, tag: tuple[str, str] = ("", "")) -> dict[str, Any]:
    """Return the schema of a table that fills `cls`; `tag` is the key and the value that name the class."""
    descriptions = _descriptions(cls)
    properties: dict[str, Any] = {}
    for key, field in fields_of(cls).items():
        entry = _searchable(field) if searchable else dict(field.schema)
        if key == tag[0]:
            entry = {"const": tag[1]}
        elif field.default is not MISSING and field.default is not None:
            entry["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        if key in descriptions:
            entry["description"] = descriptions[key]
        properties[key] = entry
    required = [key for key, field in fields_of(cls).items() if field.default is MISSING or key == tag[0]]
    return _object(properties, required) | {"description": inspect.getdoc(cls) or ""}


def _descriptions(cls: type) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass, as pydantic collects them."""
    described = {"__pydantic_config__": ConfigDict(use_attribute_docstrings=True)}
    source = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}  # pydantic finds the source code by these
    properties = TypeAdapter(type(cls.__name__, (cls,), described | source)).json_schema().get("properties", {})
    return {key: entry["description"] for key, entry in properties.items() if "description" in entry}


def _searchable(field: Field) -> dict[str, Any]:
    """Return the schema of a field that may be searched: a value, a range (of numbers), or choices."""
    value = field.schema
    choices = {"type": "array", "items": value, "minItems": 2, "uniqueItems": True}
    options = [value, _object({"choices": choices, "default": value}, ["choices"])]
    if field.kind in ("integer", "number"):
        step = {"type": field.kind, "exclusiveMinimum": 0}
        parts = {"low": value, "high": value, "log": {"type": "boolean"}, "step": step, "default": value}
        options.insert(1, _object(parts, ["low", "high"]))
    return {"anyOf": options}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
