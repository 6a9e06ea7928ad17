"""token: sequences equal to the tokenizer's, windows that cover a post, independent folds."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from sparse_evidence.core import explain
from sparse_evidence.core.config import BCEConfig, CandidateConfig, ChunksConfig, TokenConfig, TrainingConfig
from sparse_evidence.core.errors import ConfigError
from sparse_evidence.core.features.chunks import chunk
from sparse_evidence.core.features.encoders import locate
from sparse_evidence.core.features.tokens import TokenPosts, tokenise, vocabulary, windows
from sparse_evidence.core.features.views import EmbeddedCorpus, TextCorpus
from sparse_evidence.core.models import build_model
from sparse_evidence.core.models.token import Token, pool
from sparse_evidence.core.splits import Folds
from sparse_evidence.core.training.stack import FoldRow, FoldStack, make_stack
from sparse_evidence.core.training.state_file import pack_state, unpack_state

WORDS = [f"w{number}" for number in range(30)]
CRITERIA = ("w0 w1", "w2 w3 w4")
POSTS = 36


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return locate(str(tiny_encoder))


@pytest.fixture(scope="module")
def corpus(encoder):
    """Posts of 3 to 40 words; w5 anywhere means the first criterion, w6 the second."""
    generator = np.random.default_rng(0)
    posts = [" ".join(generator.choice(WORDS[7:], generator.integers(3, 40))).split() for _ in range(POSTS)]
    labels = generator.integers(0, 2, (POSTS, 2)).astype(np.int8)
    for post, row in zip(posts, labels, strict=True):
        for criterion in np.flatnonzero(row):
            post.insert(int(generator.integers(0, len(post))), WORDS[5 + criterion])
    labels[0, 0] = -1
    return TextCorpus(tuple(" ".join(post) for post in posts), CRITERIA, encoder, labels)


FOLDS = Folds(np.arange(POSTS) % 3, 3)


def candidate(training=None, **model):
    settings = {"batch_size": 8, "learning_rate": 0.01, **(training or {})}
    return CandidateConfig(
        TokenConfig(**{"max_length": 24, "stride": 10, "learning_rate_factor": 0.1, "head_epochs": 0, **model}),
        TrainingConfig(**settings),
        BCEConfig(),
    )


def untrained(corpus, config=None, **settings):
    """A model whose head is not zero, in evaluation mode, and its inputs."""
    config = config or candidate(dropout=0.0, **settings).model
    model, inputs = build_model(config, corpus, [np.arange(POSTS)], folds=[0], seed=0)
    with torch.no_grad():
        model.head.normal_(generator=torch.Generator().manual_seed(1))
    return model.eval(), inputs


# ---- sequences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "all-MiniLM-L6-v2"])
def test_sequences_equal_those_of_the_tokenizer(encoder, name):
    encoder = encoder if name == "tiny" else locate(name)
    tokenizer = AutoTokenizer.from_pretrained(encoder.folder, local_files_only=True)
    posts = ("w7 w8 w9", "w10")
    for reads in ("pairs", "posts"):
        batch = TokenPosts(encoder, posts, CRITERIA, TokenConfig(max_length=48, reads=reads)).batch(np.array([[1, 0]]))
        texts = [(c, p) for p in posts for c in CRITERIA] if reads == "pairs" else [(p,) for p in posts]
        expected = [tokenizer(*text, return_token_type_ids=True) for text in texts]
        for row, segment in enumerate(batch.segment_ids.tolist()):
            count = int(batch.mask[row].sum())
            assert batch.ids[row, :count].tolist() == expected[segment]["input_ids"]
            assert batch.types[row, :count].tolist() == expected[segment]["token_type_ids"]
            assert (batch.ids[row, count:] == tokenizer.pad_token_id).all()
        assert batch.inverse.tolist() == [1, 0]
        assert batch.segments == len(texts)
        assert batch.mask.sum(1).tolist() == sorted(batch.mask.sum(1).tolist(), reverse=True)


@pytest.mark.parametrize("length", [1, 10, 11, 25, 99])
@pytest.mark.parametrize("stride", [3, 7, 10, 500])
def test_windows_cover_every_token_and_are_full(length, stride):
    parts = windows(length, 10, TokenConfig(stride=stride))
    assert set(np.concatenate(parts)) == set(range(length))
    assert all(len(part) == min(length, 10) for part in parts)
    assert all((np.diff(part) == 1).all() for part in parts)
    assert len(parts) <= 1 + -(-max(0, length - 10) // min(stride, 10))


def test_head_tail_takes_both_ends_of_a_long_post():
    (window,) = windows(100, 12, TokenConfig(strategy="head_tail"))
    assert window.tolist() == [0, 1, 2, *range(91, 100)]
    assert windows(12, 12, TokenConfig(strategy="head_tail"))[0].tolist() == list(range(12))


def test_texts_are_tokenised_once(encoder):
    assert tokenise(encoder, CRITERIA) is tokenise(encoder, tuple(CRITERIA))
    assert [ids.tolist() for ids in tokenise(encoder, CRITERIA)] == [[4, 5], [6, 7, 8]]
    assert vocabulary(encoder).max_length == 64
    assert vocabulary(encoder).pair.count == 3


def test_impossible_lengths_are_refused(encoder, corpus):
    with pytest.raises(ConfigError, match=r"^max_length is 65, but .* reads 64 tokens at most; give at most 64"):
        TokenPosts(encoder, corpus.posts, CRITERIA, TokenConfig(max_length=65))
    with pytest.raises(ConfigError, match=r"^max_length is 16, but .* take 23 tokens; give at least 31"):
        TokenPosts(encoder, corpus.posts, ("w1 " * 20, "w2"), TokenConfig(max_length=16))


# ---- the model ---------------------------------------------------------------------------------------------------


def test_logits_do_not_depend_on_padding_other_posts_or_repetition(corpus):
    for reads in ("pairs", "posts"):
        model, inputs = untrained(corpus, reads=reads)
        with torch.no_grad():
            logits = model(inputs.batch(np.arange(POSTS)[None]))
            assert logits.shape == (1, POSTS, 2)
            subset = np.array([[7, 3, 7, 30]])
            torch.testing.assert_close(model(inputs.batch(subset))[0], logits[0, subset[0]], rtol=1e-4, atol=1e-5)
        assert logits[0].std(0).min() > 1e-3


@pytest.mark.parametrize("pooling", ["max", "mean", "logsumexp"])
def test_pooling_equals_its_definition(pooling):
    logits = torch.tensor([[1.0, -2.0], [3.0, 0.5], [200.0, -90.0], [-1.0, 0.0]], requires_grad=True)
    segment_ids = torch.tensor([1, 0, 2, 1])
    reference = {
        "max": lambda z: z.max(0).values,
        "mean": lambda z: z.mean(0),
        "logsumexp": lambda z: torch.logsumexp(z, 0) - np.log(len(z)),
    }[pooling]
    expected = torch.stack([reference(logits[segment_ids == row]) for row in range(3)])
    pooled = pool(logits, segment_ids, 3, pooling)
    torch.testing.assert_close(pooled, expected)
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    gradient = torch.autograd.grad((pooled * weights).sum(), logits)[0]
    logits.grad = None
    expected_gradient = torch.autograd.grad((expected * weights).sum(), logits)[0]
    torch.testing.assert_close(gradient, expected_gradient)


def test_frozen_layers_do_not_change_and_are_not_saved(corpus):
    stack = FoldStack(corpus, FOLDS, [0], candidate(freeze_layers=1), seed=0)
    before = {name: value.clone() for name, value in stack.model.named_parameters()}
    stack.advance()
    changed = {n for n, value in stack.model.named_parameters() if not torch.equal(value, before[n])}
    frozen = {name for name in before if "embeddings" in name or "layer.0." in name}
    assert frozen
    assert changed == set(before) - frozen
    assert stack.model.state_dict().keys() == changed
    other = FoldStack(corpus, FOLDS, [0], candidate(freeze_layers=1), seed=0)
    other.load_state_dict(copy.deepcopy(stack.state_dict()))
    np.testing.assert_array_equal(other.validate()[0][0], stack.validate()[0][0])
    with pytest.raises(ConfigError, match=r"^freeze_layers is 3, but .* has 2 layers; give at most 2"):
        untrained(corpus, freeze_layers=3)


def test_only_the_head_learns_in_the_head_epochs(corpus):
    stack = FoldStack(corpus, FOLDS, [0], candidate(head_epochs=1), seed=0)
    assert stack.warmup_epochs == 1
    changed = []
    for _ in range(2):
        before = {name: value.clone() for name, value in stack.model.named_parameters()}
        stack.advance()
        after = dict(stack.model.named_parameters())
        changed.append({name for name, value in before.items() if not torch.equal(value, after[name])})
        if len(changed) == 1:
            saved = unpack_state(pack_state(stack.state_dict()))
    assert changed[0] == {"head", "bias"}
    assert changed[1] == set(before)
    resumed = FoldStack(corpus, FOLDS, [0], candidate(head_epochs=1), seed=0)
    resumed.load_state_dict(saved)
    resumed.advance()
    np.testing.assert_array_equal(resumed.validate()[0][0], stack.validate()[0][0])


def test_a_missing_weight_that_is_not_frozen_is_reported(corpus):
    model, _ = untrained(corpus, freeze_layers=1)
    state = model.state_dict()
    del state["head"]
    with pytest.raises(RuntimeError, match="head"):
        model.load_state_dict(state)


# ---- training ----------------------------------------------------------------------------------------------------


def test_saving_memory_does_not_change_the_gradient(corpus):
    results = []
    for settings in ({"micro_batch": 8}, {"micro_batch": 3}, {"micro_batch": 3, "gradient_checkpointing": True}):
        stack = FoldStack(corpus, FOLDS, [0], candidate({"learning_rate": 1e-3}, dropout=0.0, **settings), seed=0)
        for module in stack.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
        end = stack.advance()
        results.append((end.train_loss[0], stack.validate()[0][0]))
    for loss, logits in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-5)
        np.testing.assert_allclose(logits, results[0][1], rtol=1e-3, atol=1e-4)


def test_sequential_single_and_resumed_folds_are_bit_identical(corpus):
    row = make_stack(corpus, FOLDS, [0, 1, 2], candidate(), seed=5)
    assert isinstance(row, FoldRow)
    assert row.fold_ids == (0, 1, 2)
    torch.manual_seed(99)  # the global generator does not matter
    losses = [row.advance().train_loss for _ in range(2)]
    assert row.epoch == 2
    logits, validation_loss = row.validate()
    assert len(losses[0]) == len(validation_loss) == 3

    state = torch.get_rng_state()
    single = make_stack(corpus, FOLDS, [1], candidate(), seed=5)
    first = single.advance()
    assert torch.equal(torch.get_rng_state(), state)  # and training does not disturb it
    resumed = make_stack(corpus, FOLDS, [1], candidate(), seed=5)
    resumed.load_state_dict(unpack_state(pack_state(single.state_dict())))
    second = resumed.advance()
    assert [first.train_loss[0], second.train_loss[0]] == [epoch[1] for epoch in losses]
    np.testing.assert_array_equal(resumed.validate()[0][0], logits[1])
    posts = [np.array([4, 2]), np.array([9]), np.array([0, 1, 5])]
    assert [part.shape for part in row.predict(posts)] == [(2, 2), (1, 2), (3, 2)]


def test_reduced_precision_is_close_and_follows_every_step(corpus):
    losses = {}
    for precision in ("float32", "bfloat16"):
        stack = FoldStack(corpus, FOLDS, [0], candidate(precision=precision), seed=0)
        losses[precision] = [stack.advance().train_loss[0] for _ in range(4)]
        assert {value.dtype for value in stack.model.parameters()} == {torch.float32}
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.03)
    assert losses["bfloat16"] != losses["float32"]


def test_dropout_is_seeded_by_epoch_batch_and_fold(corpus):
    model, inputs = untrained(corpus)
    model.train()
    batch = inputs.batch(np.array([[1, 2]]))

    def logits(key, passes):
        model.reseed([key])
        return [model(batch).detach() for _ in range(passes)]

    first, second = logits((0, "dropout", 0, 0), 2)
    assert not torch.equal(first, second)
    assert torch.equal(logits((0, "dropout", 0, 0), 1)[0], first)
    assert not torch.equal(logits((0, "dropout", 0, 1), 1)[0], first)
    assert not torch.equal(logits((0, "dropout", 1, 0), 1)[0], first)


@pytest.mark.parametrize("reads", ["pairs", "posts"])
def test_learns_the_deciding_words(corpus, reads):
    stack = make_stack(corpus, FOLDS, [0], candidate({"learning_rate": 0.03}, reads=reads, readout="mean"), seed=0)
    losses = [stack.advance().train_loss[0] for _ in range(25)]
    assert losses[-1] < 0.5 * losses[0]


def test_contribution_is_the_logit_minus_the_logit_without_the_chunk(corpus):
    model, _ = untrained(corpus)
    config = candidate().model
    posts = ("w7 w8. w9 w5 w10. w11.", "w12 w13.")
    features = TextCorpus(posts, CRITERIA, corpus.encoder, corpus.labels[:2])
    chunks = chunk(posts, ChunksConfig())
    attribution = explain.attribute_text(model, features, config, chunks, np.array([0, 1]), batch_size=2)
    assert chunks.texts == ("w7 w8.", "w9 w5 w10.", "w11.", "w12 w13.")
    without = ("w9 w5 w10. w11.", "w7 w8.  w11.", "w7 w8. w9 w5 w10. ", "")
    with torch.no_grad():
        logits = model(TokenPosts(corpus.encoder, posts, CRITERIA, config).batch(np.array([[0, 1]])))[0].numpy()
        inputs = TokenPosts(corpus.encoder, without, CRITERIA, config)
        occluded = model(inputs.batch(np.array([[0, 1, 2, 3]])))[0].numpy()
    np.testing.assert_allclose(attribution.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(attribution.contribution[0].T, logits[0] - occluded[:3], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(attribution.contribution[1, :, 0], logits[1] - occluded[3], rtol=1e-3, atol=1e-5)
    assert np.isnan(attribution.contribution[1, :, 1:]).all()
    assert np.isnan(attribution.attention).all()


def test_a_model_of_texts_has_no_attention_over_chunks(corpus):
    model, _ = untrained(corpus)
    embeddings = np.eye(3, dtype=np.float32)
    chunks = EmbeddedCorpus(embeddings, np.array([0, 2, 3]), embeddings[:2], corpus.labels[:2])
    with pytest.raises(TypeError, match=r"Token does not read chunks; use explain\.attribute_text"):
        explain.attribute(model, chunks, [np.array([0, 1])])


# ---- LoRA and pretrained weights ---------------------------------------------------------------------------------


def test_a_missing_peft_is_reported_in_one_sentence(corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ConfigError, match=r"^lora_rank needs the package peft.*pip install 'sparse-evidence-hpo\[lora\]'"
    ):
        untrained(corpus, lora_rank=2)


def test_lora_trains_and_saves_only_its_updates(corpus):
    pytest.importorskip("peft")
    stack = FoldStack(corpus, FOLDS, [0], candidate(lora_rank=2), seed=0)
    model = stack.model
    assert all("lora_" in name or name in {"head", "bias"} for name in model.state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stack.advance(), stack.advance()
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    other = FoldStack(corpus, FOLDS, [0], candidate(lora_rank=2), seed=0)
    other.load_state_dict(copy.deepcopy(stack.state_dict()))
    np.testing.assert_array_equal(other.validate()[0][0], stack.validate()[0][0])


@pytest.mark.slow
def test_fine_tuning_starts_from_the_pretrained_weights():
    encoder = locate("all-MiniLM-L6-v2")
    model = Token(TokenConfig(freeze_layers=6), encoder, torch.zeros(1, 2), seed=0, fold=0)
    settings = json.loads((encoder.folder / "config.json").read_text())
    assert model.head.shape == (2, settings["hidden_size"])
    from safetensors.torch import load_file

    saved = load_file(encoder.folder / "model.safetensors")
    loaded = dict(model.encoder.named_parameters())
    assert all(torch.equal(value, saved[name].float()) for name, value in loaded.items())
