"""A field of a study file: a value, or a range or choices to search, checked against the dataclass that it fills.

Names, bounds and defaults are not repeated here: they come from the annotations of the frozen dataclasses.
"""

from __future__ import annotations

import json
import math
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sparse_evidence.core.errors import first, nearest

Scalar = str | int | float | bool | None

_MAX_STEPS = 1_000_000


@dataclass(frozen=True)
class Range:
    """A number to search between two ends, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False
    default: float | None = None
    """Trial 0 uses this value; `load` always fills it in."""

    def __str__(self) -> str:
        """`2 to 6`, `0.05 to 1.0 (log)`, `8 to 64 in steps of 8`."""
        steps = f" in steps of {self.step}" if self.step is not None else ""
        return f"{self.low} to {self.high}{' (log)' if self.log else ''}{steps}"

    def middle(self) -> float:
        """Return the middle of the range (the geometric mean if it is searched in log), rounded to four digits."""
        value = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return self.snap(float(f"{value:.4g}"))

    def snap(self, value: float) -> float:
        """Return the nearest value that can be drawn."""
        if self.step is not None:
            low, step = Fraction(str(self.low)), Fraction(str(self.step))
            value = float(low + round((Fraction(str(value)) - low) / step) * step)
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else float(value)

    def contains(self, value: object) -> bool:
        """Return whether the value can be drawn."""
        return (
            isinstance(value, (int, float)) and self.low <= value <= self.high and math.isclose(self.snap(value), value)
        )


@dataclass(frozen=True)
class Choices:
    """A few values to choose from."""

    values: tuple[Scalar, ...]
    default: Scalar = None
    """Trial 0 uses this one; `load` always fills it in."""

    def __str__(self) -> str:
        """`one of 2, 4, 8`."""
        return f"one of {', '.join(str(value) for value in self.values)}"

    def contains(self, value: object) -> bool:
        """Return whether the value can be drawn."""
        return value in self.values


ParameterSpec = Scalar | Range | Choices
"""A fixed value, or a range or choices to search."""


@dataclass(frozen=True)
class Alternative:
    """One `[[model]]` or `[[loss]]`: its name, and the spec of every other field."""

    name: str
    specs: Mapping[str, ParameterSpec]


def searched_keys(specs: Mapping[str, ParameterSpec]) -> list[str]:
    """Return the keys whose spec is a range or choices."""
    return [key for key, spec in specs.items() if isinstance(spec, (Range, Choices))]


class FieldError(ValueError):
    """A value, range or choice that cannot be used; `problems` describes every mistake."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Field:
    """A field of one of our dataclasses, as a study file sets it."""

    key: str
    adapter: TypeAdapter[Any]
    schema: dict[str, Any]
    """JSON schema of its values."""
    default: Any

    @property
    def kind(self) -> str:
        """Its JSON type."""
        return str(self.schema["type"])

    @property
    def allowed(self) -> str:
        """Its allowed values in words: `a whole number from 1 to 64`."""
        return _allowed(self.schema)


@lru_cache
def fields_of(cls: type) -> dict[str, Field]:
    """Return the fields that a study file may set, with the bounds and defaults of the dataclass."""
    hints = typing.get_type_hints(cls, include_extras=True)
    by_key = {}
    for field in fields(cls):
        if is_dataclass(hints[field.name]):
            continue
        adapter: TypeAdapter[Any] = TypeAdapter(hints[field.name], config=ConfigDict(strict=True, allow_inf_nan=False))
        schema = adapter.json_schema()
        schema = next((part for part in schema.get("anyOf", []) if part["type"] != "null"), schema)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        by_key[field.name] = Field(field.name, adapter, schema, default)
    return by_key


def check_value(field: Field, value: object) -> Any:  # noqa: ANN401 - the field's type
    """Return the value, as the field's type. Raises `FieldError` if it is not allowed."""
    if field.kind == "object" and isinstance(value, Mapping):
        return _check_names(field, value)
    if isinstance(value, Mapping):
        searching = {"low", "high", "choices"} & set(value)
        raise FieldError(f"a {'range' if searching else 'table'} is not allowed here, give {field.allowed}")
    if field.kind == "array" and isinstance(value, list):
        value = tuple(value)
    try:
        return field.adapter.validate_python(value)
    except ValidationError:
        raise FieldError(f"{_why_not(field, value)}, give {field.allowed}") from None


