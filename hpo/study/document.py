"""A study as a dict, with the same meaning as a study file: values that TOML has, written as TOML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

from ..errors import DefinitionError


def to_toml(document: Mapping[str, Any]) -> str:
    """Return a study as the content of a study file. A key whose value is None is left out, as TOML has no such value.

    Raises a `DefinitionError` that names a key or a value that a study file cannot hold.
    """
    if not isinstance(document, Mapping):
        raise DefinitionError(f"a study is a file or a dict, not a {type(document).__name__}; give one of them")
    return "".join(
        f"{_key(key, '')} = {_value(value, str(key))}\n" for key, value in document.items() if value is not None
    )


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise DefinitionError(f"the study has the key {key!r}{f' in {where}' if where else ''}; keys must be strings")
    return _string(key)


def _value(value: object, where: str) -> str:
    value = value.item() if hasattr(value, "item") else value  # a number of NumPy
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if isinstance(value, PathLike):
        value = fspath(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        pairs = (
            f"{_key(key, where)} = {_value(part, f'{where}.{key}')}" for key, part in value.items() if part is not None
        )
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return f"[{', '.join(_value(part, where) for part in value)}]"
    raise DefinitionError(
        f"{where}: a {type(value).__name__} is not allowed; a study has text, numbers, true, false, lists and dicts"
    )


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
