"""Reading CSV, TSV and Parquet tables as text. Problems are reported by row and never quote a post's text."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from ..errors import DataError, UserError, nearest, quote_value
from .columns import is_name, quote_name
from .formats import other_format
from .problems import RowProblems

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SEPARATORS = ",;\t|"
_PARQUET = (".parquet", ".pq")
_LABELS = {"0": 0, "false": 0, "f": 0, "no": 0, "n": 0, "1": 1, "true": 1, "t": 1, "yes": 1, "y": 1}
_LABEL_AS_DECIMAL = re.compile(r"([01])[.,]0+")  # what spreadsheets and pandas make of 0 and 1
_MAX_LABEL_LENGTH = 12
_MAX_CELL_LENGTH = 2**30  # characters; the csv module's default of 131,072 is too short for long records

# The csv module's field size limit is global to the process.
_csv_limit = Lock()


@dataclass(frozen=True)
class Row:
    """One record: the cells of the requested columns."""

    number: int
    """As in a spreadsheet: the header is row 1, and a cell with line breaks does not add rows."""
    cells: dict[str, str] = field(repr=False)  # representations end up in logs and tracebacks

    def __getitem__(self, column: str) -> str:
        """Return the cell without surrounding whitespace."""
        return self.cells[column].strip()


@dataclass(frozen=True, eq=False)
class Table:
    """The valid rows of a file, and the problems of the other rows, to which a reader of the rows adds its own."""

    path: Path
    columns: tuple[str, ...]
    """The requested columns that the file has."""
    rows: tuple[Row, ...]
    problems: RowProblems


def read_table(
    path: Path,
    required: Sequence[str],
    optional: Sequence[str] | None = (),
    *,
    folder: Path | None = None,
    remedy: str = "",
    check: Callable[[Sequence[str]], Sequence[str]] = lambda _: (),
) -> Table:
    """Read the named columns of a .csv, .tsv (UTF-8, with header) or .parquet file; all cells are text.

    Text may be compressed (.csv.gz), and its cells may be separated as its header is: see `separator_of`.

    Rows that cannot be read are skipped and reported in `Table.problems`.

    Args:
        path: the file.
        required: columns that the file must have.
        optional: columns that it may have. None: every other column that has a name of its own and holds text,
            numbers or truth values.
        folder: where a relative path starts; default: the current folder.
        remedy: what to do about a missing column whose name resembles none that the file has.
        check: called with the names of all columns that the file has; returns what is wrong with them.

    Raises:
        UserError: the file does not exist or may not be read, or its suffix is not supported.
        DataError: it has no header, lacks a required column, or its content does not match its suffix.
    """
    folder = folder or Path()
    path = folder / path
    compressed = path.suffix.lower() == ".gz"
    suffix = Path(path.stem).suffix.lower() if compressed else path.suffix.lower()
    if suffix not in _DELIMITERS and (compressed or suffix not in _PARQUET):
        raise other_format(path, ".csv, .tsv and .parquet")
    content = _read_bytes(path, folder)
    if compressed:
        content = _unpacked(path, content)
    if not content.strip():
        raise DataError(str(path), ["it is empty"])
    wanted = _Wanted(required, optional, remedy, check)
    if suffix in _PARQUET:
        return _parquet(path, content, wanted)
    return _csv(path, content, _DELIMITERS[suffix], wanted)


def separator_of(header: str, usual: str) -> str:
    """Return what separates the cells of a table: `usual`, unless its first line has none of them but another.

    Spreadsheets write semicolons where a comma is the decimal sign.
    """
    if usual in header:
        return usual
    counts = {separator: header.count(separator) for separator in _SEPARATORS}
    most = max(counts, key=lambda separator: counts[separator])
    return most if counts[most] else usual


def quote_label(value: str) -> str:
    """Quote a cell that should hold a label; more than a short word may be a post in the wrong column."""
    return quote_value(value, max_words=1, max_length=_MAX_LABEL_LENGTH)


def label_of(cell: str) -> int | None:
    """Return 1 or 0 for a cell such as `1`, `yes` or `TRUE`; None if it holds neither."""
    word = cell.strip().lower()
    decimal = _LABEL_AS_DECIMAL.fullmatch(word)
    return _LABELS.get(decimal[1] if decimal else word)


def parse_label(row: Row, column: str, problems: RowProblems) -> int | None:
    """Return 0 or 1; None, with the problem added to `problems`, if the cell is neither."""
    label = label_of(row[column])
    if label is None:
        problems.add(
            row.number,
            f"{column} is {{}}",
            value=quote_label(row[column]),
            remedy="allowed are 0 and 1, or no and yes",
        )
    return label


def criterion_in_words(name: str) -> str:
    """Return what stands for the text of a criterion that has only a name."""
    return name.replace("_", " ")


def find_passage(passage: str, post: str) -> tuple[int, int] | None:
    """Return start and end of the passage in the post, or None; passage and post may differ in whitespace."""
    words = passage.split()
    if not words:
        return None
    start = post.find(passage)
    if start >= 0:
        return start, start + len(passage)
    match = re.search(r"\s+".join(map(re.escape, words)), post)
    return match.span() if match else None


class FirstValues:
    """The first value of every key; a later row with another value is a problem.

    Args:
        what: what the values are: "the group".
        of: what the keys are: "post".
    """

    def __init__(self, what: str, of: str) -> None:
        self._what, self._of = what, of
        self._values: dict[str, tuple[str, int]] = {}

    def add(self, key: str, value: str, row: int, problems: RowProblems) -> None:
        """Remember the value if it is the key's first, otherwise compare it with the first."""
        first, first_row = self._values.setdefault(key, (value, row))
        if first != value:
            problems.add(
                row,
                f"{self._what} of {self._of} {quote_value(key)} differs from row {first_row}",
                many=f"{self._what} of a {self._of} differs from an earlier row",
            )

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> str:
        return self._values[key][0]

    def __iter__(self) -> Iterator[str]:
        """Yield the keys in the order in which they came."""
        return iter(self._values)


