"""Chunks cover every character once, in order, and end where sentences end."""

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_evidence.core.config import ChunksConfig
from sparse_evidence.core.corpus.data import Corpus, Criterion, Evidence
from sparse_evidence.core.corpus.pairs import PairsSource
from sparse_evidence.core.errors import DataError
from sparse_evidence.core.features.chunks import chunk, chunk_once, evidence_mask, share_within, windows

WORDS = st.sampled_from(
    [*"abI.!?…\"')(", "Dr.", "e.g.", "U.S.", "3.5", "...", "tired", "Then", " ", "  ", "\n", "\r\n"]
)
POSTS = st.lists(WORDS, min_size=1, max_size=60).map("".join) | st.text(min_size=1, max_size=80)
NOT_EMPTY = POSTS.filter(lambda post: bool(post.strip()))


def chunk_texts(post, max_words=64):
    return list(chunk([post], ChunksConfig(max_words=max_words)).texts)


@settings(deadline=None)
@given(st.lists(NOT_EMPTY, min_size=1, max_size=5), st.integers(4, 8))
def test_every_character_is_in_exactly_one_chunk_in_order(posts, max_words):
    chunks = chunk(posts, ChunksConfig(max_words=max_words))
    assert len(chunks.offsets) == len(posts) + 1
    for row, post in enumerate(posts):
        numbers = range(chunks.offsets[row], chunks.offsets[row + 1])
        assert len(numbers) > 0
        position = 0
        for at in numbers:
            start, end = chunks.start[at], chunks.end[at]
            assert chunks.post[at] == row
            assert not post[position:start].strip()  # only whitespace is skipped
            assert post[start:end] == chunks.texts[at] == chunks.texts[at].strip() != ""
            assert len(chunks.texts[at].split()) <= max_words
            position = end
        assert not post[position:].strip()


@settings(deadline=None)
@given(st.lists(NOT_EMPTY, min_size=1, max_size=5))
def test_chunks_of_a_post_do_not_depend_on_other_posts(posts):
    all_chunks = chunk(posts, ChunksConfig())
    one_by_one = [text for post in posts for text in chunk([post], ChunksConfig()).texts]
    assert list(all_chunks.texts) == one_by_one


@pytest.mark.parametrize(
    ("post", "expected"),
    [
        ("I am tired. I am sad.", ["I am tired.", "I am sad."]),
        ("i am tired. i am sad", ["i am tired.", "i am sad"]),
        ("Why? Because! Yes… No.", ["Why?", "Because!", "Yes…", "No."]),
        ("One\nTwo\r\n\r\nThree", ["One", "Two", "Three"]),
        ("I saw Dr. Smith. He left.", ["I saw Dr. Smith.", "He left."]),
        ("Pills, e.g. Prozac, help. Or not.", ["Pills, e.g. Prozac, help.", "Or not."]),
        ("In the U.S. Army I slept 3.5 hours. Then 4.", ["In the U.S. Army I slept 3.5 hours.", "Then 4."]),
        ("At 3 a.m. I woke. At 4 p.m. again.", ["At 3 a.m.", "I woke.", "At 4 p.m. again."]),
        ("J. K. Rowling wrote it. I read it.", ["J. K. Rowling wrote it.", "I read it."]),
        ("So do I. You too?", ["So do I.", "You too?"]),
        ("Books, films, etc. bore me. Etc. etc.", ["Books, films, etc. bore me.", "Etc. etc."]),
        ("I was... tired. Then... Nothing.", ["I was... tired.", "Then...", "Nothing."]),
        ('She said "Go away." I went.', ['She said "Go away."', "I went."]),
        ('"Why?" she asked. (I left.) Then', ['"Why?" she asked.', "(I left.)", "Then"]),
        ("No. I did not.", ["No.", "I did not."]),
        ("1. Eat\n2. Sleep. Repeat", ["1. Eat", "2. Sleep.", "Repeat"]),
        ("Tired.So tired", ["Tired.So tired"]),
        ("In Jan. 5 of us left.", ["In Jan. 5 of us left."]),
        ("What?! No way!!! ok", ["What?!", "No way!!!", "ok"]),
    ],
)
def test_sentences_end_where_a_reader_expects(post, expected):
    assert chunk_texts(post) == expected


def test_long_sentences_are_split_at_max_words():
    assert chunk_texts("one two three four five six seven eight nine.", max_words=4) == [
        "one two three four",
        "five six seven eight",
        "nine.",
    ]


def test_all_posts_without_text_are_reported():
    with pytest.raises(DataError) as refused:
        chunk(["Fine.", "", " \n\t "], ChunksConfig())
    assert refused.value.problems == ("post number 1 has no text", "post number 2 has no text")


def test_without_posts_there_are_no_chunks():
    chunks = chunk([], ChunksConfig())
    assert len(chunks) == 0
    assert chunks.offsets.tolist() == [0]
    assert np.isnan(share_within(chunks, 4))


@pytest.mark.parametrize("post", ["!" * 200_000, "a. " * 60_000, "." * 200_000 + "x", "x" * 500_000], ids="!a.x")
def test_unusual_posts_take_linear_time(post):
    before = time.process_time()
    chunk_texts(post)
    assert time.process_time() - before < 5


def test_arrays_have_the_documented_types_and_are_read_only():
    chunks = chunk(["One. Two.", "Three."], ChunksConfig())
    assert chunks.post.tolist() == [0, 0, 1]
    assert "Three" not in repr(chunks)
    assert [array.dtype for array in (chunks.post, chunks.start, chunks.end)] == [np.int32] * 3
    assert chunks.offsets.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        chunks.start[0] = 1


