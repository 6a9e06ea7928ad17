"""Tables that may be larger than memory, read in parts of some rows with all their columns."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ..cache import STDOUT
from ..errors import DataError
from .columns import quote_name
from .formats import other_format
from .problems import RowProblems
from .tables import (
    add_broken,
    add_ragged,
    cell_text,
    cells_of_any_length,
    is_utf8,
    parquet_cells,
    parse_records,
    readable,
    separator_of,
)


class Format(StrEnum):
    """How a table is stored."""

    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"


DELIMITERS = {Format.CSV: ",", Format.TSV: "\t"}

STDIO = STDOUT
"""The name that means standard input or standard output."""
ROWS_PER_PART = 1024
CHARACTERS_PER_PART = 2**23
"""A part ends with the row that reaches this length, however few rows it has."""

_SUFFIXES = {".csv": Format.CSV, ".tsv": Format.TSV, ".parquet": Format.PARQUET, ".pq": Format.PARQUET}
_BUFFER = 2**20


class Part(Protocol):
    """Consecutive rows of a table."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns, as they are in the table."""

    @property
    def numbers(self) -> Sequence[int]:
        """[rows]: as in a spreadsheet: the header is row 1, and a cell with line breaks does not add rows."""

    def cells(self, column: int) -> list[str]:
        """The cells of a column as text, `[rows]`. Raises a `DataError` if they hold neither text nor numbers."""

    def records(self) -> list[list[str]]:
        """All cells as text, `[rows][columns]`. Raises a `DataError` as `cells`."""

    def arrow(self) -> Any:  # noqa: ANN401 - pyarrow has no stubs
        """The rows as a `pyarrow.Table`, with the types that they were read with."""


class Source(Protocol):
    """A table that is being read."""

    @property
    def where(self) -> str:
        """What messages call it."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns, as they are in the table."""

    @property
    def share(self) -> float | None:
        """How much has been read, 0 to 1; None if nobody knows how much there is."""

    def parts(self) -> Iterator[Part]:
        """Yield the rows. Raises a `DataError` if a row cannot be read, or if there is none."""


def format_of(path: Path, named: Format | None) -> Format:
    """Return the format of a table by its suffix; of standard input and output, and with other suffixes, `named`.

    Raises:
        UserError: the suffix is not supported, and no format is named.
    """
    if path == STDIO:
        return named or Format.CSV
    suffix = path.suffix.lower()
    found = _SUFFIXES.get(suffix, named)
    if found is None:
        raise other_format(path, ".csv, .tsv and .parquet, or name its format")
    return found


@contextmanager
def open_table(path: Path, form: Format) -> Iterator[Source]:
    """Open a table for reading it once, from its first row to its last.

    Args:
        path: a file, or `STDIO` for standard input.
        form: its format; CSV and TSV in UTF-8, with a header.

    Raises:
        UserError: the file cannot be read.
        DataError: it has no header, or its content does not match its format.
    """
    where = "standard input" if path == STDIO else str(path)
    with ExitStack() as stack:
        if path == STDIO:
            file: BinaryIO = sys.stdin.buffer
        else:
            with readable(path, Path()):
                file = stack.enter_context(path.open("rb"))
        if form == Format.PARQUET:
            yield _ParquetSource(where, stack.enter_context(_seekable(file)))
        else:
            yield _TextSource(where, file, DELIMITERS[form])


# ---- CSV and TSV -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _TextPart:
    where: str
    columns: tuple[str, ...]
    numbers: Sequence[int]
    rows: list[list[str]] = field(repr=False)

    def cells(self, column: int) -> list[str]:
        return [row[column] for row in self.rows]

    def records(self) -> list[list[str]]:
        return self.rows

    def arrow(self) -> Any:  # noqa: ANN401
        import pyarrow as pa

        arrays = [pa.array(self.cells(column), pa.string()) for column in range(len(self.columns))]
        return pa.Table.from_arrays(arrays, names=list(self.columns))


