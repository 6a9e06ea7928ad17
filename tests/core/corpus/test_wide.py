"""The wide table: the corpus that a valid one becomes, and the problems that are reported."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from csv_files import SECRET, write_csv

from sparse_evidence.core.corpus.data import UNLABELLED, Evidence
from sparse_evidence.core.corpus.pairs import PairsSource
from sparse_evidence.core.errors import DataError

CRITERIA = {"anger": "Is angry.", "low_mood": ""}
HEADER = ("post_id", "post", "anger", "low_mood")


def wide(folder, *rows, header=HEADER, criteria=CRITERIA, **settings):
    write_csv(folder / "wide.csv", header, *rows)
    return PairsSource(path="wide.csv", criteria=criteria, **settings).load(folder)


def test_a_wide_table_is_the_corpus_of_its_pairs(tmp_path):
    corpus = wide(
        tmp_path,
        ("p2", "Two,\nlines.", "yes", "NO"),
        ("p1", "One.", "", "1.0"),
        ("p3", "Three.", "f", "n/a"),
    )
    assert corpus.name == "wide"
    assert corpus.post_ids == corpus.groups == ("p2", "p1", "p3")
    assert corpus.posts == ("Two,\nlines.", "One.", "Three.")
    assert [(item.name, item.text) for item in corpus.criteria] == [("anger", "Is angry."), ("low_mood", "low mood")]
    assert corpus.labels.tolist() == [[1, 0], [UNLABELLED, 1], [0, UNLABELLED]]
    assert corpus.notes == (
        "2 of 6 pairs have an empty cell and are unlabelled",
        "there is no column group, so each post is its own group",
    )
    long = [("p2", "Two,\nlines.", "anger", 1, "Is angry."), ("p2", "Two,\nlines.", "low_mood", 0, "")]
    long += [("p1", "One.", "low_mood", 1, ""), ("p3", "Three.", "anger", 0, "")]
    header = ("post_id", "post", "criterion", "label", "criterion_text")
    write_csv(tmp_path / "pairs.csv", header, *long)
    assert PairsSource(path="pairs.csv").load(tmp_path).fingerprint() == corpus.fingerprint()


def test_groups_evidence_and_columns_of_other_names(tmp_path):
    corpus = wide(
        tmp_path,
        ("7", "u", "So so sad.", "0", "1", "so sad"),
        ("8", "v", "All\n fine.", "1", "", "fine"),
        ("9", "v", "All fine.", "1", "0", "NaN"),
        header=("key", "author", "body", "anger", "low_mood", "why"),
        columns={"post_id": "key", "group": "author", "post": "body"},
        evidence={"low_mood": "why"},
    )
    assert corpus.post_ids == ("7", "8", "9")
    assert corpus.groups == ("u", "v", "v")
    assert corpus.evidence == (Evidence(0, 1, 3, 9),)
    assert "the evidence of 1 cells without a positive label was ignored" in corpus.notes
    assert "3 posts form 2 groups" in corpus.notes


def test_the_order_of_the_criteria_is_that_of_the_settings(tmp_path):
    turned = dict(reversed(CRITERIA.items()))
    one, other = (wide(tmp_path, ("p", "One.", "1", "0"), criteria=criteria) for criteria in (CRITERIA, turned))
    np.testing.assert_array_equal(one.labels, other.labels[:, ::-1])


def test_posts_without_an_id_are_named_by_their_row(tmp_path):
    corpus = wide(tmp_path, ("One.", "1", "0"), (), ("One.", "0", "1"), header=HEADER[1:])
    assert corpus.post_ids == ("row-2", "row-4")


def test_posts_without_any_label_are_left_out(tmp_path):
    corpus = wide(tmp_path, ("p1", "One.", "", "NA"), ("p2", "Two.", "1", "0"))
    assert corpus.post_ids == ("p2",)
    assert corpus.notes[0] == "1 posts without any label were left out"


def test_texts_that_occur_in_two_groups_are_noted(tmp_path):
    corpus = wide(tmp_path, ("p1", "Same.", "1", "0"), ("p2", "same. ", "0", "1"))
    assert corpus.notes[-1] == "2 posts share their text with a post of another group (for example p1 and p2)"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("p1", SECRET, "maybe", "1")], "row 2: anger is 'maybe'; allowed are 0 and 1, or no and yes"),
        ([("p1", SECRET, SECRET, "1")], "row 2: anger is a text of 16 characters; allowed are 0 and 1, or no and yes"),
        ([("p1", " ", "1", "1")], "row 2: post is empty"),
        ([("", SECRET, "1", "1")], "row 2: post_id is empty"),
        (
            [("p1", SECRET, "1", "1"), ("p1", SECRET, "0", "0")],
            "row 3: post 'p1' is also in row 2; a table with a column per criterion has one row per post",
        ),
        ([("p1", SECRET, "1")], "row 2: it has 3 cells, but the header has 4"),
        ([], "it has no rows below the header"),
        ([("p1", SECRET, "", "")], "it has no rows with a label"),
    ],
)
def test_mistakes_are_reported_by_row_and_without_text(tmp_path, rows, expected):
    with pytest.raises(DataError) as refused:
        wide(tmp_path, *rows)
    assert refused.value.problems == (expected,)
    assert SECRET not in str(refused.value)


def test_a_passage_that_is_not_in_the_post_and_a_missing_column(tmp_path):
    with pytest.raises(DataError) as refused:
        wide(
            tmp_path,
            ("p1", "One.", "1", "0", SECRET),
            ("p2", "Two.", "2", "0", ""),
            header=(*HEADER, "why"),
            evidence={"anger": "why"},
        )
    assert refused.value.problems[0] == "row 2: why is not a passage of the post"
    assert len(refused.value.problems) == 2
    with pytest.raises(DataError, match=r"column anger is missing .*did you mean 'angre'"):
        wide(tmp_path, ("p1", "One.", "1", "0"), header=("post_id", "post", "angre", "low_mood"))


def test_parquet_tables_give_the_same_corpus_as_csv(tmp_path):
    columns = {"post_id": [1, 2], "post": ["One.", "Two."], "anger": [True, None], "low_mood": [0.0, 1.0]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    corpus = PairsSource(path="t.parquet", criteria=CRITERIA).load(tmp_path)
    same = wide(tmp_path, ("1", "One.", "1", "0"), ("2", "Two.", "", "1"))
    assert corpus.fingerprint() == same.fingerprint()
