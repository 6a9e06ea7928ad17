"""A field of a study file: a value, or what is searched instead of one, checked against the dataclass it fills.

Names, bounds and defaults are nowhere repeated: they are read off the annotations of frozen dataclasses.
"""

from __future__ import annotations

import difflib
import json
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

Scalar = str | int | float | bool | None

_MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class Range:
    """A number to be searched between two ends, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False
    default: float | None = None
    """Trial 0 starts here; `load` always fills it in."""

    def __str__(self) -> str:
        """`2 to 6`, `0.05 to 1.0 (log)`, `8 to 64 in steps of 8`."""
        steps = f" in steps of {self.step}" if self.step is not None else ""
        return f"{self.low} to {self.high}{' (log)' if self.log else ''}{steps}"

    def middle(self) -> float:
        """Return the middle of the range, geometric where it is searched in log, to four digits."""
        value = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return self.snap(float(f"{value:.4g}"))

    def snap(self, value: float) -> float:
        """Return the nearest value that can be drawn."""
        if self.step is not None:
            low, step = Fraction(str(self.low)), Fraction(str(self.step))
            value = float(low + round((Fraction(str(value)) - low) / step) * step)
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else float(value)


@dataclass(frozen=True)
class Choices:
    """A value to be searched among a few."""

    values: tuple[Scalar, ...]
    default: Scalar = None
    """Trial 0 takes this one; `load` always fills it in."""

    def __str__(self) -> str:
        """`one of 2, 4, 8`."""
        return f"one of {', '.join(str(value) for value in self.values)}"


Leaf = Scalar | Range | Choices


class LeafError(ValueError):
    """Why a value, range or choice cannot be used."""

    def __init__(self, *messages: str) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages


@dataclass(frozen=True)
class Field:
    """A field of one of our dataclasses, as the file sees it."""

    key: str
    adapter: TypeAdapter[Any]
    schema: dict[str, Any]
    allowed: str
    default: Any

    @property
    def kind(self) -> str:
        """Its JSON type."""
        return str(self.schema["type"])


@lru_cache
def fields_of(cls: type) -> dict[str, Field]:
    """Return the fields that a file may give, with bounds and defaults as the dataclass has them."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = {}
    for field in fields(cls):
        if is_dataclass(hints[field.name]):
            continue
        adapter: TypeAdapter[Any] = TypeAdapter(hints[field.name], config=ConfigDict(strict=True, allow_inf_nan=False))
        schema = adapter.json_schema()
        schema = next((part for part in schema.get("anyOf", []) if part["type"] != "null"), schema)
        found[field.name] = Field(field.name, adapter, schema, _allowed(schema), field.default)
    return found


def _allowed(schema: Mapping[str, Any]) -> str:
    """Tell what a field takes, in words."""
    if "enum" in schema or "const" in schema:
        return f"one of {quoted(schema.get('enum', [schema.get('const')]))}"
    if schema["type"] == "array":
        return f"a list, each item {_allowed(schema['items'])}"
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
    return words[schema["type"]] + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    if {"minimum", "maximum"} <= set(schema):
        return f" from {schema['minimum']} to {schema['maximum']}"
    limits = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "of at most",
        "exclusiveMaximum": "below",
    }
    words = [f"{word} {schema[key]}" for key, word in limits.items() if key in schema]
    return f" {' and '.join(words)}" if words else ""


def checked_value(field: Field, value: object) -> Any:  # noqa: ANN401 - whatever the field holds
    """Return the value, as the field's type. Raises `LeafError` where it is not allowed."""
    if isinstance(value, Mapping):
        searching = {"low", "high", "choices"} & set(value)
        raise LeafError(f"a {'range' if searching else 'table'} is not allowed here, give {field.allowed}")
    if field.kind == "array" and isinstance(value, list):
        value = tuple(value)
    try:
        return field.adapter.validate_python(value)
    except ValidationError:
        raise LeafError(f"{_why_not(field, value)}, give {field.allowed}") from None


def _why_not(field: Field, value: object) -> str:
    told = shown(value)
    numeric = field.kind in ("integer", "number")
    if isinstance(value, bool):
        return f"{told} is a truth value"
    if isinstance(value, str) and field.kind != "string":
        return f"{told} is text" + (" (leave out the quotes)" if numeric else "")
    if isinstance(value, float) and field.kind == "integer":
        return f"{told} is not a whole number"
    if isinstance(value, (int, float)) and field.kind == "string":
        return f"{told} is a number, not text"
    if isinstance(value, list):
        return f"{told} is a list (to search it, write {{ choices = {told} }})"
    return f"{told} is not allowed"


def read_leaf(field: Field, raw: object) -> Leaf:
    """Return a value, or what is searched. Raises `LeafError` with every mistake in it."""
    if not isinstance(raw, Mapping):
        return typing.cast("Scalar", checked_value(field, raw))
    return _choices(field, raw) if "choices" in raw else _range(field, raw)


