"""Reading tables: the same rows from every format, every problem reported by row, and no post's text in a message."""

import csv
import os
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from csv_files import SECRET, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_evidence.core.corpus.columns import quote_name
from sparse_evidence.core.corpus.problems import RowProblems
from sparse_evidence.core.corpus.tables import (
    FirstValues,
    Row,
    find_passage,
    parse_label,
    read_table,
)
from sparse_evidence.core.errors import DataError, UserError, quote_value

COLUMNS = ("post_id", "post", "label")


def refused(path, *arguments, **options):
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        read_table(path, *arguments, **options)
    return error.value


# ---- what a table becomes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "bom", "CSV"])
def test_every_format_gives_the_same_rows(tmp_path, kind):
    rows = [("p1", 'A "quoted", long\n\npost\t' + "é" * 200_000, "1"), ("p2", "Zwei.", "0")]
    if kind == "parquet":
        columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table({**columns, "label": [1, 0]}), path)
    else:
        delimiter = "\t" if kind == "tsv" else ","
        encoding = "utf-8-sig" if kind == "bom" else "utf-8"
        path = tmp_path / f"t.{'csv' if kind == 'bom' else kind}"
        write_csv(path, COLUMNS, *rows, encoding=encoding, delimiter=delimiter)
    table = read_table(path, COLUMNS)
    assert table.columns == COLUMNS
    assert [row.number for row in table.rows] == [2, 3]
    assert [tuple(row.cells.values()) for row in table.rows] == rows
    assert not table.problems
    assert csv.field_size_limit() < 200_000  # the limit of the process is restored


def test_only_requested_columns_are_read_in_the_requested_order(tmp_path):
    path = write_csv(tmp_path / "t.csv", ("c", "b", "a", "b2"), ("3", "2", "1", "4"))
    table = read_table(path, ("a", "b"), ("c", "d"))
    assert table.columns == ("a", "b", "c")
    assert table.rows[0].cells == {"a": "1", "b": "2", "c": "3"}