def _check_names(field: Field, value: Mapping[str, Any]) -> dict[str, str]:
    """Check a table of names and texts. Raises a `FieldError` with every mistake in it."""
    known = field.schema.get("propertyNames", {}).get("enum")
    problems = [f"{key} is unknown, {hint(key, known)}" for key in value if known is not None and key not in known]
    problems += [
        f"{key} = {shown(text)} is not text, give it in quotes"
        for key, text in value.items()
        if not isinstance(text, str)
    ]
    if problems:
        raise FieldError(*problems)
    return dict(value)


def _why_not(field: Field, value: object) -> str:
    text = shown(value)
    numeric = field.kind in ("integer", "number")
    if isinstance(value, bool):
        return f"{text} is a truth value"
    if isinstance(value, str) and field.kind != "string":
        return f"{text} is text" + (" (omit the quotes)" if numeric else "")
    if isinstance(value, float) and field.kind == "integer":
        return f"{text} is not a whole number"
    if isinstance(value, (int, float)) and field.kind == "string":
        return f"{text} is a number, not text"
    if isinstance(value, list):
        return f"{text} is a list (to search it, write {{ choices = {text} }})"
    return f"{text} is not allowed"


# --- ranges and choices -------------------------------------------------------------------------------------------


def read_spec(field: Field, raw: object) -> ParameterSpec:
    """Return a value, a range or choices. Raises a `FieldError` with every mistake in it."""
    if not isinstance(raw, Mapping):
        return typing.cast("Scalar", check_value(field, raw))
    return _choices(field, raw) if "choices" in raw else _range(field, raw)


def _choices(field: Field, raw: Mapping[str, Any]) -> Choices:
    problems = _unknown_in(raw, ("choices", "default"), "a table of choices")
    if not isinstance(raw["choices"], list):
        raise FieldError(*problems, f"choices {shown(raw['choices'])} is not a list, write choices = [ ... ]")
    values = [_part(field, "choice", value, problems) for value in raw["choices"]]
    default = _part(field, "default", raw["default"], problems) if "default" in raw else None
    problems = problems or _choices_problems(field, values)
    if not problems and "default" in raw and default not in values:
        problems.append(f"default {shown(default)} is not among the choices, give one of {quoted(values)}")
    if problems:
        raise FieldError(*problems)
    if "default" not in raw:
        default = field.default if field.default in values else values[0]
    return Choices(tuple(values), default)


def _choices_problems(field: Field, values: list[Any]) -> list[str]:
    """Check a list of choices that are valid individually."""
    if not values:
        return ["choices is empty, give at least two values"]
    if duplicates := {shown(value) for value, count in Counter(values).items() if count > 1}:
        return [f"choices has {first(sorted(duplicates), separator=', ')} more than once, give each value once"]
    if len(values) == 1:
        return [f"choices has one value, give the value itself: {field.key} = {shown(values[0])}"]
    return []


def _range(field: Field, raw: Mapping[str, Any]) -> Range:
    if field.kind not in ("integer", "number"):
        raise FieldError("a range is for numbers, write { choices = [ ... ] }")
    problems = _unknown_in(raw, ("low", "high", "log", "step", "default"), "a range")
    parts: dict[str, Any] = {"log": raw.get("log", False), "step": raw.get("step")}
    for key in ("low", "high", "default"):
        if key in raw:
            parts[key] = _part(field, key, raw[key], problems)
        elif key != "default":
            problems.append(f"{key} is missing, a range is {{ low = ..., high = ... }} or {{ choices = [ ... ] }}")
    if not isinstance(parts["log"], bool):
        problems.append(f"log {shown(parts['log'])} is not allowed, give true or false")
    if parts["step"] is not None and not _is_step(parts["step"], whole=field.kind == "integer"):
        kind = "whole number" if field.kind == "integer" else "number"
        problems.append(f"step {shown(parts['step'])} is not allowed, give a {kind} above 0")
    if problems:
        raise FieldError(*problems)
    if parts["step"] is not None and field.kind == "number":
        parts["step"] = float(parts["step"])
    spec = Range(**parts, integer=field.kind == "integer")
    problems = _range_problems(field, spec)
    if problems:
        raise FieldError(*problems)
    default = field.default if spec.default is None else spec.default
    in_range = isinstance(default, (int, float)) and spec.low <= default <= spec.high
    return replace(spec, default=spec.snap(default) if in_range else spec.middle())