def _choices(field: Field, raw: Mapping[str, Any]) -> Choices:
    wrong = unknown_in(raw, ("choices", "default"), "a table of choices")
    given = raw["choices"]
    if not isinstance(given, list):
        raise LeafError(*wrong, f"choices {shown(given)} is not a list, write choices = [ ... ]")
    values = [_checked(field, "choice", value, wrong) for value in given]
    if wrong:
        raise LeafError(*wrong)
    if not values:
        raise LeafError("choices is empty, give at least two values")
    doubles = {shown(value) for value in values if values.count(value) > 1}
    if doubles:
        raise LeafError(f"choices has {', '.join(sorted(doubles))} more than once, give each value once")
    if len(values) == 1:
        raise LeafError(f"choices has one value, give the value itself: {field.key} = {shown(values[0])}")
    if "default" in raw:
        default = _checked(field, "default", raw["default"], wrong)
        if not wrong and default not in values:
            wrong.append(f"default {shown(default)} is not among the choices, give one of {quoted(values)}")
    else:
        default = field.default if field.default in values else values[0]
    if wrong:
        raise LeafError(*wrong)
    return Choices(tuple(values), default)


def _range(field: Field, raw: Mapping[str, Any]) -> Range:
    if field.kind not in ("integer", "number"):
        raise LeafError("a range is for numbers, write { choices = [ ... ] }")
    wrong = unknown_in(raw, ("low", "high", "log", "step", "default"), "a range")
    ends = {}
    for end in ("low", "high"):
        if end not in raw:
            wrong.append(f"{end} is missing, a range is {{ low = ..., high = ... }} or {{ choices = [ ... ] }}")
            continue
        ends[end] = _checked(field, end, raw[end], wrong)
    log = raw.get("log", False)
    if not isinstance(log, bool):
        wrong.append(f"log {shown(log)} is not allowed, give true or false")
    step = raw.get("step")
    if step is not None and not _is_step(step, whole=field.kind == "integer"):
        kind = "whole number" if field.kind == "integer" else "number"
        wrong.append(f"step {shown(step)} is not allowed, give a {kind} above 0")
    default = _checked(field, "default", raw["default"], wrong) if "default" in raw else None
    if wrong:
        raise LeafError(*wrong)
    step = float(step) if step is not None and field.kind == "number" else step
    found = Range(ends["low"], ends["high"], log, step, field.kind == "integer", default)
    wrong += _range_problems(field, found)
    if wrong:
        raise LeafError(*wrong)
    return replace(found, default=_range_default(field, found))


def _range_problems(field: Field, found: Range) -> list[str]:
    """Tell what is wrong with a range whose every part is right."""
    low, high, step, default = found.low, found.high, found.step, found.default
    if low > high:
        return [f"low {low} is above high {high} (swap them)"]
    if low == high:
        return [f"low and high are both {low}, give the value itself: {field.key} = {low}"]
    wrong = []
    if found.log and low <= 0:
        wrong.append(f"log needs low above 0, not {low}, raise low or leave out log")
    if found.log and step is not None:
        wrong.append("log and step exclude each other, leave one out")
    elif step is not None:
        first, width = Fraction(str(low)), Fraction(str(step))
        steps, rest = divmod(Fraction(str(high)) - first, width)
        if steps > _MOST_STEPS:
            wrong.append(f"step {step} makes more than {_MOST_STEPS} steps, make it larger or leave it out")
        elif rest:
            fitting = [first + count * width for count in (steps, steps + 1) if count]
            ends = " or ".join(str(int(end) if found.integer else float(end)) for end in fitting)
            wrong.append(f"steps of {step} from low {low} do not reach high {high}, make high {ends}")
    if default is not None and not low <= default <= high:
        wrong.append(f"default {default} is not between low {low} and high {high}, move it inside")
    elif default is not None and not wrong and not math.isclose(found.snap(default), default):
        wrong.append(
            f"default {default} is not on the steps of {step} from {low}, the nearest is {found.snap(default)}"
        )
    return wrong


def _range_default(field: Field, found: Range) -> float:
    """Where trial 0 starts: as written, else the field's own default, else the middle."""
    if found.default is not None:
        return found.snap(found.default)
    own = field.default
    if isinstance(own, (int, float)) and found.low <= own <= found.high:
        return found.snap(own)
    return found.middle()


def _checked(field: Field, what: str, value: object, wrong: list[str]) -> Any:  # noqa: ANN401 - the field's type
    """Return the value, or None with the reason appended to `wrong`."""
    try:
        return checked_value(field, value)
    except LeafError as error:
        wrong += [f"{what} {message}" for message in error.messages]
        return None


def _is_step(step: object, *, whole: bool) -> bool:
    if isinstance(step, bool) or not isinstance(step, int if whole else (int, float)):
        return False
    return math.isfinite(step) and step > 0


# --- words --------------------------------------------------------------------------------------------------------


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant."""
    return next(iter(difflib.get_close_matches(str(word), list(known), n=1)), None)


def unknown_in(raw: Mapping[str, Any], known: tuple[str, ...], what: str) -> list[str]:
    """Return a sentence for every key that is not known in `what`."""
    wrong = []
    for key in raw:
        if key not in known:
            meant = nearest(key, known)
            hint = f"did you mean {meant}?" if meant else f"allowed: {', '.join(known)}"
            wrong.append(f"{key} is unknown in {what}, {hint}")
    return wrong


def quoted(values: Iterable[object]) -> str:
    """Return the values as the file writes them."""
    return ", ".join(shown(value) for value in values)


def shown(value: object) -> str:
    """Return a value as the file writes it, cut where it is long."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
