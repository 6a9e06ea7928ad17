"""Token sequences of other kinds of encoders, and the limits on their length."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

from sparse_evidence.core.config import TokenConfig
from sparse_evidence.core.errors import ConfigError
from sparse_evidence.core.features.encoders import locate
from sparse_evidence.core.features.tokens import HEAD_SHARE, MIN_POST_TOKENS, TokenPosts, vocabulary, windows
from sparse_evidence.core.features.views import TextCorpus
from sparse_evidence.core.models import build_model

WORDS = [f"w{number}" for number in range(20)]
CRITERIA = ("w0 w1", "w2 w3 w4")


def save_encoder(folder, *, max_length=40, positions=32):
    """A DistilBERT with RoBERTa's format: no token types, `<s> A </s> </s> B </s>`, and no padding token."""
    specials = ["<s>", "</s>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, unk_token="<unk>")
    fast.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = DistilBertConfig(
            vocab_size=len(vocabulary), dim=8, hidden_dim=16, n_layers=1, n_heads=2, max_position_embeddings=positions
        )
        DistilBertModel(config).save_pretrained(folder)
    return locate(str(folder))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoders") / "distil")


# ---- the template -----------------------------------------------------------------------------------------------


def test_the_special_tokens_are_those_of_the_encoder(encoder):
    special = vocabulary(encoder)
    assert [part.tolist() for part in special.single.parts] == [[0], [1]]
    assert [part.tolist() for part in special.pair.parts] == [[0], [1, 1], [1]]
    assert (special.single.count, special.pair.count) == (2, 4)
    assert (special.single.types, special.pair.types) == ((0,), (0, 0))
    assert special.pad == 0  # the tokenizer has none: any token will do, because it is masked


@pytest.mark.parametrize(("max_length", "positions", "expected"), [(40, 32, 32), (24, 32, 24), (int(1e30), 32, 32)])
def test_the_longest_sequence_is_the_smaller_limit_of_tokenizer_and_model(max_length, positions, expected, tmp_path):
    encoder = save_encoder(tmp_path / "one", max_length=max_length, positions=positions)
    assert vocabulary(encoder).max_length == expected


def test_a_sequence_is_criterion_and_post_between_the_special_tokens(encoder):
    batch = TokenPosts(encoder, ("w5 w6", "w7"), CRITERIA, TokenConfig(max_length=32)).batch(np.array([[0, 1, 0]]))
    rows = {
        segment: ids[mask].tolist()
        for segment, ids, mask in zip(batch.segment_ids.tolist(), batch.ids, batch.mask, strict=True)
    }
    assert rows == {
        0: [0, 3, 4, 1, 1, 8, 9, 1],
        1: [0, 5, 6, 7, 1, 1, 8, 9, 1],
        2: [0, 3, 4, 1, 1, 10, 1],
        3: [0, 5, 6, 7, 1, 1, 10, 1],
    }
    assert batch.inverse.tolist() == [0, 1, 0]
    assert (batch.types == 0).all()


@pytest.mark.parametrize("readout", ["mean", "first"])
@pytest.mark.parametrize("reads", ["pairs", "posts"])
def test_an_encoder_without_token_types_and_pooler_can_be_trained(encoder, reads, readout):
    """Its logits equal those of the encoder called by hand, one sequence at a time."""
    corpus = TextCorpus(("w5 w6 w7", "w8"), CRITERIA, encoder, np.array([[1, 0], [0, 1]], dtype=np.int8))
    config = TokenConfig(max_length=32, reads=reads, readout=readout)
    model, inputs = build_model(config, corpus, [np.arange(2)], folds=[0], seed=0)
    with torch.no_grad():
        model.eval().head.normal_(generator=torch.Generator().manual_seed(1))
        logits = model(inputs.batch(np.array([[0, 1]])))[0]
        for post, text in enumerate(([8, 9, 10], [11])):
            for criterion, prefix in enumerate(([3, 4], [5, 6, 7])):
                ids = [0, *prefix, 1, 1, *text, 1] if reads == "pairs" else [0, *text, 1]
                states = model.encoder(torch.tensor([ids])).last_hidden_state[0]
                state = states[0] if readout == "first" else states.mean(0)
                expected = state / state.norm() @ model.head[criterion] + model.bias[criterion]
                torch.testing.assert_close(logits[post, criterion], expected, atol=1e-5, rtol=1e-4)


# ---- lengths ----------------------------------------------------------------------------------------------------


def test_lengths_count_the_tokens_of_all_windows(encoder):
    posts = (" ".join(["w5"] * 40), "w5 w6", "")
    config = TokenConfig(max_length=16, reads="posts", stride=10)
    # 14 tokens fit: windows start at 0, 10, 20 and, full up to the end, at 26
    assert TokenPosts(encoder, posts, CRITERIA, config).lengths.tolist() == [4 * 14, 2, 1]


def test_a_post_without_tokens_has_one_empty_sequence_for_each_criterion(encoder):
    batch = TokenPosts(encoder, ("", "w5"), CRITERIA, TokenConfig(max_length=32)).batch(np.array([[0]]))
    assert batch.segments == 2
    assert sorted(batch.ids[row][batch.mask[row]].tolist() for row in range(2)) == [
        [0, 3, 4, 1, 1, 1],
        [0, 5, 6, 7, 1, 1, 1],
    ]


def test_the_longest_criterion_leaves_room_for_the_post(encoder):
    """The same room for all criteria: special tokens, the criterion, and at least a few tokens of the post."""
    long = " ".join(["w1"] * (16 - 4 - MIN_POST_TOKENS))
    inputs = TokenPosts(encoder, ("w5 " * 30,), ("w0", long), TokenConfig(max_length=16))
    batch = inputs.batch(np.array([[0]]))
    assert batch.mask.sum(1).max() == 16
    windows_per_criterion = torch.bincount(batch.segment_ids)
    assert windows_per_criterion[0] == windows_per_criterion[1]
    with pytest.raises(ConfigError, match="take 9 tokens; give at least 17"):
        TokenPosts(encoder, ("w5",), (long + " w1",), TokenConfig(max_length=16))


def test_criteria_take_no_room_where_they_are_not_read(encoder):
    TokenPosts(encoder, ("w5",), ("w1 " * 30,), TokenConfig(max_length=16, reads="posts"))


def test_the_micro_batch_limits_the_posts_of_a_pass(encoder):
    for micro_batch in (1, 5):
        config = TokenConfig(max_length=16, reads="posts", micro_batch=micro_batch)
        assert TokenPosts(encoder, ("w5",), CRITERIA, config).max_posts_per_pass == micro_batch


def test_stacked_folds_are_a_mistake_of_the_caller(encoder):
    inputs = TokenPosts(encoder, ("w5", "w6"), CRITERIA, TokenConfig(max_length=32))
    with pytest.raises(AssertionError, match="do not stack"):
        inputs.batch(np.array([[0], [1]]))


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 60), st.integers(1, 80))
def test_windows_overlap_as_configured_and_end_with_the_post(length, budget, stride):
    parts = windows(length, budget, TokenConfig(stride=stride))
    starts = [int(part[0]) for part in parts if len(part)]
    assert set(range(length)) == {int(token) for part in parts for token in part}
    assert starts[:-1] == [at * min(stride, budget) for at in range(len(starts) - 1)]
    assert all(later > earlier for earlier, later in pairwise(starts))


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 60))
def test_head_and_tail_are_one_window_without_repetition(length, budget):
    (part,) = windows(length, budget, TokenConfig(strategy="head_tail"))
    assert len(set(part.tolist())) == len(part) == min(length, budget)
    assert (np.diff(part) > 0).all()
    if length > budget:
        head = int((part == np.arange(budget)).sum())
        assert abs(head - budget * HEAD_SHARE) <= 1
        assert part[-1] == length - 1
