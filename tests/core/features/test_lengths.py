"""Chunks longer than the encoder's window are cut, and nothing of them is lost."""

import pytest
from tokenizers import Tokenizer

from sparse_evidence.core.config import ChunksConfig
from sparse_evidence.core.errors import EncoderError
from sparse_evidence.core.features.chunks import chunk
from sparse_evidence.core.features.encoders import Encoder, locate
from sparse_evidence.core.features.lengths import within, within_all

ENCODER = locate("all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def tokens():
    tokenizer = Tokenizer.from_file(str(ENCODER.folder / "tokenizer.json"))
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text).ids)


@pytest.mark.parametrize(
    "post",
    ["我今天去了学校" * 100, "antidisestablishmentarianism " * 62, "Short. " + "0 " * 60 + "1" * 90, "é1" * 700],
    ids=["no blanks", "long words", "short", "numbers"],
)
def test_no_chunk_is_longer_than_the_encoder_reads(post, tokens):
    posts = ["Before.", post, "After. It is."]
    chunks = chunk(posts, ChunksConfig(max_words=512))
    fitting, cut = within(posts, chunks, ENCODER)
    assert max(map(tokens, fitting.texts)) <= 256
    for row, text in enumerate(posts):
        part = slice(*fitting.offsets[row : row + 2].tolist())
        spans = zip(fitting.start[part].tolist(), fitting.end[part].tolist(), strict=True)
        assert "".join("".join(text[start:end] for start, end in spans).split()) == "".join(text.split())
    if max(map(tokens, chunks.texts)) <= 256:
        assert fitting is chunks
        assert cut is None
    else:
        assert (cut.chunks, cut.pieces) == (1, len(fitting) - len(chunks) + 1)


def test_it_is_cut_at_blanks_and_told_in_a_sentence():
    posts = ["antidisestablishmentarianism " * 62]
    fitting, cuts = within_all(posts, chunk(posts, ChunksConfig()), [ENCODER, ENCODER])
    assert all(set(text.split()) == {"antidisestablishmentarianism"} for text in fitting.texts)
    assert list(map(str, cuts)) == [
        f"1 chunk is longer than the 256 tokens that all-MiniLM-L6-v2 reads, and cut into {len(fitting)}"
    ]


def test_a_damaged_tokenizer_is_an_error_in_one_sentence(tmp_path):
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    (tmp_path / "tokenizer.json").write_text("{")
    posts = ["A sentence of many words that are too long."]
    with pytest.raises(EncoderError, match=r'encoder "mine" in .* cannot be loaded \(Exception: EOF while parsing'):
        within(posts, chunk(posts, ChunksConfig()), Encoder("mine", tmp_path, "1", is_local=True))