class _TextSource:
    """CSV or TSV."""

    def __init__(self, where: str, file: BinaryIO, delimiter: str) -> None:
        self.where = where
        self._file, self._size = file, _size(file)
        self._problems = RowProblems()
        # Bytes that are not UTF-8 become lone surrogates, so that all of them can be reported by row.
        self._text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        lines = self._lines()
        first = next(lines, "")
        self._records = parse_records(chain([first], lines), separator_of(first, delimiter), self._problems)
        with cells_of_any_length():
            number, names = next(self._records, (0, []))
        self._check()
        if not number:
            raise DataError(where, ["it is empty"])
        if not all(map(is_utf8, names)):
            raise DataError(where, ["row 1: the header is not UTF-8; save the file as UTF-8"])
        self.columns = tuple(names)

    @property
    def share(self) -> float | None:
        return None if self._size is None else self._file.tell() / self._size

    def parts(self) -> Iterator[Part]:
        empty = True
        while rows := self._next_rows():
            empty = False
            yield _TextPart(self.where, self.columns, [number for number, _ in rows], [row for _, row in rows])
        if empty:
            raise _no_rows(self.where)

    def _next_rows(self) -> list[tuple[int, list[str]]]:
        rows: list[tuple[int, list[str]]] = []
        characters = 0
        with cells_of_any_length():
            for number, record in self._records:
                if len(record) != len(self.columns):
                    if any(cell.strip() for cell in record):
                        add_ragged(number, len(record), len(self.columns), self._problems)
                    continue  # a blank line is no row
                broken = (name for name, cell in zip(self.columns, record, strict=True) if not is_utf8(cell))
                add_broken(number, broken, self._problems)
                rows.append((number, record))
                characters += sum(map(len, record))
                if len(rows) == ROWS_PER_PART or characters > CHARACTERS_PER_PART:
                    break
        self._check()
        return rows

    def _lines(self) -> Iterator[str]:
        with readable(Path(self.where), Path()):
            for count, line in enumerate(self._text):
                if count == 0 and line.startswith(("\udcff\udcfe", "\udcfe\udcff")):
                    raise DataError(self.where, ["it is encoded in UTF-16; save it as UTF-8"])
                if "\x00" in line:
                    raise DataError(self.where, ["it is not a text file; save the table as CSV in UTF-8"])
                yield line

    def _check(self) -> None:
        if self._problems:
            raise DataError(self.where, self._problems.entries())


# ---- Parquet ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _ParquetPart:
    where: str
    columns: tuple[str, ...]
    numbers: Sequence[int]
    table: Any = field(repr=False)

    def cells(self, column: int) -> list[str]:
        values = parquet_cells(self.where, self.columns[column], self.table.column(column))
        if any(isinstance(value, (bytes, list, dict)) for value in values):
            name = quote_name(self.columns[column])
            raise DataError(self.where, [f"column {name} does not hold text or numbers"])
        return [cell_text(value) for value in values]

    def records(self) -> list[list[str]]:
        columns = [self.cells(column) for column in range(len(self.columns))]
        return [list(row) for row in zip(*columns, strict=True)]

    def arrow(self) -> Any:  # noqa: ANN401
        return self.table


class _ParquetSource:
    """Parquet; a row group is read in parts, too."""

    def __init__(self, where: str, file: BinaryIO) -> None:
        # Imported only when needed: it takes longer to load than most commands take to run.
        import pyarrow.parquet as pq

        self.where = where
        with self._readable():
            # with its default, pre_buffer=True, a whole row group is read at once, which may be the whole table
            self._file = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
            self.columns = tuple(self._file.schema_arrow.names)
            self._rows = int(self._file.metadata.num_rows)
        self._read = 0

    @property
    def share(self) -> float | None:
        return self._read / self._rows if self._rows else None

    def parts(self) -> Iterator[Part]:
        import pyarrow as pa

        if not self._rows:
            raise _no_rows(self.where)
        with self._readable():
            # without threads: one of Arrow's that still reads while Python exits aborts the process (arrow#34314)
            batches = self._file.iter_batches(ROWS_PER_PART, use_threads=False)
        while True:
            with self._readable():
                batch = next(batches, None)
            if batch is None:
                return
            numbers = range(self._read + 2, self._read + 2 + len(batch))
            self._read += len(batch)
            yield _ParquetPart(self.where, self.columns, numbers, pa.Table.from_batches([batch]))

    @contextmanager
    def _readable(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError, OverflowError):
            # The cause may quote cells, so it is not chained.
            raise DataError(self.where, ["it is not a readable Parquet file"]) from None


# ---- helpers ---------------------------------------------------------------------------------------------------------


def _no_rows(where: str) -> DataError:
    return DataError(where, ["it has no rows below the header"])


def _size(file: BinaryIO) -> int | None:
    """Bytes of a regular file; None for a pipe."""
    return os.fstat(file.fileno()).st_size or None if file.seekable() else None


@contextmanager
def _seekable(file: BinaryIO) -> Iterator[BinaryIO]:
    """The file itself, or a temporary copy of a pipe: Parquet has its index at the end."""
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy
