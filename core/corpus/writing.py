"""Tables written in parts: rows as they were read, and further columns beside them. A file appears once complete."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from ..cache import open_output
from .parts import DELIMITERS, Format, Part

Kind = Literal["text", "number", "integer", "flag"]
"""What a further column holds: text, floats, integers, or 0 and 1."""

ROWS_PER_GROUP = 2**14
BYTES_PER_GROUP = 2**26
"""A row group of Parquet is written once it is this long, in memory."""


@dataclass(frozen=True, eq=False)
class Column:
    """A further column of some rows."""

    name: str
    kind: Kind
    values: Sequence[Any] = field(repr=False)
    """[rows]; None: an empty cell."""


class Sink(Protocol):
    """A table that is being written."""

    def write(self, part: Part, added: Sequence[Column], repeats: int) -> None:
        """Write rows, each `repeats` times, with further columns `[rows · repeats]`; always those of the first call.

        Raises:
            DataError: a cell cannot be written in this format.
        """

    def close(self) -> None:
        """Write what is still in memory."""


@contextmanager
def create_table(path: Path, form: Format) -> Iterator[Sink]:
    """Write a table. A file appears under its name when the block ends without an error, and otherwise not at all.

    A link stays: what it points to is written. Pipes and devices are written to as the rows come.

    Args:
        path: a file, or `parts.STDIO` for standard output.
        form: the format.

    Raises:
        UserError: the file cannot be written.
    """
    with open_output(path) as file:
        sink: Sink = _ParquetSink(file) if form == Format.PARQUET else _TextSink(file, DELIMITERS[form])
        yield sink
        sink.close()


class _TextSink:
    """CSV or TSV, in UTF-8."""

    def __init__(self, file: BinaryIO, delimiter: str) -> None:
        self._file, self._delimiter = file, delimiter
        self._has_header = False

    def write(self, part: Part, added: Sequence[Column], repeats: int) -> None:
        lines = io.StringIO(newline="")
        writer = csv.writer(lines, delimiter=self._delimiter, lineterminator="\n")
        if not self._has_header:
            writer.writerow([*part.columns, *(column.name for column in added)])
            self._has_header = True
        cells = [[_cell(value) for value in column.values] for column in added]
        records = [record for record in part.records() for _ in range(repeats)]
        writer.writerows([*record, *further] for record, *further in zip(records, *cells, strict=True))
        self._file.write(lines.getvalue().encode())

    def close(self) -> None:
        """Nothing is in memory."""


def _cell(value: object) -> str:
    return "" if value is None else str(value)


class _ParquetSink:
    """Parquet; columns that were read from Parquet keep their types, those of CSV are text."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._writer: Any = None
        self._waiting: list[Any] = []

    def write(self, part: Part, added: Sequence[Column], repeats: int) -> None:
        import pyarrow as pa

        types = {"text": pa.string(), "number": pa.float64(), "integer": pa.int64(), "flag": pa.int8()}
        table = part.arrow()
        if repeats > 1:
            table = table.take(pa.array([row for row in range(len(table)) for _ in range(repeats)], pa.int64()))
        for column in added:
            kind = types[column.kind]
            table = table.append_column(pa.field(column.name, kind), pa.array(column.values, kind))
        self._waiting.append(table)
        rows, size = (sum(values) for values in zip(*((len(t), t.nbytes) for t in self._waiting), strict=True))
        if rows >= ROWS_PER_GROUP or size >= BYTES_PER_GROUP:
            self._write_group()

    def close(self) -> None:
        if self._waiting:
            self._write_group()
        if self._writer is not None:
            self._writer.close()

    def _write_group(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.concat_tables(self._waiting)
        self._waiting = []
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)
