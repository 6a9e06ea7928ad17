"""Messages for users: all mistakes in one message, and suggestions for misspelled names."""

import pytest

from sparse_evidence.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EncoderError,
    NonFiniteLossError,
    OutOfMemoryError,
    SplitError,
    UserError,
    nearest,
    unknown_name,
)


def test_a_data_error_lists_its_mistakes():
    error = DataError("posts.csv", ["row 2: empty", "row 5: empty"])
    assert str(error) == "posts.csv has 2 mistakes: row 2: empty; row 5: empty"
    assert (error.where, error.problems) == ("posts.csv", ("row 2: empty", "row 5: empty"))
    assert str(DataError("t", ["it is empty"])) == "t has 1 mistake: it is empty"


def test_a_long_list_is_cut_in_the_message_only():
    problems = [f"row {row}" for row in range(25)]
    error = DataError("t", problems)
    assert error.problems == tuple(problems)
    assert str(error).endswith("row 19; and 5 more")
    assert str(DataError("t", problems, limit=2)) == "t has 25 mistakes: row 0; row 1; and 23 more"


@pytest.mark.parametrize("kind", [DataError, SplitError, EncoderError, ConfigError, CheckpointError])
def test_every_mistake_of_the_user_is_a_user_error(kind):
    assert issubclass(kind, UserError)
    assert issubclass(kind, ValueError)


@pytest.mark.parametrize(("kind", "remedy"), [(NonFiniteLossError, "learning rate"), (OutOfMemoryError, "batches")])
def test_training_errors_have_a_default_message(kind, remedy):
    assert remedy in str(kind())
    assert str(kind("other words")) == "other words"
    assert not issubclass(kind, UserError)


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("auroc", ["auroc", "brier"], "auroc"),
        ("aurok", ["brier", "auroc"], "auroc"),
        ("zzz", ["auroc", "brier"], None),
        ("", ["auroc"], None),
        ("x", [], None),
        ("lables", ["label", "labels"], "labels"),
    ],
)
def test_the_nearest_word(word, known, expected):
    assert nearest(word, known) == expected
    assert nearest(word, iter(known)) == expected
    assert nearest(word, dict.fromkeys(known)) == expected


def test_an_unknown_name_is_refused_with_a_suggestion_or_only_the_list():
    assert str(unknown_name("metric", "aurok", ["brier", "auroc"])) == (
        "'aurok' is not a metric; did you mean 'auroc'? allowed: brier, auroc"
    )
    assert str(unknown_name("metric", "zzz", iter(["auroc"]))) == "'zzz' is not a metric; allowed: auroc"
    assert isinstance(unknown_name("metric", "zzz", []), ConfigError)
