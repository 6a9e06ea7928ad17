"""Recognises what the columns of a user's table hold: by their names, and by what is in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, UserError, is_unspaced, quote_value
from .columns import ALIASES, REQUIRED, WIDE, Field, candidates, lookalikes, normal, quote_name
from .pairs import PairsSource
from .tables import Table, criterion_in_words, label_of, quote_label, read_table
from .wide import MISSING

_MIN_WORDS = 5
"""A column whose cells have fewer words on average is not taken for the posts, unless its name says so."""


@dataclass(frozen=True)
class Recognised:
    """How a table is to be read."""

    source: PairsSource
    """With the path as given, and with the columns and criteria that must be named."""
    fields: Mapping[Field, str]
    """The column of every field that the table has."""
    ignored: tuple[str, ...]
    """The columns that are not read, each with the reason if it looks like labels."""


def recognise(path: Path, given: Mapping[Field, str] | None = None) -> Recognised:
    """Return how to read a table: which column holds what, and whether it has a column per criterion.

    Args:
        path: a CSV, TSV or Parquet file.
        given: columns that the user has named, which are not guessed.

    Raises:
        UserError: the file cannot be read, a named column is missing, or what a column holds cannot be decided; the
            message says how to say it.
    """
    table = read_table(path, list((given or {}).values()), None)
    return _Recognition(table, dict(given or {})).result(str(path))


class _Recognition:
    """One table, and the fields that are recognised so far."""

    def __init__(self, table: Table, given: dict[Field, str]) -> None:
        if not table.rows:
            raise DataError(str(table.path), table.problems.entries() or ["it has no rows below the header"])
        self.path, self.names = table.path, table.columns
        self.rows = [row.number for row in table.rows]
        self.cells = {name: [row[name] for row in table.rows] for name in table.columns}
        self.fields = given.copy()
        self.given = frozenset(given.values())

    def result(self, path: str) -> Recognised:
        self._find_post()
        wide = not self._has_pairs()
        for field in WIDE if wide else ALIASES:
            self._find(field)
        if not wide:
            return self._pairs(path)
        chosen = self.fields.pop("label", None)  # only if the user has named it
        evidence_of = self._evidence_columns()
        reasons = {name: self._why_no_criterion(name) for name in self._free() if name not in evidence_of.values()}
        criteria = {name: criterion_in_words(name) for name, reason in reasons.items() if reason is None}
        if chosen is not None:
            criteria = {chosen: criterion_in_words(chosen)}
        if not criteria:
            raise self._no_criteria(reasons)
        evidence = {name: column for name, column in evidence_of.items() if name in criteria}
        if len(criteria) == 1 and not evidence:
            self._find("evidence")
            only = self.fields.pop("evidence", None)
            evidence = {name: only for name in criteria if only is not None}
        source = PairsSource(path=path, columns=self._renamed(), criteria=criteria, evidence=evidence)
        used = {*criteria, *evidence.values()}
        ignored = tuple(
            f"{name} ({reasons[name]})" if reasons.get(name) else name for name in self._free() if name not in used
        )
        return Recognised(source, self.fields, ignored)

    # --- fields ---------------------------------------------------------------------------------------------------

    def _find_post(self) -> None:
        """The posts: by name, or else the one column of long texts."""
        self._find("post")
        if "post" in self.fields:
            return
        words = {name: self._mean_words(name) for name in self._free() if not self._named_otherwise(name)}
        longest = sorted(words, key=lambda name: -words[name])
        texts = [name for name in longest if words[name] >= _MIN_WORDS]
        if not texts:
            raise UserError(
                f"{self.path} has no column of posts (it has: {_list(self.names)}); name it: --column post=NAME"
            )
        if len(texts) > 1 and words[texts[1]] > words[texts[0]] / 2:
            raise self._ambiguous("post", texts)
        if len(texts[0].split()) >= _MIN_WORDS or is_unspaced(texts[0]):
            raise UserError(f"{self.path} seems to start with a post; add a first row with the names of the columns")
        self.fields["post"] = texts[0]

    def _find(self, field: Field) -> None:
        if field in self.fields:
            return
        found = [name for name in candidates(self.names, field) if name in self._free()]
        if not found and field not in ("post", "criterion", "label"):  # whose columns their cells tell apart
            found = [name for name in lookalikes(self.names, field) if name in self._free()]  # else it is not read
        if field == "post" and len(found) > 1:
            found = [name for name in found if self._mean_words(name) >= _MIN_WORDS] or found
        names_rows = field in ("post_id", "group")  # two columns that distinguish the same rows are equally good
        if len(found) > 1 and not (names_rows and len({self._partition(name) for name in found}) == 1):
            raise self._ambiguous(field, found)
        if found:
            self.fields[field] = found[0]

    def _has_pairs(self) -> bool:
        """Whether every row is a post and a criterion.

        A column `category` may also describe the post. So under a name that is not `criterion` itself it only counts
        if posts are repeated.
        """
        criterion, label = (candidates(self.names, field) for field in ("criterion", "label"))
        if "criterion" in self.fields:
            return True
        posts = self.cells[self.fields["post"]]
        named = any(normal(name) == "criterion" for name in criterion)
        return bool(criterion) and (named or (bool(label) and len(set(posts)) < len(posts)))

    def _named_otherwise(self, name: str) -> bool:
        return any(name in candidates(self.names, field) for field in ALIASES if field != "post")

    def _evidence_columns(self) -> dict[str, str]:
        """Columns such as `anger_evidence` or `evidence_anger`, by the column of their criterion."""
        by_name = {normal(name): name for name in self._free()}
        pairs = {
            name: by_name.get(f"{normal(name)}_evidence") or by_name.get(f"evidence_{normal(name)}")
            for name in self._free()
        }
        return {name: column for name, column in pairs.items() if column is not None}

    # --- one row per post and criterion -----------------------------------------------------------------------------

    def _pairs(self, path: str) -> Recognised:
        missing = [field for field in REQUIRED if field not in self.fields]
        if missing:
            options = " ".join(f"--column {field}=NAME" for field in missing)
            raise UserError(
                f"{self.path} has a column {quote_name(self.fields['criterion'], self.given)} of criteria, but no "
                f"column for {' and '.join(missing)} (it has: {_list(self.names)}); name it: {options}"
                if "criterion" in self.fields
                else f"{self.path} has no column of criteria (it has: {_list(self.names)}); name it: {options}"
            )
        identifier, post = self.fields["post_id"], self.fields["post"]
        ids, posts = self.cells[identifier], self.cells[post]
        if len(set(ids)) == len(ids) and len(set(posts)) < len(posts):
            raise UserError(
                f"{self.path}: column {quote_name(identifier, self.given)} differs in every row although posts repeat, "
                "so it numbers the rows; name the column that is the same in all rows of a post: --column post_id=NAME"
            )
        return Recognised(PairsSource(path=path, columns=self._renamed()), self.fields, tuple(self._free()))

    # --- one row per post -------------------------------------------------------------------------------------------

    def _why_no_criterion(self, name: str) -> str | None:
        """Say why a column is not a criterion: empty if few of its cells are labels. None: it is one."""
        cells = {
            row: cell for row, cell in zip(self.rows, self.cells[name], strict=True) if cell.lower() not in MISSING
        }
        strange = {row: cell for row, cell in cells.items() if label_of(cell) is None}
        labels = {label_of(cell) for cell in cells.values()} - {None}
        if 2 * len(strange) >= len(cells):
            return ""
        if strange:
            row, cell = next(iter(strange.items()))
            return f"not only labels: row {row} is {quote_label(cell)}"
        return f"all labels are {labels.pop()}" if len(labels) == 1 else None

    def _no_criteria(self, reasons: Mapping[str, str | None]) -> UserError:
        almost = [f"{quote_value(name)} ({reason})" for name, reason in reasons.items() if reason]
        labelled = [name for name in candidates(self.names, "label") if name in self._free()]
        if labelled and not almost:
            strange = next((cell for cell in self.cells[labelled[0]] if label_of(cell) is None), "")
            return UserError(
                f"{self.path}: column {quote_name(labelled[0])} does not hold labels of one criterion (a cell is "
                f"{quote_label(strange)}); make a column per criterion with 0 and 1, or no and yes"
            )
        has = f"it nearly has: {', '.join(almost)}" if almost else f"it has: {_list(self.names)}"
        return UserError(
            f"{self.path} has no column of labels with both 0 and 1, no and yes, or false and true ({has}); add a "
            "column per criterion, or the columns criterion and label"
        )

    # --- what columns hold ------------------------------------------------------------------------------------------

    def _free(self) -> list[str]:
        """The columns that are no field so far."""
        return [name for name in self.names if name not in self.fields.values()]

    def _renamed(self) -> dict[Field, str]:
        return {field: name for field, name in self.fields.items() if field != name}

    def _mean_words(self, name: str) -> float:
        counts = [len(cell.split()) for cell in self.cells[name] if cell]
        return sum(counts) / len(counts) if counts else 0.0

    def _partition(self, name: str) -> tuple[int, ...]:
        """For every row, the first row with the same cell: equal for two columns that distinguish the same rows."""
        first: dict[str, int] = {}
        return tuple(first.setdefault(cell, row) for row, cell in enumerate(self.cells[name]))

    def _ambiguous(self, field: Field, names: Sequence[str]) -> UserError:
        return UserError(
            f"{self.path}: the columns {_list(names, 'and')} could each be the {field}; choose one: "
            f"--column {field}=NAME"
        )


def _list(names: Iterable[str], last: str = "") -> str:
    shown = [quote_name(name) for name in list(names)[:20]]
    if last and len(shown) > 1:
        return f"{', '.join(shown[:-1])} {last} {shown[-1]}"
    return ", ".join(shown) or "none"
