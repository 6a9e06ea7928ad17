"""ReDSM5: how its two tables become a corpus. No file here holds a real person's text."""

import numpy as np
import pytest
from csv_files import SECRET, write_csv

from sparse_evidence.core.corpus.data import Evidence
from sparse_evidence.core.corpus.redsm5 import DEPRESSION, Redsm5Source
from sparse_evidence.core.errors import DataError, UserError

POSTS = (
    ("s_7_1", "It rains. All is grey.\nMusic bores me."),
    ("s_7_2", "Nothing to report."),
    ("s_8_1", "I sleep well."),
)
ANNOTATIONS = (
    ("s_7_1", "s_7_1_1", "All is grey.", "DEPRESSED_MOOD", "1", "why"),
    ("s_7_1", "s_7_1_2", "Music bores me.", "ANHEDONIA", "1", "why"),
    ("s_8_1", "s_8_1_0", "I sleep well.", "SLEEP_ISSUES", "0", "why"),
)


def redsm5(folder, posts=POSTS, annotations=ANNOTATIONS, header=("post_id", "text")):
    write_csv(folder / "redsm5_posts.csv", header, *posts)
    columns = ("post_id", "sentence_id", "sentence_text", "DSM5_symptom", "status", "explanation")
    write_csv(folder / "redsm5_annotations.csv", columns, *annotations)
    return Redsm5Source().load(folder)


def test_the_two_tables_become_a_corpus(tmp_path):
    corpus = redsm5(tmp_path)
    assert corpus.criteria == DEPRESSION
    assert corpus.labels.tolist() == [[1, 1] + [0] * 8, [0] * 10, [0] * 10]
    assert corpus.groups == ("7", "7", "8")
    assert corpus.evidence == (Evidence(0, 0, 10, 22), Evidence(0, 1, 23, 38))
    assert corpus.notes == ("3 posts form 2 groups, by the user in their ids (s_<user>_<post>)",)


def test_groups_come_from_the_column_or_from_the_ids(tmp_path):
    other = redsm5(tmp_path, posts=(*POSTS, ("x", "Hello.")))
    assert other.groups == other.post_ids
    assert "4 posts form 4 groups, one per post, because 1 ids do not have the form" in other.notes[0]
    corpus = redsm5(tmp_path, [(*post, "u") for post in POSTS], header=("post_id", "text", "group"))
    assert corpus.groups == ("u", "u", "u")
    assert corpus.notes == ("3 posts form 1 groups, by the column group",)


def test_repeated_and_contradicting_annotations_are_noted(tmp_path):
    more = (
        ANNOTATIONS[0],
        ("s_7_1", "", "not there", "FATIGUE", "1", ""),
        ("s_8_1", "s_8_1_0", "I sleep well.", "SLEEP_ISSUES", "1", ""),
    )
    corpus = redsm5(tmp_path, annotations=(*ANNOTATIONS, *more))
    assert corpus.labels[:, [3, 5]].tolist() == [[0, 1], [0, 0], [1, 0]]
    assert len(corpus.evidence) == 3
    assert corpus.notes[:3] == (
        "1 annotations that repeat an earlier one were merged with it",
        "1 sentences of evidence do not occur in their post, so their position is unknown",
        "1 sentences have status 0 and 1 for the same symptom; 1 counts",
    )


def test_mistakes_in_both_files_are_reported_together_and_without_text(tmp_path):
    posts = (*POSTS, ("s_7_1", SECRET), ("s_9_1", ""), ("", SECRET))
    annotations = (
        *ANNOTATIONS,
        ("s_7_1", "", SECRET, "SLEEP_ISSUE", "1", ""),
        ("s_0_0", "", SECRET, "FATIGUE", "1", ""),
        ("s_7_1", "", SECRET, "FATIGUE", "maybe", ""),
        ("s_7_1", "", SECRET, "zzz", "1", ""),
        ("s_7_1", ""),
    )
    with pytest.raises(DataError) as refused:
        redsm5(tmp_path, posts, annotations)
    assert set(refused.value.problems) == {
        "redsm5_posts.csv: row 5: post 's_7_1' is already in row 2",
        "redsm5_posts.csv: row 6: text is empty",
        "redsm5_posts.csv: row 7: post_id is empty",
        "redsm5_annotations.csv: row 5: symptom 'SLEEP_ISSUE' is unknown; did you mean SLEEP_ISSUES?",
        "redsm5_annotations.csv: row 6: post 's_0_0' is not among the posts",
        "redsm5_annotations.csv: row 7: status is 'maybe'; allowed are 0 and 1, or no and yes",
        "redsm5_annotations.csv: row 8: symptom 'zzz' is unknown; allowed: "
        + ", ".join(item.name.upper() for item in DEPRESSION),
        "redsm5_annotations.csv: row 9: it has 2 cells, but the header has 6",
    }
    assert SECRET not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"redsm5_posts\.csv does not exist"):
        Redsm5Source().load(tmp_path)


def test_there_are_ten_criteria_with_different_names_and_texts():
    assert len({criterion.name for criterion in DEPRESSION}) == 10
    assert len({criterion.text for criterion in DEPRESSION}) == 10


def test_other_file_names(tmp_path):
    redsm5(tmp_path)
    (tmp_path / "redsm5_posts.csv").rename(tmp_path / "posts.csv")
    (tmp_path / "redsm5_annotations.csv").rename(tmp_path / "notes.csv")
    source = Redsm5Source(posts="posts.csv", annotations="notes.csv")
    assert source.load(tmp_path).post_ids == ("s_7_1", "s_7_2", "s_8_1")


def test_symptoms_in_lower_case(tmp_path):
    corpus = redsm5(tmp_path, annotations=[("s_7_1", "", "All is grey.", "depressed_mood", "1", "")])
    assert corpus.labels[0].tolist() == [1] + [0] * 9


def test_no_annotations_mean_no_positive(tmp_path):
    corpus = redsm5(tmp_path, annotations=())
    assert not corpus.labels.any()
    assert np.array_equal(corpus.prevalence, np.zeros(10))
    assert corpus.evidence == ()


def test_empty_posts_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"redsm5_posts\.csv: it has no rows below the header"):
        redsm5(tmp_path, posts=(), annotations=())


def test_the_order_of_annotations_does_not_matter(tmp_path):
    more = (*ANNOTATIONS, ("s_8_1", "s_8_1_0", "I sleep well.", "SLEEP_ISSUES", "1", ""), ANNOTATIONS[0])
    one, other = redsm5(tmp_path, annotations=more), redsm5(tmp_path, annotations=more[::-1])
    assert one.fingerprint() == other.fingerprint()
    assert one.evidence == other.evidence
    assert one.notes == other.notes


def test_a_group_column_wins_over_the_ids(tmp_path):
    posts = [(*post, group) for post, group in zip(POSTS, ("u", "v", "v"), strict=True)]
    assert redsm5(tmp_path, posts, header=("post_id", "text", "group")).groups == ("u", "v", "v")


def test_groups_of_another_spelling_are_refused(tmp_path):
    posts = [(*post, "u") for post in POSTS]
    with pytest.raises(DataError, match="column 'Group' is not read; rename it to group"):
        redsm5(tmp_path, posts, header=("post_id", "text", "Group"))


def test_an_empty_group_is_refused(tmp_path):
    posts = [(*post, "") for post in POSTS]
    with pytest.raises(DataError, match="group is empty in rows 2"):
        redsm5(tmp_path, posts, header=("post_id", "text", "group"))