def test_every_column_with_a_name_of_its_own_can_be_read(tmp_path):
    path = write_csv(tmp_path / "t.csv", ("c", "", "a", "twice", "twice"), ("3", "2", "1", "4", "5"))
    assert read_table(path, ("a",), None).rows[0].cells == {"a": "1", "c": "3"}
    columns = {"a": ["x"], "nested": [["x"]], "bytes": [b"x"], "kind": pa.array(["k"]).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet", (), None)
    assert table.rows[0].cells == {"a": "x", "kind": "k"}
    assert not table.problems


def test_indexing_a_row_strips_the_cell_and_cells_does_not(tmp_path):
    (row,) = read_table(write_csv(tmp_path / "t.csv", (" a ", "b"), ("  x\n", "y")), ("a",)).rows
    assert row["a"] == "x"
    assert row.cells["a"] == "  x\n"


def test_blank_lines_count_as_rows_and_cells_with_line_breaks_as_one(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,2\n\n"line\nbreak",3\n , \n4,5\n')
    assert [row.number for row in read_table(path, ("a", "b")).rows] == [2, 4, 6]


def test_rows_of_the_wrong_length_are_skipped_and_reported(tmp_path):
    table = read_table(write_csv(tmp_path / "t.csv", ("a", "b"), ("1",), ("1", "2"), ("1", "2", "3")), ("a",))
    assert [row.number for row in table.rows] == [3]
    assert table.problems.entries() == ["the header has 2 cells, and there are more or fewer in rows 2 and 4"]


def test_cells_that_are_not_utf8_are_reported_only_in_requested_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\nok,\xff\n\xe9,ok\n")
    table = read_table(path, ("a",))
    assert [row["a"] for row in table.rows] == ["ok"]
    assert table.problems.entries() == ["row 3: column 'a' is not UTF-8; save the file as UTF-8"]


def test_an_unclosed_quotation_mark_is_reported_by_row(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,2\n"3,4\n5,6\n')
    (problem,) = refused(path, ("a",)).problems
    assert problem.startswith("row 3: a cell that starts with a quotation mark does not end with one")


def test_empty_parquet_cells_are_empty_text(tmp_path):
    columns = {"a": ["x", None], "b": [1.5, float("nan")], "c": [True, None]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    first, second = read_table(tmp_path / "t.parquet", ("a", "b", "c")).rows
    assert first.cells == {"a": "x", "b": "1.5", "c": "True"}
    assert second.cells == {"a": "", "b": "", "c": ""}


def test_nested_parquet_cells_are_skipped_and_reported(tmp_path):
    pq.write_table(pa.table({"a": [["x"], ["y"]], "b": [b"x", b"y"]}), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet", ("a", "b"))
    assert table.rows == ()
    assert table.problems.entries() == [
        "column a does not hold text or numbers in rows 2 and 3",
        "column b does not hold text or numbers in rows 2 and 3",
    ]


def test_a_table_without_rows_has_none(tmp_path):
    assert read_table(write_csv(tmp_path / "t.csv", COLUMNS), COLUMNS).rows == ()
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", ("a",)).rows == ()


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
        ).filter(lambda row: any(cell.strip() for cell in row)),
        max_size=8,
    )
)
def test_any_text_survives_a_csv_file(tmp_path_factory, rows):
    path = write_csv(tmp_path_factory.mktemp("csv") / "t.csv", ("a", "b"), *rows)
    table = read_table(path, ("a", "b"))
    assert [(row.cells["a"], row.cells["b"]) for row in table.rows] == rows


def test_representations_of_rows_and_tables_show_no_cell(tmp_path):
    table = read_table(write_csv(tmp_path / "t.csv", ("a",), (SECRET,)), ("a",))
    assert SECRET not in repr(table)
    assert SECRET not in repr(table.rows[0])


# ---- files that cannot be read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.csv", b"", ["t.csv has 1 mistake: it is empty"]),
        ("t.csv", b"\n \n", ["it is empty"]),
        ("t.csv", b"post_id,post\n", ["column label is missing (the file has: 'post_id', 'post')"]),
        (
            "t.csv",
            b"PostId,post,labels\n",
            ["2 mistakes", "column post_id is missing", "did you mean 'PostId'?", "did you mean 'labels'?"],
        ),
        ("t.csv", b"post_id,post,post,label\n", ["column post occurs 2 times in the header"]),
        ("t.csv", b"p1,I see purple elephants everywhere,1\n", ["the file has: 'p1', a text of 33 characters"]),
        ("t.csv", "post_id,post,label\n".encode("utf-16"), ["UTF-16; save it as UTF-8"]),
        ("t.csv", b"PK\x03\x04\x00\x00", ["it is not a text file"]),
        ("t.parquet", b"post_id,post\n", ["it is not a readable Parquet file"]),
        ("t.parquet", b"PAR1" + bytes(range(200)) + b"PAR1", ["it is not a readable Parquet file"]),
        ("t.xlsx", b"PK", ["ends in '.xlsx'; allowed are .csv, .tsv and .parquet"]),
        ("t", b"PK", ["ends in ''; allowed"]),
    ],
)
def test_files_without_a_valid_table_are_refused(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    message = str(refused(tmp_path / name, COLUMNS))
    for fragment in expected:
        assert fragment in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pears.csv", "does not exist; did you mean pairs.csv?"),
        ("no/such/folder.csv", "does not exist; relative paths are resolved from {folder}"),
        ("folder.csv", "is a folder; name the file in it"),
        ("x" * 300 + ".csv", "cannot be read"),
        ("zero\0byte.csv", "cannot be read"),
    ],
)
def test_files_that_cannot_be_opened_are_refused(tmp_path, path, expected):
    write_csv(tmp_path / "pairs.csv", COLUMNS)
    (tmp_path / "folder.csv").mkdir()
    assert expected.format(folder=tmp_path) in str(refused(Path(path), COLUMNS, folder=tmp_path))


def test_paths_are_relative_to_the_given_folder_or_the_current_one(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "t.csv", ("a",), ("1",))
    assert read_table(Path("t.csv"), ("a",), folder=tmp_path).path == path
    assert read_table(path, ("a",), folder=Path("/nowhere")).path == path
    monkeypatch.chdir(tmp_path)
    assert read_table(Path("t.csv"), ("a",)).path == Path("t.csv")
    assert str(tmp_path) in str(refused(Path("other/u.csv"), ("a",)))


