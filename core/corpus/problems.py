"""Mistakes in the rows of a table: the same mistake in many rows is one entry."""

from __future__ import annotations

from dataclasses import dataclass, field

_NAMED_ROWS = 3
_NAMED_VALUES = 3


@dataclass
class _Kind:
    """All mistakes of one kind."""

    first: str
    many: str
    remedy: str
    rows: dict[int, None] = field(default_factory=dict)
    values: dict[str, None] = field(default_factory=dict)

    def entry(self) -> str:
        rows = list(self.rows)
        if len(rows) == 1 and len(self.values) < 2:
            return f"row {rows[0]}: {self.first}{self.remedy}"
        what = self.many.replace("{}", _either(list(self.values)))
        return f"{what} in {_rows_text(rows)}{self.remedy}"


class RowProblems:
    """Collects mistakes by row. A mistake that many rows have is told once, with the number of its rows."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def add(self, row: int, mistake: str, *, value: str = "", many: str = "", remedy: str = "") -> None:
        """Add a mistake.

        Args:
            row: its row, as `tables.Row.number`.
            mistake: what is wrong there, without a full stop: `label is {}`.
            value: what takes the place of `{}`, quoted for a message (`quote_value`). Rows that differ in nothing else
                have the same mistake.
            many: what is said, in place of `mistake`, of several rows that have this mistake, so that those which name
                other posts count as the same; it may hold a `{}`, too.
            remedy: what is allowed, or what to do.
        """
        kind = self._kinds.setdefault(
            (many or mistake, remedy),
            _Kind(mistake.replace("{}", value), many or mistake, f"; {remedy}" if remedy else ""),
        )
        kind.rows.setdefault(row)
        if value:
            kind.values.setdefault(value)

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def entries(self) -> list[str]:
        """Return one entry for every mistake, in the order in which they were first seen."""
        return [kind.entry() for kind in self._kinds.values()]


def _either(values: list[str]) -> str:
    """`'a'`, `'a' or 'b'`, or the first few and how many others."""
    named, others = values[:_NAMED_VALUES], len(values) - _NAMED_VALUES
    if others > 0:
        return f"{', '.join(named)} or {others:,} other{'s' if others > 1 else ''}"
    return f"{', '.join(named[:-1])} or {named[-1]}" if len(named) > 1 else "".join(named)


def _rows_text(rows: list[int]) -> str:
    """`rows 3, 5 and 9`, or the number of rows and the first one."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    if len(rows) <= _NAMED_ROWS:
        return f"rows {', '.join(map(str, rows[:-1]))} and {rows[-1]}"
    return f"{len(rows):,} rows, first in row {rows[0]}"
