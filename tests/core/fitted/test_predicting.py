"""Predictions for tables: the same as for a list of posts, beside every row of the table."""

import pandas as pd
import pytest
from csv_files import SECRET, write_csv
from fitted_models import CRITERIA, linear_model, write_frame

from sparse_evidence.core.corpus.parts import format_of, open_table
from sparse_evidence.core.corpus.writing import create_table
from sparse_evidence.core.errors import DataError, UserError
from sparse_evidence.core.fitted.predicting import Options, met, predict_table

POSTS = ["I slept badly. Nothing is fun, and I cry.", "", "Which laptop, do you\nthink, is good?", "I slept badly."]
ADDED = ["probability", "decision", "evidence", "start", "end"]


@pytest.fixture(scope="module")
def model():
    return linear_model()


@pytest.fixture
def frame():
    return pd.DataFrame({"post_id": ["007", "b", "c", "d"], "post": POSTS, "note, or not": ['"', "", "x", "y"]})


def predict(model, source, target, progress=None, **options):
    with open_table(source, format_of(source, None)) as table, create_table(target, format_of(target, None)) as sink:
        return predict_table(model, table, sink, Options(**options), progress)


def read(path):
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype={"post_id": str})


@pytest.mark.parametrize("read_as", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("write_as", ["csv", "tsv", "parquet"])
def test_every_format_gives_the_same_rows(model, frame, tmp_path, read_as, write_as):
    source = write_frame(frame, tmp_path / f"posts.{read_as}")
    target = tmp_path / f"out.{write_as}"
    assert predict(model, source, target) == 4
    found, expected = read(target), model.predict(POSTS)
    new = [f"{name}.{part}" for name in CRITERIA for part in ADDED]
    assert found.columns.tolist() == [*frame.columns, *new]
    assert found["post_id"].tolist() == frame["post_id"].tolist()
    for column in frame.columns:
        assert found[column].fillna("").tolist() == frame[column].tolist()
    for name in CRITERIA:
        rows = expected[expected["criterion"] == name]
        for part in ADDED:
            assert_same(found[f"{name}.{part}"], rows[part])


def assert_same(found, expected):
    numbers = expected.dtype != object and str(expected.dtype) not in {"str", "string"}
    if numbers:
        assert found.astype(float).tolist() == pytest.approx(expected.astype(float).tolist(), abs=1e-6, nan_ok=True)
    else:
        assert found.fillna("").tolist() == expected.fillna("").tolist()


def test_long_tables_have_a_row_per_criterion(model, frame, tmp_path):
    predict(model, write_frame(frame, tmp_path / "posts.csv"), tmp_path / "out.csv", long=True)
    found, expected = read(tmp_path / "out.csv"), model.predict(POSTS)
    assert found.columns.tolist() == [*frame.columns, "criterion", *ADDED]
    assert found["criterion"].tolist() == CRITERIA * 4
    assert found["post_id"].tolist() == [name for name in frame["post_id"] for _ in CRITERIA]
    for part in ADDED:
        assert_same(found[part], expected[part])


def test_pairs_get_what_belongs_to_their_criterion(model, tmp_path):
    pairs = pd.DataFrame({"post_id": [1, 1, 2], "post": [POSTS[0], POSTS[0], POSTS[3]]})
    pairs["criterion"] = [CRITERIA[1], f" {CRITERIA[0]}", CRITERIA[1]]
    for suffix in ("csv", "parquet"):
        predict(model, write_frame(pairs, tmp_path / f"posts.{suffix}"), tmp_path / f"out.{suffix}")
        found = read(tmp_path / f"out.{suffix}")
        assert found.columns.tolist() == [*pairs.columns, *ADDED]
        probabilities = model.probabilities([POSTS[0], POSTS[3]])
        expected = [probabilities[0, 1], probabilities[0, 0], probabilities[1, 1]]
        assert found["probability"].tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError, match="has a row per post and criterion already; leave out --long"):
        predict(model, tmp_path / "posts.csv", tmp_path / "never.csv", long=True)


def test_without_evidence_there_are_probabilities_and_decisions(model, frame, tmp_path):
    predict(model, write_frame(frame, tmp_path / "posts.csv"), tmp_path / "out.csv", evidence=False, prefix="new_")
    found = read(tmp_path / "out.csv")
    new = [f"new_{name}.{part}" for name in CRITERIA for part in ADDED[:2]]
    assert found.columns.tolist() == [*frame.columns, *new]
    probabilities = found[new[::2]].to_numpy()
    assert probabilities == pytest.approx(model.probabilities(POSTS), abs=1e-6)
    with_text = [[True], [False], [True], [True]]  # a post without text meets nothing
    assert (found[new[1::2]].to_numpy() == (probabilities >= model.threshold) & with_text).all()