class FirstLabels:
    """The first label of every post and criterion; a later row with another label is a problem."""

    def __init__(self) -> None:
        self._labels: dict[tuple[str, str], tuple[int, int]] = {}

    def add(self, post: str, criterion: str, label: int, row: int, problems: RowProblems) -> bool:
        """Remember the label if it is the first, otherwise compare it; return whether an earlier row has the same."""
        known = (post, criterion) in self._labels
        first, first_row = self._labels.setdefault((post, criterion), (label, row))
        if first != label:
            problems.add(
                row,
                f"post {quote_value(post)} and criterion {quote_value(criterion)} have label {label}, but "
                f"label {first} in row {first_row}",
                many="a post and criterion have another label than in an earlier row",
            )
        return known and first == label

    def __iter__(self) -> Iterator[tuple[str, str, int]]:
        """Yield posts, criteria and labels."""
        return ((post, criterion, label) for (post, criterion), (label, _) in self._labels.items())


def _read_bytes(path: Path, folder: Path) -> bytes:
    with readable(path, folder):
        return path.read_bytes()


def _unpacked(path: Path, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        raise DataError(str(path), ["it is not a complete gzip file"]) from None


@contextmanager
def readable(path: Path, folder: Path) -> Iterator[None]:
    """Turn what goes wrong when `path` is opened or read into a `UserError`.

    Args:
        path: the file.
        folder: where relative paths start.
    """
    try:
        yield
    except FileNotFoundError:
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, siblings)
        hint = f"did you mean {close}?" if close else f"relative paths are resolved from {folder.absolute()}"
        raise UserError(f"file {path} does not exist; {hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the file in it") from None
    except PermissionError:
        raise UserError(f"{path} may not be read by this user; change its permissions") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte in it
        raise UserError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None


@dataclass(frozen=True)
class _Wanted:
    """The columns that are asked for; see `read_table`."""

    required: Sequence[str]
    optional: Sequence[str] | None
    remedy: str
    check: Callable[[Sequence[str]], Sequence[str]]

    @property
    def named(self) -> tuple[str, ...]:
        """Those that are asked for by name."""
        return (*self.required, *(self.optional or ()))

    def of(self, names: Sequence[str]) -> list[str]:
        """Return those of the columns that the file has, each once."""
        optional = self.optional
        if optional is None:
            optional = [name for name in names if name and names.count(name) == 1]
        return [name for name in dict.fromkeys((*self.required, *optional)) if name in names]


def _csv(path: Path, content: bytes, delimiter: str, wanted: _Wanted) -> Table:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(str(path), ["it is encoded in UTF-16; save it as UTF-8"])
    if b"\x00" in content:
        raise DataError(str(path), ["it is not a text file; save the table as CSV in UTF-8"])
    problems = RowProblems()
    # Bytes that are not UTF-8 become lone surrogates, so that all of them can be reported by row.
    text = content.decode("utf-8-sig", "surrogateescape")
    records = _records(text, separator_of(text.lstrip().partition("\n")[0], delimiter), problems)
    names = [name.strip() for name in records[0][1]] if records else []
    mistakes = [*problems.entries(), *_header_problems(names, wanted)]
    if not all(map(is_utf8, wanted.of(names))):
        mistakes.append("row 1: the header is not UTF-8; save the file as UTF-8")
    if mistakes:
        raise DataError(str(path), mistakes)
    columns = {name: names.index(name) for name in wanted.of(names)}
    rows = []
    for number, record in records[1:]:
        if len(record) != len(names):
            add_ragged(number, len(record), len(names), problems)
            continue
        cells = {name: record[index] for name, index in columns.items()}
        broken = [name for name, cell in cells.items() if not is_utf8(cell)]
        add_broken(number, broken, problems, wanted.named)
        if not broken:
            rows.append(Row(number, cells))
    return Table(path, tuple(columns), tuple(rows), problems)


def _records(text: str, delimiter: str, problems: RowProblems) -> list[tuple[int, list[str]]]:
    """Return row number and cells of every record; blank rows are counted but skipped."""
    records = parse_records(io.StringIO(text, newline=""), delimiter, problems)
    with cells_of_any_length():
        return [(number, record) for number, record in records if any(cell.strip() for cell in record)]


