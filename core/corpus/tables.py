"""CSV, TSV and Parquet files become columns of text; every mistake is told with its row, never with a post's text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from threading import Lock
from typing import Any

from ..errors import DataError, UserError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PARQUET = (".parquet", ".pq")
_LONGEST_POST = 2**30  # characters in a cell; the csv module's own limit of 131,072 is too short for records

# The csv module has one field limit for the whole process.
_csv_limit = Lock()


@dataclass(frozen=True)
class Row:
    """One record: its cells by column, without those nobody asked for."""

    number: int
    """As a spreadsheet counts: the header is row 1, a cell with line breaks is still one row."""
    cells: dict[str, str] = field(repr=False)  # representations end up in logs and tracebacks

    def __getitem__(self, column: str) -> str:
        return self.cells[column].strip()


@dataclass(frozen=True, eq=False)
class Table:
    """The readable rows of a file, and what was wrong with the others."""

    path: Path
    columns: tuple[str, ...]
    """Those asked for that the file has."""
    rows: tuple[Row, ...]
    problems: tuple[str, ...]


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read the named columns of a .csv, .tsv (UTF-8, with header) or .parquet file; all cells are text.

    Rows that cannot be read are left out and told in `Table.problems`, for the caller to add to its own.

    Raises:
        UserError: when there is no such file, or it may not be read, or its name ends otherwise.
        DataError: when it has no header or lacks a column, or is not what its name says.
    """
    suffix = path.suffix.lower()
    if suffix not in _DELIMITERS and suffix not in _PARQUET:
        raise UserError(f"{path} ends in {suffix!r}; allowed are .csv, .tsv and .parquet")
    content = _bytes(path)
    if not content.strip():
        raise DataError(str(path), ["it is empty"])
    if suffix in _PARQUET:
        return _parquet(path, content, required, optional)
    return _csv(path, content, _DELIMITERS[suffix], required, optional)


def shown(value: str, most_words: int = 3) -> str:
    """Quote a value for a message, unless it could be a post's text."""
    if not value:
        return "empty"
    if len(value) <= 40 and len(value.split()) <= most_words:
        return repr(value)
    return f"a text of {len(value)} characters"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        close = get_close_matches(path.name, beside, n=1)
        hint = f"did you mean {close[0]}?" if close else "relative paths start at the study file's folder"
        raise UserError(f"file {path} does not exist; {hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the file in it") from None
    except PermissionError:
        raise UserError(f"{path} may not be read by this user; change its permissions") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte in it
        raise UserError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _csv(path: Path, content: bytes, delimiter: str, required: Sequence[str], optional: Sequence[str]) -> Table:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(str(path), ["it is encoded in UTF-16; save it as UTF-8"])
    if b"\x00" in content:
        raise DataError(str(path), ["it is not a text file; save the table as CSV in UTF-8"])
    problems: list[str] = []
    # Bytes that are not UTF-8 become lone surrogates, so that they can be told by row, all of them.
    records = _records(content.decode("utf-8-sig", "surrogateescape"), delimiter, problems)
    names = [name.strip() for name in records[0][1]] if records else []
    problems += _header_problems(names, required, optional, delimiter)
    if problems:
        raise DataError(str(path), problems)
    wanted = {name: names.index(name) for name in (*required, *optional) if name in names}
    rows = []
    for number, record in records[1:]:
        if len(record) != len(names):
            problems.append(f"row {number}: it has {len(record)} cells, but the header has {len(names)}")
            continue
        cells = {name: record[at] for name, at in wanted.items()}
        broken = [name for name, cell in cells.items() if not _is_utf8(cell)]
        problems += [f"row {number}: column {name} is not UTF-8; save the file as UTF-8" for name in broken]
        if not broken:
            rows.append(Row(number, cells))
    return Table(path, tuple(wanted), tuple(rows), tuple(problems))


def _records(text: str, delimiter: str, problems: list[str]) -> list[tuple[int, list[str]]]:
    """Row number and cells of every record; blank rows are counted but left out."""
    with _csv_limit:
        before = csv.field_size_limit(_LONGEST_POST)
        try:
            return list(_parsed(text, delimiter, problems))
        finally:
            csv.field_size_limit(before)


def _parsed(text: str, delimiter: str, problems: list[str]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 0
    while True:
        number += 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error:
            problems.append(
                f"row {number}: a cell that starts with a quotation mark does not end with one "
                "(a quotation mark inside a quoted cell is written twice); the rows after it were not read"
            )
            return
        if any(cell.strip() for cell in record):
            yield number, record


def _header_problems(names: list[str], required: Sequence[str], optional: Sequence[str], delimiter: str) -> list[str]:
    known = (*required, *optional)
    problems = [
        f"column {name} occurs {names.count(name)} times in the header" for name in known if names.count(name) > 1
    ]
    there = ", ".join(shown(name) for name in names[:20]) or "none"
    for name in required:
        if name in names:
            continue
        close = get_close_matches(name, [shown(item).strip("'") for item in names if item not in known], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        problems.append(f"column {name} is missing (columns there: {there}){hint}")
    if len(names) == 1 and len(required) > 1:
        other = [char for char in ",;\t|" if char != delimiter and char in names[0]]
        problems += [f"its cells seem to be separated by {char!r}, not by {delimiter!r}" for char in other[:1]]
    return problems


def _is_utf8(cell: str) -> bool:
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parquet(path: Path, content: bytes, required: Sequence[str], optional: Sequence[str]) -> Table:
    # Imported where it is needed: it takes longer to load than most commands take to answer.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(content))
        names = list(file.schema_arrow.names)
        problems = _header_problems(names, required, optional, "")
        if problems:
            raise DataError(str(path), problems)
        wanted = [name for name in (*required, *optional) if name in names]
        table = file.read(columns=wanted)
        columns = {name: table.column(name).to_pylist() for name in wanted}
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        # The cause may quote cells, so it is not passed on.
        raise DataError(str(path), ["it is not a readable Parquet file"]) from None
    rows = []
    for number, cells in enumerate(zip(*columns.values(), strict=True), start=2):
        nested = [name for name, cell in zip(wanted, cells, strict=True) if isinstance(cell, (bytes, list, dict))]
        problems += [f"row {number}: column {name} does not hold text or numbers" for name in nested]
        if not nested:
            rows.append(Row(number, {name: _text(cell) for name, cell in zip(wanted, cells, strict=True)}))
    return Table(path, tuple(wanted), tuple(rows), tuple(problems))


def _text(cell: Any) -> str:  # noqa: ANN401 - whatever Parquet holds
    if cell is None or cell != cell:  # only NaN differs from itself
        return ""
    return str(cell)