def test_share_of_posts_with_at_most_k_chunks():
    chunks = chunk(["One.", "One. Two.", "One. Two. Three."], ChunksConfig())
    assert [share_within(chunks, k) for k in (0, 1, 2, 3)] == pytest.approx([0, 1 / 3, 2 / 3, 1])


THREE = ["One. Two.\nThree.  Four. ", "  Five.", "Six. Seven."]


@pytest.mark.parametrize(
    ("window", "texts", "counts"),
    [
        (1, ["One.", "Two.", "Three.", "Four.", "Five.", "Six.", "Seven."], [4, 1, 2]),
        (2, ["One. Two.", "Two.\nThree.", "Three.  Four.", "Five.", "Six. Seven."], [3, 1, 1]),
        (3, ["One. Two.\nThree.", "Two.\nThree.  Four.", "Five.", "Six. Seven."], [2, 1, 1]),
        (9, ["One. Two.\nThree.  Four.", "Five.", "Six. Seven."], [1, 1, 1]),
    ],
)
def test_windows_are_consecutive_sentences_of_one_post(window, texts, counts):
    found = windows(THREE, chunk(THREE, ChunksConfig()), window)
    assert list(found.texts) == texts
    assert np.diff(found.offsets).tolist() == counts
    assert found.post.tolist() == np.repeat([0, 1, 2], counts).tolist()
    spans = zip(found.post, found.start, found.end, strict=True)
    assert [THREE[post][start:end] for post, start, end in spans] == texts
    assert [array.dtype for array in (found.post, found.start, found.end, found.offsets)] == [np.int32] * 3 + [np.int64]


def test_windows_of_no_posts_and_of_other_posts():
    nothing = chunk([], ChunksConfig())
    assert len(windows([], nothing, 2)) == 0
    with pytest.raises(AssertionError, match="other posts"):
        windows(["One."], nothing, 2)


def test_evidence_marks_the_chunks_that_it_overlaps_by_half():
    #       0123456789012345678901234567890
    post = "I am sad. I am tired. It rains."
    corpus = Corpus(
        name="one",
        post_ids=("0", "1"),
        posts=("Nothing. At all.", post),
        criteria=(Criterion("sad", "sad"), Criterion("tired", "tired"), Criterion("wet", "wet")),
        labels=np.array([[0, 0, 0], [1, 1, 1]]),
        groups=("0", "1"),
        evidence=(
            Evidence(1, 0, 0, 9),  # a whole sentence
            Evidence(1, 1, 15, 20),  # one word inside a sentence
            Evidence(1, 2, 18, 31),  # the end of one sentence, less than half of it, and all of the next
        ),
    )
    mask = evidence_mask(corpus, chunk(corpus.posts, ChunksConfig()))
    assert mask.tolist() == [
        [False, False, False],
        [False, False, False],
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    in_pairs = evidence_mask(corpus, windows(corpus.posts, chunk(corpus.posts, ChunksConfig()), 2))
    assert in_pairs.tolist() == [[False, False, False], [True, True, False], [False, True, True]]


@pytest.mark.parametrize(
    "sentences",
    [
        ("我今天去了学校。", "下雨了！", "你好吗？", "他说：「好的。」", "然后走了……", "今天不想去"),
        ("我很累!", "你呢?", "好"),
        ("昨日は雨だった。", "円周率は３．１４です．", "次"),
        ("वह आया।", "वह गया॥", "फिर"),
        ("هل أنت هنا؟", "نعم"),
        ("میں تھک گیا ہوں۔", "نیند"),
        ("ሰላም።", "እንዴት ነህ፧", "ደህና"),
        ("ខ្ញុំទៅ។", "ខ្ញុំមក"),
        ("သူလာတယ်။", "သူသွားတယ်"),
        ("Ես գնացի։", "Նա եկավ"),
        ("བཀྲ་ཤིས།", "བདེ་ལེགས"),
    ],
    ids=["chinese", "ascii marks", "japanese", "hindi", "arabic", "urdu", "amharic", "khmer", "burmese", "armenian",
         "tibetan"],
)  # fmt: skip
def test_sentences_end_in_every_script_with_and_without_blanks(sentences):
    assert chunk_texts("".join(sentences)) == list(sentences)
    assert chunk_texts(" ".join(sentences)) == list(sentences)


@pytest.mark.parametrize("text", ["It costs 3.5.No", "see v2.0 of e.g.this", "Wait...what", "a\u2024b"])
def test_latin_text_still_needs_a_blank(text):
    assert chunk_texts(text) == [text]


def test_separators_of_lines_and_paragraphs_end_sentences():
    assert chunk_texts("one\u2028two\u2029three") == ["one", "two", "three"]


def test_the_examples_are_cut_as_ever():
    """Embeddings and results of existing studies depend on it."""
    corpus = PairsSource(path="pairs.csv").load(Path(__file__).parents[3] / "studies")
    chunks = chunk(corpus.posts, ChunksConfig())
    spans = np.stack([chunks.post, chunks.start, chunks.end]).astype("<i4").tobytes()
    assert hashlib.sha256(spans).hexdigest() == "e5854f952d0ce582da11ff7b1c6859bed7bc7cd31febe1c2e86e35cede133f02"


def test_chunks_from_the_cache_are_the_same_and_no_text_is_kept_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path))
    posts = ("First things. Second things!", "A lone \ud800 surrogate\nand a line")
    for config in (ChunksConfig(), ChunksConfig(max_words=4)):
        expected = chunk(posts, config)
        for _ in range(2):
            chunks = chunk_once(posts, config)
            assert chunks.texts == expected.texts
            for name in ("post", "start", "end", "offsets"):
                found, wanted = getattr(chunks, name), getattr(expected, name)
                assert (found.dtype, found.tolist()) == (wanted.dtype, wanted.tolist())
    assert not any(b"things" in path.read_bytes() for path in (tmp_path / "chunks").iterdir())
