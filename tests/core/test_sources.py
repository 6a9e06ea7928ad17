"""Sources: what a good file becomes, and what is said about a bad one. No file here holds a person's words."""

import csv
import hashlib
import os
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparse_evidence.core import cache
from sparse_evidence.core.corpus import tables
from sparse_evidence.core.corpus.data import UNLABELLED, Evidence
from sparse_evidence.core.corpus.editorials import EditorialsSource
from sparse_evidence.core.corpus.pairs import PairsSource
from sparse_evidence.core.corpus.redsm5 import DEPRESSION, Redsm5Source
from sparse_evidence.core.corpus.sources import SOURCES
from sparse_evidence.core.corpus.synthetic import SyntheticSource
from sparse_evidence.core.errors import DataError, UserError

SECRET = "purple elephants"  # stands for a person's words: must never be in a message


def write(path, *rows, encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return path


def test_every_source_says_its_name_first_and_has_a_default_for_it():
    for name, kind in SOURCES.items():
        first = fields(kind)[0]
        assert (first.name, first.default) == ("source", name)


# ---- pairs ----

HEADER = ("post_id", "post", "criterion", "label")


def pairs(folder, *rows, header=HEADER):
    write(folder / "pairs.csv", header, *rows)
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


def test_pairs_with_everything(tmp_path):
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
        "the evidence of 1 rows with label 0 was left out",
        "2 posts form 1 groups",
    )


def test_texts_that_occur_in_two_groups_are_noted(tmp_path):
    corpus = pairs(tmp_path, ("p1", "Same.", "a", "1"), ("p2", "same. ", "a", "0"))
    assert corpus.notes[-1] == "2 posts share their text with a post of another group (for example p1 and p2)"


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "bom"])
def test_all_kinds_of_table_give_the_same_corpus(tmp_path, kind):
    rows = [("p1", 'A "quoted", long\n\npost ' + "é" * 200_000, "a", 1), ("p2", "Zwei.", "a", 0)]
    if kind == "parquet":
        columns = dict(zip(HEADER, map(list, zip(*rows, strict=True)), strict=True))
        columns["label"] = [True, False]
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    elif kind == "tsv":
        with (tmp_path / "t.tsv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t").writerows([HEADER, *rows])
    else:
        write(tmp_path / "t.csv", HEADER, *rows, encoding="utf-8-sig" if kind == "bom" else "utf-8")
    name = next(path.name for path in tmp_path.iterdir())
    corpus = PairsSource(path=name).load(tmp_path)
    assert corpus.posts == (rows[0][1], "Zwei.")
    assert corpus.labels.tolist() == [[1], [0]]
    assert csv.field_size_limit() < 200_000  # the process's own limit is put back


