"""Mistakes of rows: one entry for the same mistake in many rows."""

from sparse_evidence.core.corpus.problems import RowProblems


def test_a_mistake_of_many_rows_is_one_entry():
    problems = RowProblems()
    for row in range(2, 162):
        problems.add(row, "label is {}", value=("'no!'", "'yes!'")[row % 2], remedy="allowed are 0 and 1")
    problems.add(7, "post is empty")
    problems.add(9, "post is empty")
    problems.add(3, "post 'a' is also in row 2", many="a post is also in an earlier row")
    assert problems.entries() == [
        "label is 'no!' or 'yes!' in 160 rows, first in row 2; allowed are 0 and 1",
        "post is empty in rows 7 and 9",
        "row 3: post 'a' is also in row 2",
    ]


def test_a_few_values_are_named_and_the_others_counted():
    problems = RowProblems()
    assert not problems
    for row in range(6):
        problems.add(row, "label is {}", value=f"'{row}'")
    assert problems.entries() == ["label is '0', '1', '2' or 3 others in 6 rows, first in row 0"]