@contextmanager
def without_root_privileges():
    """Root may read every file, so a refusal needs another effective user."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_a_file_without_read_permission_is_refused(tmp_path):
    path = write_csv(tmp_path / "t.csv", ("post_id",))
    path.chmod(0)
    with without_root_privileges():
        message = str(refused(path, ("post_id",)))
    assert message.endswith("t.csv may not be read by this user; change its permissions")


def test_a_table_can_be_read_while_the_error_of_another_is_handled(tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("nothing\n")
    good = write_csv(tmp_path / "good.csv", ("post_id",), ("p1",))
    try:
        read_table(bad, ("post_id",))
    except DataError:
        assert len(read_table(good, ("post_id",)).rows) == 1
    else:
        pytest.fail("the column is missing")


# ---- what the readers share -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "label"),
    [
        ("0", 0),
        ("1", 1),
        (" 1 ", 1),
        ("0.0", 0),
        ("1.0", 1),
        ("TRUE", 1),
        ("False", 0),
        ("Yes", 1),
        ("NO", 0),
        ("y", 1),
        ("n", 0),
        ("t", 1),
        ("f", 0),
    ],
)
def test_labels_are_parsed(cell, label):
    problems = RowProblems()
    assert parse_label(Row(2, {"label": cell}), "label", problems) == label
    assert not problems


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("", "empty"),
        ("2", "'2'"),
        ("maybe", "'maybe'"),
        ("two words", "a text of 9 characters"),
        ("x" * 12, f"'{'x' * 12}'"),
        ("x" * 13, "a text of 13 characters"),
        ("睡" * 13, "a text of 13 characters"),
    ],
)
def test_cells_that_are_not_a_label_are_reported(cell, shown):
    problems = RowProblems()
    assert parse_label(Row(7, {"label": cell}), "label", problems) is None
    assert problems.entries() == [f"row 7: label is {shown}; allowed are 0 and 1, or no and yes"]


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("", "empty"),
        ("one", "'one'"),
        ("one two three", "'one two three'"),
        ("one two three four", "a text of 18 characters"),
        ("x" * 40, f"'{'x' * 40}'"),
        ("x" * 41, "a text of 41 characters"),
        ("失眠", "'失眠'"),
        ("睡" * 20, f"'{'睡' * 20}'"),
        ("睡" * 21, "a text of 21 characters"),
        (f"是 {'睡' * 21}", "a text of 23 characters"),
        ("ฉันนอนไม่หลับเมื่อคืนนี้", "a text of 24 characters"),
        ("https://example.org/posts/17", "a text of 28 characters"),
        ("123e4567-e89b-12d3-a456-426614174000", "'123e4567-e89b-12d3-a456-426614174000'"),
        ("little_interest_or_pleasure", "'little_interest_or_pleasure'"),
        ("line\nbreak", r"'line\nbreak'"),
    ],
)
def test_short_values_are_quoted_and_long_ones_only_measured(value, quoted):
    assert quote_value(value) == quoted


@pytest.mark.parametrize("name", ["p1", "label_2", "Größe", "what.they-wrote", "Post ID", "author ids", "авторы"])
def test_a_name_of_a_column_is_quoted(name):
    assert quote_name(name) == repr(name)


@pytest.mark.parametrize(
    "text", ["I cried", "hopeless!", "Help me", "我想死", "ฉันเหนื่อย", "I post", "x" * 41, "我 post", "a\x00"]
)
def test_what_may_be_a_text_is_no_name(text):
    """The first row of a table without a header is data."""
    assert quote_name(text) == f"a text of {len(text)} characters"
    assert quote_name(text, known=[text]) == quote_value(text)


@pytest.mark.parametrize(
    ("passage", "post", "span"),
    [
        ("b c", "a b c d", (2, 5)),
        ("b c", "a b\n  c d", (2, 7)),
        ("b  c", "b c", (0, 3)),
        ("b c", "a bc d", None),
        ("a.c", "abc a.c", (4, 7)),
        ("a", "b", None),
        ("", "b", None),
        (" \n", "b", None),
        ("b", "b b", (0, 1)),
    ],
)
def test_passages_are_located_despite_different_whitespace(passage, post, span):
    assert find_passage(passage, post) == span


@given(
    st.lists(st.text(st.characters(categories=["L", "P"]), min_size=1, max_size=5), min_size=3, max_size=9), st.data()
)
def test_every_run_of_words_is_located_with_any_whitespace(words, data):
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start + 1, len(words)))
    post = "".join(word + data.draw(st.sampled_from([" ", "\n", " \t"])) for word in words)
    span = find_passage(" ".join(words[start:end]), post)
    assert span is not None
    assert post[span[0] : span[1]].split()[1:-1] == words[start:end][1:-1]


def test_first_values_report_a_later_one_that_differs():
    problems = RowProblems()
    groups = FirstValues("the group", "post")
    groups.add("p1", "u", 2, problems)
    groups.add("p1", "u", 3, problems)
    assert not problems
    groups.add("p1", "v", 4, problems)
    assert problems.entries() == ["row 4: the group of post 'p1' differs from row 2"]
    groups.add("p1", "w", 5, problems)
    assert problems.entries() == ["the group of a post differs from an earlier row in rows 4 and 5"]
    assert groups["p1"] == "u"
    assert "p1" in groups
    assert "p2" not in groups