def _range_problems(field: Field, spec: Range) -> list[str]:
    """Check a range whose parts are valid individually."""
    low, high, step, default = spec.low, spec.high, spec.step, spec.default
    if low > high:
        return [f"low {low} is above high {high} (swap them)"]
    if low == high:
        return [f"low and high are both {low}, give the value itself: {field.key} = {low}"]
    problems = []
    if spec.log and low <= 0:
        problems.append(f"log needs low above 0, not {low}, raise low or omit log")
    if spec.log and step is not None:
        problems.append("log and step exclude each other, remove one")
    elif step is not None:
        problems += _step_problems(spec, step)
    if default is not None and not low <= default <= high:
        problems.append(f"default {default} is not between low {low} and high {high}, move it inside")
    elif default is not None and not problems and not math.isclose(spec.snap(default), default):
        nearest_step = spec.snap(default)
        problems.append(f"default {default} is not on the steps of {step} from {low}, the nearest is {nearest_step}")
    return problems


def _step_problems(spec: Range, step: float) -> list[str]:
    first, width = Fraction(str(spec.low)), Fraction(str(step))
    steps, remainder = divmod(Fraction(str(spec.high)) - first, width)
    if steps > _MAX_STEPS:
        return [f"step {step} makes more than {_MAX_STEPS} steps, make it larger or omit it"]
    if not remainder:
        return []
    reachable = [first + count * width for count in (steps, steps + 1) if count]
    ends = " or ".join(str(int(end) if spec.integer else float(end)) for end in reachable)
    return [f"steps of {step} from low {spec.low} do not reach high {spec.high}, make high {ends}"]


def _part(field: Field, part: str, value: object, problems: list[str]) -> Any:  # noqa: ANN401 - the field's type
    """Check one part of a range or of choices; None, with the reason appended to `problems`, if it is not allowed."""
    try:
        return check_value(field, value)
    except FieldError as error:
        problems += [f"{part} {problem}" for problem in error.problems]
        return None


def _is_step(step: object, *, whole: bool) -> bool:
    if isinstance(step, bool) or not isinstance(step, int if whole else (int, float)):
        return False
    return math.isfinite(step) and step > 0


def _unknown_in(raw: Mapping[str, Any], known: tuple[str, ...], table: str) -> list[str]:
    """Return a problem for every key that a range, or a table of choices, does not have."""
    unknown = [key for key in raw if key not in known]
    return [f"{key} is unknown in {table}, {hint(key, known)}" for key in unknown]


# --- parts of sentences -------------------------------------------------------------------------------------------


def hint(word: str, known: Iterable[str]) -> str:
    """Return `did you mean WORD?`, or everything that is allowed if no known word is similar."""
    known = list(known)
    meant = nearest(word, known)
    return f"did you mean {meant}?" if meant else f"allowed: {', '.join(known) or 'none'}"


def _allowed(schema: Mapping[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return f"one of {quoted(schema.get('enum', [schema.get('const')]))}"
    if schema["type"] == "array":
        return f"a list, each item {_allowed(schema['items'])}"
    if schema["type"] == "object":
        return 'a table of texts, such as { name = "text" }'
    types = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
    return types[schema["type"]] + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    if {"minimum", "maximum"} <= set(schema):
        return f" from {schema['minimum']} to {schema['maximum']}"
    limits = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "of at most",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{limit} {schema[key]}" for key, limit in limits.items() if key in schema]
    return f" {' and '.join(bounds)}" if bounds else ""


def quoted(values: Iterable[object]) -> str:
    """Return the first values as the file writes them, and count the others."""
    return first([shown(value) for value in values], separator=", ")


def shown(value: object) -> str:
    """Return a value as the file writes it, truncated if it is long."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