GOOD = ("p1", SECRET, "a", "1")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([GOOD, ("p2", SECRET, "a", "maybe")], ["row 3: label is 'maybe'; allowed are 0 and 1"]),
        ([GOOD, ("p2", SECRET, "a", "")], ["row 3: label is empty; allowed"]),
        ([GOOD, ("p2", SECRET, "a", SECRET)], ["row 3: label is a text of 16 characters; allowed"]),
        ([GOOD, ("p2", SECRET, "a", "2")], ["row 3: label is '2'"]),
        ([GOOD, ("p2", " ", "a", "1")], ["row 3: post is empty"]),
        ([GOOD, ("", SECRET, " ", "1")], ["row 3: post_id is empty", "row 3: criterion is empty"]),
        ([GOOD, ("p1", "other", "b", "1")], ["row 3: the text of post 'p1' differs from row 2"]),
        ([GOOD, ("p1", SECRET, "a", "0")], ["row 3: post 'p1' and criterion 'a' have label 0 here, but 1 in row 2"]),
        ([GOOD, (), ("p2", f"a\n{SECRET}", "a", "1"), ("p3", "x", "a", "x")], ["row 5: label is 'x'"]),
        ([GOOD, ("p2", SECRET, "a")], ["row 3: it has 3 cells, but the header has 4"]),
        ([GOOD, ("p2", SECRET, "a", "1", "")], ["row 3: it has 5 cells, but the header has 4"]),
        ([("p1", SECRET)], ["1 mistake: row 2: it has 2 cells"]),
        ([], ["it has no rows below the header"]),
        (
            [("p1", SECRET, "a", "no"), ("p1", "x", "a", "1"), ("", "y", "a", "1"), ("p3",)],
            ["4 mistakes", "row 2: label", "row 3: the text", "row 4: post_id", "row 5: it has 1 cells"],
        ),
    ],
)
def test_broken_pairs_are_told_all_at_once_and_without_text(tmp_path, rows, expected):
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
def test_broken_optional_columns(tmp_path, columns, rows, expected):
    with pytest.raises(DataError) as refused:
        pairs(tmp_path, *((*GOOD, *more) for more in rows), header=(*HEADER, *columns))
    assert refused.value.problems == (expected,)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.csv", b"", ["t.csv has 1 mistake: it is empty"]),
        ("t.csv", b"\n \n", ["it is empty"]),
        (
            "t.csv",
            b"post_id,post,criterion\n",
            ["column label is missing (columns there: 'post_id', 'post', 'criterion'"],
        ),
        (
            "t.csv",
            b"PostId,post,criteria,label\n",
            [
                "2 mistakes",
                "column post_id is missing",
                "did you mean 'PostId'?",
                "column criterion",
                "mean 'criteria'?",
            ],
        ),
        ("t.csv", b"post_id,post,post,criterion,label\n", ["column post occurs 2 times in the header"]),
        ("t.csv", b"post_id;post;criterion;label\n", ["seem to be separated by ';', not by ','"]),
        ("t.csv", b"p1,I see purple elephants everywhere,a,1\n", ["columns there: 'p1', a text of 33 characters"]),
        (
            "t.csv",
            b'post_id,post,criterion,label\np1,"x,a,1\np2,y,a,1\n',
            ["row 2: a cell that starts with a quotation"],
        ),
        (
            "t.csv",
            b"post_id,post,criterion,label\np1,caf\xe9,a,1\np2,\xff,a,1\n",
            ["row 2: column post", "row 3: column"],
        ),
        ("t.csv", "post_id,post,criterion,label\n".encode("utf-16"), ["UTF-16; save it as UTF-8"]),
        ("t.csv", b"PK\x03\x04\x00\x00", ["it is not a text file"]),
        ("t.parquet", b"post_id,post\n", ["it is not a readable Parquet file"]),
        ("t.parquet", b"PAR1" + bytes(range(200)) + b"PAR1", ["it is not a readable Parquet file"]),
        ("t.xlsx", b"PK", ["ends in '.xlsx'; allowed are .csv, .tsv and .parquet"]),
        ("t", b"PK", ["ends in ''; allowed"]),
    ],
)
def test_files_that_are_not_a_table_of_pairs(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        PairsSource(path=name).load(tmp_path)
    for fragment in expected:
        assert fragment in str(refused.value)
    assert SECRET not in str(refused.value)


def test_parquet_with_wrong_columns_and_cells(tmp_path):
    columns = {"post_id": ["p1", "p2"], "post": [["x"], ["y"]], "criterion": ["a", "a"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column label is missing"):
        PairsSource(path="t.parquet").load(tmp_path)
    pq.write_table(pa.table({**columns, "label": [1.0, None]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"2 mistakes: row 2: column post does not hold text.*row 3: column post"):
        PairsSource(path="t.parquet").load(tmp_path)
    pq.write_table(pa.table({**columns, "post": ["x", None], "label": [1.0, float("nan")]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 3: post is empty; row 3: label is empty"):
        PairsSource(path="t.parquet").load(tmp_path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pears.csv", "does not exist; did you mean pairs.csv?"),
        ("no/such/folder.csv", "does not exist; relative paths start at the study file's folder"),
        ("folder.csv", "is a folder"),
        ("x" * 300 + ".csv", "cannot be read"),
        ("zero\0byte.csv", "cannot be read"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path, path, expected):
    write(tmp_path / "pairs.csv", HEADER)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"^[^\n]*$") as refused:
        PairsSource(path=path).load(tmp_path)
    assert expected in str(refused.value).replace("\\", "")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    # A test run by root may read everything, so the refusal is played.
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match="may not be read by this user"):
        tables.read_table(tmp_path / "t.csv", ("post_id",))


def test_reading_again_while_an_error_is_handled_does_not_wait_for_ever(tmp_path):
    (tmp_path / "bad.csv").write_text("nothing\n")
    write(tmp_path / "good.csv", ("post_id",), ("p1",))
    with pytest.raises(DataError):
        tables.read_table(tmp_path / "bad.csv", ("post_id",))
    try:
        tables.read_table(tmp_path / "bad.csv", ("post_id",))
    except DataError:
        assert len(tables.read_table(tmp_path / "good.csv", ("post_id",)).rows) == 1


# ---- redsm5 ----

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
    write(folder / "redsm5_posts.csv", header, *posts)
    columns = ("post_id", "sentence_id", "sentence_text", "DSM5_symptom", "status", "explanation")
    write(folder / "redsm5_annotations.csv", columns, *annotations)
    return Redsm5Source().load(folder)


def test_redsm5(tmp_path):
    corpus = redsm5(tmp_path)
    assert corpus.criteria == DEPRESSION
    assert corpus.labels.tolist() == [[1, 1] + [0] * 8, [0] * 10, [0] * 10]
    assert corpus.groups == ("7", "7", "8")
    assert corpus.evidence == (Evidence(0, 0, 10, 22), Evidence(0, 1, 23, 38))
    assert corpus.notes == ("3 posts form 2 groups, by the user in their ids (s_<user>_<post>)",)


def test_redsm5_groups(tmp_path):
    other = redsm5(tmp_path, posts=(*POSTS, ("x", "Hello.")))
    assert other.groups == other.post_ids
    assert "4 posts form 4 groups, each its own, because 1 ids are not of the form" in other.notes[0]
    given = redsm5(tmp_path, [(*post, "u") for post in POSTS], header=("post_id", "text", "group"))
    assert given.groups == ("u", "u", "u")
    assert given.notes == ("3 posts form 1 groups, by the column group",)


def test_redsm5_merges_and_says_so(tmp_path):
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
        "1 sentences of evidence were not found in their post and have no place in it",
        "1 sentences have status 0 and 1 for the same symptom; 1 counts",
    )


def test_redsm5_tells_the_mistakes_of_both_files_at_once_and_without_text(tmp_path):
    posts = (*POSTS, ("s_7_1", SECRET), ("s_9_1", ""), ("", SECRET))
    annotations = (
        *ANNOTATIONS,
        ("s_7_1", "", SECRET, "SLEEP_ISSUE", "1", ""),
        ("s_0_0", "", SECRET, "FATIGUE", "1", ""),
        ("s_7_1", "", SECRET, "FATIGUE", "yes", ""),
        ("s_7_1", "", SECRET, "zzz", "1", ""),
        ("s_7_1", ""),
    )
    with pytest.raises(DataError) as refused:
        redsm5(tmp_path, posts, annotations)
    assert set(refused.value.problems) == {
        "redsm5_posts.csv: row 5: post 's_7_1' is in row 2 already",
        "redsm5_posts.csv: row 6: text is empty",
        "redsm5_posts.csv: row 7: post_id is empty",
        "redsm5_annotations.csv: row 5: symptom 'SLEEP_ISSUE' is unknown; did you mean SLEEP_ISSUES?",
        "redsm5_annotations.csv: row 6: post 's_0_0' is not among the posts",
        "redsm5_annotations.csv: row 7: status is 'yes'; allowed are 0 and 1",
        "redsm5_annotations.csv: row 8: symptom 'zzz' is unknown; known are "
        + ", ".join(item.name.upper() for item in DEPRESSION),
        "redsm5_annotations.csv: row 9: it has 2 cells, but the header has 6",
    }
    assert SECRET not in str(refused.value)


def test_redsm5_without_its_files(tmp_path):
    with pytest.raises(UserError, match=r"redsm5_posts\.csv does not exist"):
        Redsm5Source().load(tmp_path)


# ---- synthetic ----


def test_synthetic_has_the_home_cases_shape():
    corpus = SyntheticSource().load(Path())
    assert corpus.labels.shape == (1484, 10)
    assert corpus.positives.tolist() == [328, 124, 44, 102, 35, 124, 311, 59, 165, 92]
    assert 270 < np.mean([len(post.split()) for post in corpus.posts]) < 320
    assert len(set(corpus.posts)) == 1484
    sizes = np.unique(corpus.groups, return_counts=True)[1]
    assert sizes.max() <= 6
    assert 0.5 < (sizes == 1).mean() < 0.8


def test_synthetic_evidence_backs_every_positive_label_and_no_other():
    corpus = SyntheticSource(posts=100, criteria=12).load(Path())
    backed = np.zeros_like(corpus.labels)
    for item in corpus.evidence:
        backed[item.post, item.criterion] = 1
        passage = corpus.posts[item.post][item.start : item.end]
        assert passage == passage.strip()
        assert passage[0].isupper()
        assert passage[-1] in ".!"
    assert np.array_equal(backed, corpus.labels)


def test_synthetic_is_the_same_everywhere():
    small = SyntheticSource(posts=40, criteria=3, seed=7)
    assert small.load(Path()).fingerprint()[:12] == "f498dc8cf4bd"
    assert SyntheticSource(posts=40, criteria=3, seed=8).load(Path()).fingerprint() != small.load(Path()).fingerprint()


@pytest.mark.parametrize("posts", [20, 40, 200])
def test_small_synthetic_corpora_can_be_split(posts):
    positives = SyntheticSource(posts=posts, criteria=12).load(Path()).positives
    assert positives.min() >= 10
    assert positives.max() <= max(posts // 2, round(0.23 * posts))


def test_synthetic_lengths_follow_the_mean():
    words = [
        np.mean([len(post.split()) for post in SyntheticSource(posts=300, sentences_mean=mean).load(Path()).posts])
        for mean in (5, 14, 50)
    ]
    assert words[0] < words[1] / 2 < words[2] / 5


def test_synthetic_is_fast_enough_for_benchmarks():
    before = time.process_time()
    SyntheticSource(posts=15_000).load(Path())
    assert time.process_time() - before < 10


# ---- editorials ----


@pytest.fixture(scope="module")
def editorials():
    # In the user's own cache (tests start without HPO_CACHE), so that one download serves all sessions.
    return EditorialsSource().load(Path())


def test_editorials_are_the_published_ones(editorials):
    assert len(editorials) == 498
    assert sum(post.count("\n") + 1 for post in editorials.posts) == 5190
    assert [item.name for item in editorials.criteria] == ["very_negative", "negative", "positive", "very_positive"]
    assert editorials.positives.tolist() == [48, 197, 122, 32]
    assert editorials.groups == editorials.post_ids
    assert editorials.post_ids[0] == "editorial-1"
    assert editorials.posts[0].startswith("On Dec. 19, around noon")
    assert editorials.fingerprint()[:12] == "85f9b0f485e9"


def test_editorials_evidence_is_whole_sentences_of_positive_posts(editorials):
    backed = np.zeros_like(editorials.labels)
    for item in editorials.evidence:
        backed[item.post, item.criterion] = 1
        assert editorials.posts[item.post][item.start : item.end] in editorials.posts[item.post].split("\n")
    assert np.array_equal(backed, editorials.labels)


def test_editorials_offline_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UserError, match=r"could not be downloaded \(.*\); run this once where pip reaches") as refused:
        EditorialsSource().load(Path())
    assert str(tmp_path) in str(refused.value)


# ---- the cache they are kept in ----

CONTENT = b"a table"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache"


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_the_cache_is_its_owners_only(folder):
    assert cache.fetch_once("table", SHA256, lambda: CONTENT) == CONTENT
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "table").stat().st_mode & 0o777 == 0o600


def test_a_cached_file_is_fetched_once_and_again_when_damaged(folder):
    fetches = []

    def fetch():
        fetches.append(1)
        return CONTENT

    assert cache.fetch_once("table", SHA256, fetch) == cache.fetch_once("table", SHA256, fetch) == CONTENT
    assert len(fetches) == 1
    (folder / "table").write_bytes(CONTENT[:3])
    assert cache.fetch_once("table", SHA256, fetch) == CONTENT
    assert len(fetches) == 2
    assert (folder / "table").read_bytes() == CONTENT


def test_what_has_the_wrong_hash_is_not_kept(folder):
    with pytest.raises(UserError, match="SHA-256 differs"):
        cache.fetch_once("table", SHA256, lambda: b"something else")
    assert not (folder / "table").exists()


def test_a_cache_that_cannot_be_used_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in ("file", "file/below"):
        monkeypatch.setenv("HPO_CACHE", str(tmp_path / path))
        with pytest.raises(UserError, match="set HPO_CACHE to a folder you may write to"):
            cache.cache_dir()


def test_several_processes_fetch_once(folder, tmp_path):
    script = f"""
import time
from sparse_evidence.core.cache import fetch_once

def fetch():
    with open({str(tmp_path / "log")!r}, "a") as log:
        log.write("x")
    time.sleep(0.3)
    return {CONTENT!r}

assert fetch_once("table", {SHA256!r}, fetch) == {CONTENT!r}
"""
    root = Path(__file__).parents[2]
    running = [subprocess.Popen([sys.executable, "-c", script], cwd=root) for _ in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "x"