def test_progress_counts_rows(model, tmp_path):
    seen = []
    source = write_frame(pd.DataFrame({"post": ["One.", "Two."] * 1000}), tmp_path / "posts.csv")
    predict(model, source, tmp_path / "out.csv", lambda rows, share: seen.append((rows, share)), evidence=False)
    assert seen[0][0] == 1024
    assert seen[-1] == (2000, 1.0)


@pytest.mark.parametrize("name", ["body", "Text", "full text"])
def test_the_only_column_like_post_is_used(model, tmp_path, name):
    source = write_csv(tmp_path / "t.csv", ["id", f" {name}"], ["1", POSTS[0]])
    predict(model, source, tmp_path / "out.csv", evidence=False)
    found = pd.read_csv(tmp_path / "out.csv")
    assert found.columns[1] == f" {name}"  # as it was
    assert found[f"{CRITERIA[0]}.probability"][0] == pytest.approx(model.probabilities(POSTS[:1])[0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("header", "options", "sentence"),
    [
        (["id", "words"], {}, "column post is missing .*the table has: 'id', 'words'.*--column NAME"),
        (["id", "postt"], {}, "column post is missing .*did you mean 'postt'"),
        (["id", "post"], {"column": "pots"}, "column pots is missing .*did you mean 'post'"),
        (
            ["text", "body"],
            {},
            "'text' and 'body' could each hold the posts; name the column of the posts with --column",
        ),
        (["post", "post"], {}, "could each hold the posts|'post'"),
        (["post", f"{CRITERIA[0]}.decision"], {}, f"it already has '{CRITERIA[0]}.decision'.*--prefix"),
        (["post", "evidence"], {"long": True}, "it already has 'evidence'"),
        (["post", "criterion"], {"long": True}, "it already has 'criterion'"),
    ],
)
def test_columns_that_cannot_be_used(model, tmp_path, header, options, sentence):
    source = write_csv(tmp_path / "t.csv", header, [SECRET] * len(header))
    with pytest.raises(DataError, match=sentence) as caught:
        predict(model, source, tmp_path / "out.csv", **options)
    assert SECRET not in str(caught.value)
    assert not (tmp_path / "out.csv").exists()


def test_a_named_column_wins(model, tmp_path):
    source = write_csv(tmp_path / "t.csv", ["post", "title"], [POSTS[2], POSTS[0]])
    predict(model, source, tmp_path / "out.csv", column="title", evidence=False)
    found = pd.read_csv(tmp_path / "out.csv")[f"{CRITERIA[0]}.probability"]
    assert found[0] == pytest.approx(model.probabilities(POSTS[:1])[0, 0], abs=1e-6)


def test_unknown_criteria_are_listed_by_row(model, tmp_path):
    rows = [["1", "x", CRITERIA[0]], ["1", "x", "anhedoina"], ["1", "x", f"{SECRET} are in the wrong column"]]
    source = write_csv(tmp_path / "t.csv", ["post_id", "post", "criterion"], *rows)
    with pytest.raises(DataError) as caught:
        predict(model, source, tmp_path / "out.csv")
    assert caught.value.problems == (
        "row 3: the model has no criterion 'anhedoina'; did you mean 'anhedonia'?",
        "row 4: the model has no criterion a text of 40 characters; it has: depressed_mood, anhedonia",
    )


def test_what_each_post_meets_for_a_reader(model, frame, tmp_path):
    with open_table(write_frame(frame, tmp_path / "posts.csv"), format_of(tmp_path / "posts.csv", None)) as table:
        found = list(met(model, table, Options()))
    assert [name for name, _ in found] == frame["post_id"].tolist()
    expected = model.predict(POSTS)
    expected = expected[expected["decision"]]
    for row, (_, criteria) in enumerate(found):
        rows = expected[expected["post"] == row].sort_values("probability", ascending=False)
        assert [one.criterion for one in criteria] == rows["criterion"].tolist()
        assert [one.evidence or "" for one in criteria] == rows["evidence"].fillna("").tolist()
        assert [one.probability for one in criteria] == pytest.approx(rows["probability"].tolist())
    assert any(criteria for _, criteria in found)


def test_a_post_with_a_row_per_criterion_is_shown_once(model, tmp_path):
    pairs = pd.DataFrame({"post": [POSTS[0], POSTS[0], POSTS[3]]})
    with open_table(write_frame(pairs, tmp_path / "posts.csv"), format_of(tmp_path / "posts.csv", None)) as table:
        assert [name for name, _ in met(model, table, Options())] == ["row 2", "row 4"]


def test_two_posts_with_the_same_text_are_both_shown(model, tmp_path):
    table = pd.DataFrame({"id": ["a", "b", "b"], "criterion": [CRITERIA[0], *CRITERIA], "post": [POSTS[0]] * 3})
    with open_table(write_frame(table, tmp_path / "posts.csv"), format_of(tmp_path / "posts.csv", None)) as source:
        assert [name for name, _ in met(model, source, Options())] == ["a", "b"]
