"""Tables in parts: every row once, in order, with all columns; the same mistakes are found as in whole tables."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from csv_files import SECRET, write_csv

from sparse_evidence.core.corpus.parts import ROWS_PER_PART, STDIO, Format, format_of, open_table
from sparse_evidence.core.corpus.writing import Column, create_table
from sparse_evidence.core.errors import DataError, UserError


def read(path):
    with open_table(path, format_of(path, None)) as source:
        return [(part.numbers, part.records()) for part in source.parts()]


def rows_of(path):
    return [record for _, records in read(path) for record in records]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_every_row_comes_once_and_in_order(tmp_path, suffix):
    rows = [[str(number), f'a "b", c\td\n{number}', ""] for number in range(2 * ROWS_PER_PART + 5)]
    path = tmp_path / f"table.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], ["id", "post", "ü"]), path)
    else:
        write_csv(path, ["id", "post", "ü"], *rows, delimiter="\t" if suffix == "tsv" else ",")
    parts = read(path)
    assert [len(records) for _, records in parts] == [ROWS_PER_PART, ROWS_PER_PART, 5]
    assert [record for _, records in parts for record in records] == rows
    assert [number for numbers, _ in parts for number in numbers] == list(range(2, len(rows) + 2))


def test_long_rows_make_short_parts(tmp_path):
    path = write_csv(tmp_path / "long.csv", ["post"], *[["x" * 3_000_000]] * 5)
    assert [len(records) for _, records in read(path)] == [3, 2]


def test_blank_lines_are_no_rows_but_rows_of_empty_cells_are(tmp_path):
    (tmp_path / "a.csv").write_text("id,post\n\n1,x\n   \n,\n2,y\n\n")
    assert [(list(numbers), records) for numbers, records in read(tmp_path / "a.csv")] == [
        ([3, 5, 6], [["1", "x"], ["", ""], ["2", "y"]])
    ]


def test_how_much_has_been_read_is_known(tmp_path):
    for path in (tmp_path / "t.csv", tmp_path / "t.parquet"):
        frame = pd.DataFrame({"post": ["one two three " * 20] * (3 * ROWS_PER_PART)})
        frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
        with open_table(path, format_of(path, None)) as source:
            shares = [source.share for _ in source.parts()]
        assert sorted(shares) == shares
        assert 0.2 < shares[0] < 0.5
        assert shares[-1] == 1


READ = {
    "in parts": "with open_table(path, Format.PARQUET) as table: rows = [p.records() for p in table.parts()]",
    "as a whole": "read_table(path, ['post'])",
}


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("reading", READ.values(), ids=READ)
def test_parquet_is_read_without_threads_that_could_outlive_python(tmp_path, reading):
    """A thread of Arrow's that is still reading while Python exits aborts the process (apache/arrow#34314)."""
    pq.write_table(pa.table({"post": ["one", "two"]}), tmp_path / "t.parquet")
    program = f"""
import os, sys
from pathlib import Path
import pyarrow.parquet
from sparse_evidence.core.corpus.parts import Format, open_table
from sparse_evidence.core.corpus.tables import read_table
path, before = Path(sys.argv[1]), len(os.listdir("/proc/self/task"))
{reading}
print(len(os.listdir("/proc/self/task")) - before)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "t.parquet"], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "0\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no rows below the header"),
        (b"post\n", "no rows below the header"),
        (b"id,post\n1,x\n2\n3,x,y\n", "the header has 2 cells, and there are more or fewer in rows 3 and 4"),
        (b"id,post\n1,\xe4\n2,x\n3,\xff\n", "column 'post' is not UTF-8 in rows 2 and 4; save the file as UTF-8"),
        ("id,p\xf6st\n1,x\n".encode("latin-1"), "row 1: the header is not UTF-8"),
        ("id,post\n1,x\n".encode("utf-16"), "encoded in UTF-16"),
        (b"id,post\n1,\x00\n", "not a text file"),
        (b'id,post\n1,"open\n', "row 2: a cell that starts with a quotation mark does not end with one"),
    ],
)
def test_mistakes_are_named_and_no_text_is_shown(tmp_path, content, problem):
    path = tmp_path / "t.csv"
    path.write_bytes(content.replace(b"x", SECRET.encode()))
    with pytest.raises(DataError) as caught:
        read(path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
    assert SECRET not in str(caught.value)


def test_dates_that_python_does_not_know(tmp_path):
    pq.write_table(pa.table({"day": pa.array([10**7], pa.date32()), "post": ["x"]}), tmp_path / "t.parquet")
    with open_table(tmp_path / "t.parquet", Format.PARQUET) as source:
        (part,) = source.parts()
        assert part.cells(1) == ["x"]
        with pytest.raises(DataError, match="column 'day' holds values that cannot be read, such as dates outside"):
            part.cells(0)


def test_mistakes_of_parquet(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read(path)
    pq.write_table(pa.table({"post": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match="no rows"):
        read(path)
    pq.write_table(pa.table({"post": [[SECRET]]}), path)
    with pytest.raises(DataError, match="column 'post' does not hold text or numbers"):
        read(path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("t.cvs", "does not exist; did you mean t.csv"), ("folder", "is a folder"), ("a\0b", "cannot be read")],
)
def test_files_that_cannot_be_read(tmp_path, name, sentence):
    (tmp_path / "t.csv").write_text("post\nx\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=sentence), open_table(tmp_path / name, Format.CSV):
        pass


def test_formats_are_chosen_by_suffix(tmp_path):
    assert format_of(tmp_path / "a.PQ", None) == "parquet"
    assert format_of(STDIO, None) == "csv"
    assert format_of(STDIO, Format.TSV) == "tsv"
    assert format_of(tmp_path / "pipe", Format.PARQUET) == "parquet"
    assert format_of(tmp_path / "a.csv", Format.PARQUET) == "csv"
    assert format_of(tmp_path / "a.fifo", Format.TSV) == "tsv"
    for path in (tmp_path / "a.xlsx", tmp_path / "a"):
        with pytest.raises(UserError, match=r"allowed are \.csv, \.tsv and \.parquet"):
            format_of(path, None)


# --- writing ----------------------------------------------------------------------------------------------------------


def copy(source, target, repeats=1):
    with open_table(source, format_of(source, None)) as table, create_table(target, format_of(target, None)) as sink:
        for part in table.parts():
            flags = [number % 2 for number in part.numbers for _ in range(repeats)]
            scores = [0.1 + 0.2 if flag else None for flag in flags]
            sink.write(part, [Column("flag", "flag", flags), Column("score", "number", scores)], repeats)


def test_types_of_parquet_stay(tmp_path):
    table = pa.table(
        {
            "when": pa.array([1, None, 3], pa.timestamp("ns", "UTC")),
            "tags": [["a"], [], None],
            "post": pa.array(["x", "y", None]).dictionary_encode(),
            "n": pa.array([1, None, 3], pa.uint16()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    copy(tmp_path / "in.parquet", tmp_path / "out.parquet", repeats=2)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.select(table.column_names).to_pylist() == [row for row in table.to_pylist() for _ in range(2)]
    assert [found.schema.field(name).type for name in table.column_names] == table.schema.types
    assert found["flag"].to_pylist() == [0, 0, 1, 1, 0, 0]
    assert found["score"].to_pylist() == [None, None, 0.1 + 0.2, 0.1 + 0.2, None, None]


def test_csv_becomes_csv_with_the_same_cells(tmp_path):
    cells = [["007", 'a "b"', "1\n2", " x "], ["", "", "", ""], ["1.50", ";", "\t", "ü"]]
    path = write_csv(tmp_path / "in.csv", ["id", "id", "c d", ""], *cells)
    for name in ("out.csv", "out.tsv"):
        copy(path, tmp_path / name)
        header, *rows = pd.read_csv(
            tmp_path / name, sep=None, engine="python", header=None, dtype=str, keep_default_na=False
        ).values.tolist()  # fmt: skip
        assert header == ["id", "id", "c d", "", "flag", "score"]
        assert [row[:4] for row in rows] == cells
        assert [float(row[5] or 0) for row in rows] == [0, 0.1 + 0.2, 0]


def test_row_groups_are_of_a_useful_size(tmp_path):
    path = write_csv(tmp_path / "in.csv", ["post"], *[[str(number)] for number in range(40_000)])
    copy(path, tmp_path / "out.parquet")
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert file.num_row_groups == 3
    assert file.read()["post"].to_pylist() == [str(number) for number in range(40_000)]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("old")
    for error in (DataError("t", ["a mistake"]), KeyboardInterrupt()):
        with pytest.raises(type(error)), create_table(path, Format.CSV):
            raise error
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["out.csv"]


def test_links_stay_and_devices_are_written_to(tmp_path):
    source = write_csv(tmp_path / "in.csv", ["post"], ["x"])
    (tmp_path / "target.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("target.csv")
    copy(source, tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "target.csv").read_text() == "post,flag,score\nx,0,\n"
    with create_table(Path("/dev/null"), Format.CSV) as sink:
        assert sink is not None
    assert Path("/dev/null").is_char_device()


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be written"), create_table(tmp_path / "no" / "out.csv", Format.CSV):
        pass
