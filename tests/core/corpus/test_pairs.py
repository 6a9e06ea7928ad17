"""The table of pairs: the corpus that a valid one becomes, and the problems that are reported."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from csv_files import SECRET, write_csv

from sparse_evidence.core.corpus.data import UNLABELLED, Evidence
from sparse_evidence.core.corpus.pairs import PairsSource
from sparse_evidence.core.errors import ConfigError, DataError, UserError

HEADER = ("post_id", "post", "criterion", "label")


def pairs(folder, *rows, header=HEADER):
    write_csv(folder / "pairs.csv", header, *rows)
    return PairsSource(path="pairs.csv").load(folder)


def test_pairs_become_a_corpus_in_order_of_appearance(tmp_path):
    corpus = pairs(
        tmp_path,
        ("p2", "Two,\nlines.", "b_first", "1"),
        ("p1", "One.", "a", "0.0"),
        ("p2", "Two,\nlines.", "a", "TRUE"),
    )
    assert corpus.name == "pairs"
    assert corpus.post_ids == corpus.groups == ("p2", "p1")
    assert corpus.posts == ("Two,\nlines.", "One.")
    assert [(item.name, item.text) for item in corpus.criteria] == [("b_first", "b first"), ("a", "a")]
    assert corpus.labels.tolist() == [[1, 1], [UNLABELLED, 0]]
    assert corpus.notes == (
        "1 of 4 pairs have no row and are unlabelled",
        "there is no column group, so each post is its own group",
    )


def test_all_optional_columns(tmp_path):
    header = (*HEADER, "criterion_text", "group", "evidence", "ignored")
    corpus = pairs(
        tmp_path,
        ("p1", "So so sad.", "a", "1", "is sad", "u", "so sad", "?"),
        ("p1", "So so sad.", "a", "1", "", "u", "So", "?"),
        ("p2", "All\n fine.", "a", "0", "is sad", "u", "All fine.", "?"),
        header=header,
    )
    assert corpus.criteria[0].text == "is sad"
    assert corpus.groups == ("u", "u")
    assert corpus.evidence == (Evidence(0, 0, 0, 2), Evidence(0, 0, 3, 9))
    assert corpus.notes == (
        "1 rows that repeat the label of an earlier row were merged with it",
        "the evidence of 1 rows with label 0 was ignored",
        "2 posts form 1 groups",
    )


def test_texts_that_occur_in_two_groups_are_noted(tmp_path):
    corpus = pairs(tmp_path, ("p1", "Same.", "a", "1"), ("p2", "same. ", "a", "0"))
    assert corpus.notes[-1] == "2 posts share their text with a post of another group (for example p1 and p2)"


def test_columns_may_have_other_names(tmp_path):
    header = ("id", "symptom", "text", "present", "author", "quote", "what")
    rows = [
        ("p1", "a", "So so sad.", "yes", "u", "so sad", "is sad"),
        ("p2", "a", "Fine.", "No", "u", "", ""),
    ]
    write_csv(tmp_path / "other.csv", header, *rows)
    names = {"post_id": "id", "post": "text", "criterion": "symptom", "label": "present", "group": "author",
             "evidence": "quote", "criterion_text": "what"}  # fmt: skip
    corpus = PairsSource(path="other.csv", columns=names).load(tmp_path)
    own = (*HEADER, "criterion_text", "group", "evidence")
    order = [(row[0], row[2], row[1], row[3], row[6], row[4], row[5]) for row in rows]
    expected = pairs(tmp_path, *order, header=own)
    assert corpus.fingerprint(evidence=True) == expected.fingerprint(evidence=True)
    assert corpus.labels.tolist() == [[1], [0]]


def test_mistakes_name_the_columns_of_the_file(tmp_path):
    write_csv(tmp_path / "t.csv", ("id", "text", "criterion", "present"), ("p1", "", "a", "1"), ("p2", "x", "a", "2"))
    names = {"post_id": "id", "post": "text", "label": "present"}
    with pytest.raises(DataError) as refused:
        PairsSource(path="t.csv", columns=names).load(tmp_path)
    assert refused.value.problems == (
        "row 2: text is empty",
        "row 3: present is '2'; allowed are 0 and 1, or no and yes",
    )
    with pytest.raises(DataError, match="column author is missing"):
        PairsSource(path="t.csv", columns={**names, "group": "author"}).load(tmp_path)


def test_a_column_that_is_given_to_one_field_is_not_another(tmp_path):
    """The ids are in a column called group, so the table has no groups."""
    write_csv(tmp_path / "t.csv", ("group", "post", "criterion", "label"), ("p1", "x", "a", "1"), ("p2", "y", "a", "0"))
    corpus = PairsSource(path="t.csv", columns={"post_id": "group"}).load(tmp_path)
    assert corpus.post_ids == corpus.groups == ("p1", "p2")
    assert "there is no column group, so each post is its own group" in corpus.notes


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"evidence": {"a": "why"}}, "evidence is for wide tables: give criteria, too"),
        ({"criteria": {"a": ""}, "evidence": {"b": "why"}}, "evidence names 'b', which is not among the criteria"),
        ({"criteria": {"a": ""}, "columns": {"label": "x"}}, "columns names label, which a wide table"),
        ({"columns": {"post": "x", "group": "x"}}, "column 'x' is given for post and for group; a column is one thing"),
        ({"columns": {"group": "label"}}, "column 'label' is given for label and for group"),
        ({"criteria": {"post": ""}}, "column 'post' is given for post and for criterion 'post'"),
        (
            {"criteria": {"a": "", "b": ""}, "evidence": {"a": "b"}},
            "column 'b' is given for criterion 'b' and for the evidence of 'a'",
        ),
    ],
)
def test_settings_that_contradict_each_other(settings, expected):
    with pytest.raises(ConfigError) as refused:
        PairsSource(path="t.csv", **settings)
    assert str(refused.value).startswith(expected)


def test_a_source_with_settings_is_hashable():
    one, other = (PairsSource(path="t.csv", columns={"post": "x"}) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != PairsSource(path="t.csv", columns={"post": "y"})


GOOD = ("p1", SECRET, "a", "1")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([GOOD, ("p2", SECRET, "a", "maybe")], ["row 3: label is 'maybe'; allowed are 0 and 1, or no and yes"]),
        ([GOOD, ("p2", SECRET, "a", "")], ["row 3: label is empty; allowed"]),
        ([GOOD, ("p2", SECRET, "a", SECRET)], ["row 3: label is a text of 16 characters; allowed"]),
        ([GOOD, ("p2", SECRET, "a", "2")], ["row 3: label is '2'"]),
        ([GOOD, ("p2", " ", "a", "1")], ["row 3: post is empty"]),
        ([GOOD, ("", SECRET, " ", "1")], ["row 3: post_id is empty", "row 3: criterion is empty"]),
        ([GOOD, ("p1", "other", "b", "1")], ["row 3: the text of post 'p1' differs from row 2"]),
        ([GOOD, ("p1", SECRET, "a", "0")], ["row 3: post 'p1' and criterion 'a' have label 0, but label 1 in row 2"]),
        ([GOOD, (), ("p2", f"a\n{SECRET}", "a", "1"), ("p3", "x", "a", "x")], ["row 5: label is 'x'"]),
        ([GOOD, ("p2", SECRET, "a")], ["row 3: it has 3 cells, but the header has 4"]),
        ([GOOD, ("p2", SECRET, "a", "1", "")], ["row 3: it has 5 cells, but the header has 4"]),
        ([("p1", SECRET)], ["1 mistake: row 2: it has 2 cells"]),
        ([], ["it has no rows below the header"]),
        (
            [("p1", SECRET, "a", "?"), ("p1", "x", "a", "1"), ("", "y", "a", "1"), ("p3",)],
            ["4 mistakes", "row 2: label", "row 3: the text", "row 4: post_id", "row 5: it has 1 cells"],
        ),
    ],
)
def test_all_mistakes_are_reported_together_and_without_text(tmp_path, rows, expected):
    with pytest.raises(DataError) as refused:
        pairs(tmp_path, *rows)
    assert str(refused.value).startswith(str(tmp_path / "pairs.csv"))
    for fragment in expected:
        assert fragment in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("columns", "rows", "expected"),
    [
        (("group",), [("u",), ("v",)], "row 3: the group of post 'p1' differs from row 2"),
        (("group",), [("u",), ("",)], "row 3: group is empty"),
        (("criterion_text",), [("is a",), ("is not a",)], "row 3: the text of criterion 'a' differs from row 2"),
        (("evidence",), [("",), ("nowhere",)], "row 3: the evidence is not a passage of post 'p1'"),
    ],
)
def test_mistakes_in_optional_columns(tmp_path, columns, rows, expected):
    with pytest.raises(DataError) as refused:
        pairs(tmp_path, *((*GOOD, *more) for more in rows), header=(*HEADER, *columns))
    assert refused.value.problems == (expected,)


def test_parquet_tables_give_the_same_corpus_as_csv(tmp_path):
    rows = [("p1", "Long\n\npost, with comma.", "a", 1), ("p2", "Zwei.", "a", 0)]
    columns = dict(zip(HEADER, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table({**columns, "label": [True, False]}), tmp_path / "pairs.parquet")
    corpus = PairsSource(path="pairs.parquet").load(tmp_path)
    assert corpus.fingerprint() == pairs(tmp_path, *rows).fingerprint()
    assert corpus.labels.tolist() == [[1], [0]]


def test_parquet_cells_without_a_value_are_reported(tmp_path):
    columns = {"post_id": ["p1", "p2"], "post": ["x", None], "criterion": ["a", "a"], "label": [1.0, float("nan")]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 3: post is empty; row 3: label is empty"):
        PairsSource(path="t.parquet").load(tmp_path)


def test_problems_of_the_table_and_of_the_pairs_are_reported_together(tmp_path):
    with pytest.raises(DataError) as refused:
        pairs(tmp_path, ("p1", "x", "a"), ("p2", "y", "a", "maybe"))
    assert refused.value.problems == (
        "row 2: it has 3 cells, but the header has 4",
        "row 3: label is 'maybe'; allowed are 0 and 1, or no and yes",
    )


def test_the_order_of_rows_decides_only_the_order_of_posts_and_criteria(tmp_path):
    rows = [
        (f"p{post}", f"Post {post}.", f"c{column}", (post * column) % 2) for post in range(6) for column in range(3)
    ]
    one, other = pairs(tmp_path, *rows), pairs(tmp_path, *rows[::-1])
    assert one.post_ids == other.post_ids[::-1]
    np.testing.assert_array_equal(one.labels, other.labels[::-1, ::-1])
    assert one.fingerprint() != other.fingerprint()


def test_whitespace_around_ids_and_labels_is_ignored_but_kept_in_posts(tmp_path):
    corpus = pairs(tmp_path, (" p1 ", " One. ", " a ", " 1 "), ("p1", " One. ", "b", "0"))
    assert corpus.post_ids == ("p1",)
    assert corpus.posts == (" One. ",)
    assert [criterion.name for criterion in corpus.criteria] == ["a", "b"]


def test_a_criterion_text_in_any_row_is_used(tmp_path):
    header = (*HEADER, "criterion_text")
    corpus = pairs(tmp_path, ("p1", "x", "a_b", "1", ""), ("p2", "y", "a_b", "0", "is ab"), header=header)
    assert corpus.criteria[0].text == "is ab"


def test_a_repeated_passage_is_one_piece_of_evidence(tmp_path):
    header = (*HEADER, "evidence")
    corpus = pairs(tmp_path, ("p1", "So sad.", "a", "1", "sad"), ("p1", "So sad.", "a", "1", "sad"), header=header)
    assert corpus.evidence == (Evidence(0, 0, 3, 6),)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"t\.csv does not exist"):
        PairsSource(path="t.csv").load(tmp_path)


@pytest.mark.parametrize("name", ["Group", "groups", "GROUP", "grupp", "author_id", "User Name"])
def test_groups_of_another_spelling_are_never_ignored(tmp_path, name):
    """Posts of one author would leak from training into validation."""
    header, rows = (*HEADER, name), [("p1", "x", "a", "1", "u"), ("p2", "y", "a", "0", "u")]
    with pytest.raises(DataError, match=f"column '{name}' looks like group, but is not read: write columns = "):
        pairs(tmp_path, *rows, header=header)
    assert PairsSource(path="pairs.csv", columns={"group": name}).load(tmp_path).groups == ("u", "u")
    assert PairsSource(path="pairs.csv", columns={"group": ""}).load(tmp_path).groups == ("p1", "p2")


def test_other_optional_columns_are_not_ignored_either(tmp_path):
    header = (*HEADER, "group", "Evidence", "Criterion Text", "age_group", "score")
    with pytest.raises(DataError) as refused:
        pairs(tmp_path, ("p1", "x", "a", "1", "u", "x", "t", "9", "3"), header=header)
    assert [problem.partition(",")[0] for problem in refused.value.problems] == [
        "column 'Criterion Text' looks like criterion_text",
        "column 'Evidence' looks like evidence",
    ]
    write_csv(tmp_path / "w.csv", ("post", "sad", "author"), ("x", "1", "u"), ("y", "0", "u"))
    with pytest.raises(DataError, match="column 'author' looks like group"):
        PairsSource(path="w.csv", criteria={"sad": ""}).load(tmp_path)


def test_a_required_column_cannot_be_said_to_be_missing():
    with pytest.raises(ConfigError, match="there is no post, but a table needs one"):
        PairsSource(path="t.csv", columns={"post": "", "group": "", "evidence": ""})


def test_a_wide_table_is_told_how_it_is_read(tmp_path):
    with pytest.raises(DataError) as refused:
        pairs(tmp_path, ("p1", "x", "1", "0"), header=("post_id", "post", "sad", "sleep"))
    (problem,) = refused.value.problems
    assert "name these columns in [data.criteria]" in problem
    assert ".melt(['post_id', 'post'], var_name='criterion', value_name='label')" in problem


@pytest.mark.parametrize("label", ["1.00", "0,0", "yes", "TRUE"])
def test_labels_of_spreadsheets_are_labels(tmp_path, label):
    pairs(tmp_path, ("p1", "x", "a", label))


TEXT = "My name is Bob and since my wife left me in March I cannot sleep"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(f"p{i}", "c0", f"{TEXT} {i}", "1") for i in range(60)], "columns post and criterion seem to be swapped"),
        ([(f"p{i}", TEXT * 9, TEXT * 3, "1") for i in range(60)], "criterion is longer than 100 characters in 60 rows"),
        (
            [(f"p{i}", TEXT, "a", f"{i % 2}!") for i in range(60)],
            "1 mistake: label is '0!' or '1!' in 60 rows, first in",
        ),
        (
            [(f"p{i % 9}", f"{TEXT} {i}", "a", "1") for i in range(60)],
            "the text of a post differs from an earlier row in",
        ),
    ],
)
def test_messages_stay_short_and_show_no_post(tmp_path, rows, expected):
    with pytest.raises(DataError, match=expected) as refused:
        pairs(tmp_path, *rows)
    assert "Bob" not in str(refused.value)
    assert len(str(refused.value)) < 500