@contextmanager
def cells_of_any_length() -> Iterator[None]:
    """Let the csv module read long cells; in other threads, too, so hold it for as short as possible."""
    with _csv_limit:
        previous = csv.field_size_limit(_MAX_CELL_LENGTH)
        try:
            yield
        finally:
            csv.field_size_limit(previous)


def parse_records(lines: Iterable[str], delimiter: str, problems: RowProblems) -> Iterator[tuple[int, list[str]]]:
    """Yield row number and cells of every record, blank ones included.

    Args:
        lines: with their line ends.
        delimiter: what separates cells.
        problems: if a record cannot be parsed, this is added here, and the records end.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 0
    while True:
        number += 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error:
            problems.add(
                number,
                "a cell that starts with a quotation mark does not end with one (write a quotation mark inside a "
                "quoted cell twice)",
                remedy="the rows after it were not read",
            )
            return
        yield number, record


def _header_problems(names: list[str], wanted: _Wanted) -> list[str]:
    required, known = wanted.required, wanted.named
    problems = list(wanted.check(names))
    problems += [
        f"column {name} occurs {names.count(name)} times in the header" for name in known if names.count(name) > 1
    ]
    present = ", ".join(quote_name(name, known) for name in names[:20]) or "none"
    for name in required:
        if name in names:
            continue
        close = nearest(name, [item for item in names if item not in known and is_name(item)])
        hint = f"; did you mean {close!r}?" if close else f"; {wanted.remedy}" if wanted.remedy else ""
        problems.append(f"column {name} is missing (the file has: {present}){hint}")
    return problems


def add_ragged(row: int, cells: int, columns: int, problems: RowProblems) -> None:
    """Add that a row has more or fewer cells than the header."""
    problems.add(
        row,
        f"it has {cells} cells, but the header has {columns}",
        many=f"the header has {columns} cells, and there are more or fewer",
    )


def add_broken(row: int, columns: Iterable[str], problems: RowProblems, known: Collection[str] = ()) -> None:
    """Add that a row has cells that are not UTF-8, in these columns; the user has named those that are `known`."""
    for name in columns:
        problems.add(row, f"column {quote_name(name, known)} is not UTF-8", remedy="save the file as UTF-8")


def is_utf8(cell: str) -> bool:
    """False if the cell holds bytes that were not UTF-8 (`surrogateescape`)."""
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parquet(path: Path, content: bytes, wanted: _Wanted) -> Table:
    # Imported only when needed: it takes longer to load than most commands take to run.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without threads: one of Arrow's that still reads while Python exits aborts the process (apache/arrow#34314).
        file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
        names = list(file.schema_arrow.names)
        mistakes = _header_problems(names, wanted)
        if mistakes:
            raise DataError(str(path), mistakes)
        if wanted.optional is None:
            names = [
                field.name
                for field in file.schema_arrow
                if field.name in wanted.required or not _holds_bytes(field.type)
            ]
        columns = wanted.of(names)
        table = file.read(columns=columns, use_threads=False)
    except (pa.ArrowException, OSError, ValueError, OverflowError):
        # The cause may quote cells, so it is not chained.
        raise DataError(str(path), ["it is not a readable Parquet file"]) from None
    cells_of = {name: parquet_cells(str(path), name, table.column(name), wanted.named) for name in columns}
    rows, problems = [], RowProblems()
    for number, values in enumerate(zip(*cells_of.values(), strict=True), start=2):
        cells = dict(zip(columns, values, strict=True))
        nested = [name for name, cell in cells.items() if isinstance(cell, (bytes, list, dict))]
        for name in nested:
            what = name if name in wanted.named else quote_name(name)
            problems.add(number, f"column {what} does not hold text or numbers")
        if not nested:
            rows.append(Row(number, {name: cell_text(cell) for name, cell in cells.items()}))
    return Table(path, tuple(columns), tuple(rows), problems)


def parquet_cells(where: str, name: str, column: Any, known: Collection[str] = ()) -> list[Any]:  # noqa: ANN401
    """Return a column of Arrow as values of Python; see `quote_name` for `known`.

    Raises:
        DataError: Python has no such value.
    """
    import pyarrow as pa

    try:
        cells: list[Any] = column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        problem = "holds values that cannot be read, such as dates outside the years 1 to 9999; save it as text"
        # The cause may quote cells, so it is not chained.
        raise DataError(where, [f"column {quote_name(name, known)} {problem}"]) from None
    return cells


def _holds_bytes(kind: Any) -> bool:  # noqa: ANN401 - a type of Arrow, which has no stubs
    """True if cells of this Arrow type are bytes, lists or dictionaries."""
    import pyarrow as pa

    return bool(pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def cell_text(cell: Any) -> str:  # noqa: ANN401 - any value that Parquet can hold
    """Return a cell of a Parquet table as text; an empty one for null and NaN."""
    if cell is None or cell != cell:  # only NaN is not equal to itself
        return ""
    return str(cell)
