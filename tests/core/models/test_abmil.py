"""ABMIL: attention as in its paper, independent folds, logits that depend on the post."""

import copy
import math

import numpy as np
import pytest
import torch

from sparse_evidence.core.config import AbmilConfig, BCEConfig, CandidateConfig, TrainingConfig
from sparse_evidence.core.features.bags import ChunkBags
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.models.abmil import Abmil
from sparse_evidence.core.splits import Folds
from sparse_evidence.core.training.stack import FoldStack

DIM, CRITERIA, POSTS = 12, 3, 40
CONFIG = AbmilConfig(hidden=8, attention_hidden=5, dropout=0.2)


@pytest.fixture(scope="module")
def corpus():
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 9, POSTS)
    embeddings = generator.standard_normal((counts.sum(), DIM)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = generator.integers(0, 2, (POSTS, CRITERIA)).astype(np.int8)
    labels[3, 1] = -1
    criteria = embeddings[:CRITERIA].copy()
    return EmbeddedCorpus(embeddings, np.concatenate([[0], np.cumsum(counts)]), criteria, labels)


def perturbed(folds=(0, 1)):
    """A model with noise on all initial weights, with which the head is zero."""
    model = Abmil(CONFIG, DIM, torch.zeros(len(folds), CRITERIA), seed=0, folds=folds).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape[1:], generator=torch.Generator().manual_seed(number)))
    return model


def test_logits_equal_the_formula(corpus):
    model = perturbed()
    rows = corpus.embeddings[corpus.offsets[0] : corpus.offsets[1]]
    assert len(rows) > 1, "with one chunk any attention passes"
    logits = model(ChunkBags(corpus.embeddings, corpus.offsets).batch(np.array([[0, 2], [0, 9]])))
    for fold in range(2):
        weight = {name: value[fold].detach().double().numpy() for name, value in model.named_parameters()}
        h = np.maximum(rows @ weight["value"] + weight["value_bias"], 0)
        gated = h @ weight["gated"] + weight["gated_bias"]
        v, u = gated[:, :5], gated[:, 5:]
        for criterion in range(CRITERIA):
            score = (np.tanh(v) / (1 + np.exp(-u))) @ weight["score"][:, criterion]
            attention = np.exp(score) / np.exp(score).sum()
            expected = (attention @ h) @ weight["head"][criterion] + weight["bias"][criterion]
            assert logits[fold, 0, criterion].item() == pytest.approx(expected, abs=1e-4)


def test_attention_is_a_distribution_over_the_posts_own_chunks(corpus):
    bag = ChunkBags(corpus.embeddings, corpus.offsets).batch(np.arange(POSTS)[None].repeat(2, 0))
    weights = perturbed().attention(bag)
    assert weights.shape == (2, POSTS, CRITERIA, bag.present.shape[-1])
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, POSTS, CRITERIA))
    assert (weights.masked_select(~bag.present[:, :, None]) == 0).all()


def test_logits_depend_on_the_post_but_not_on_the_order_of_its_chunks(corpus):
    model, bags = perturbed(), ChunkBags(corpus.embeddings, corpus.offsets)
    flipped = corpus.embeddings.copy()
    start, end = corpus.offsets[7:9]
    flipped[start:end] = flipped[start:end][::-1]
    posts = np.array([[7], [7]])
    torch.testing.assert_close(model(bags.batch(posts)), model(ChunkBags(flipped, corpus.offsets).batch(posts)))
    assert (model(bags.batch(posts)) - model(bags.batch(posts + 1))).abs().min() > 1e-4


def test_initial_logits_are_the_prior_and_initial_weights_differ_by_fold(corpus):
    prior = torch.tensor([[-2.0, 0.0, 1.0], [-1.0, 0.5, 3.0]])
    model = Abmil(CONFIG, DIM, prior, seed=0, folds=[0, 4]).eval()
    logits = model(ChunkBags(corpus.embeddings, corpus.offsets).batch(np.array([[1, 2], [3, 4]])))
    torch.testing.assert_close(logits, prior[:, None].expand(2, 2, CRITERIA))
    assert not torch.equal(model.value[0], model.value[1])
    alone = Abmil(CONFIG, DIM, prior[1:], seed=0, folds=[4])
    assert all(
        torch.equal(single[0], stacked[1])
        for single, stacked in zip(alone.parameters(), model.parameters(), strict=True)
    )


def test_stacked_single_and_resumed_folds_agree(corpus):
    folds = Folds(np.arange(POSTS) % 3, 3)
    candidate = CandidateConfig(CONFIG, TrainingConfig(batch_size=8, learning_rate=0.01), BCEConfig())

    def stack(fold_ids):
        return FoldStack(corpus, folds, fold_ids, candidate, seed=3)

    stacked = stack([0, 1, 2])
    losses = [stacked.advance().train_loss for _ in range(4)]
    assert all(math.isfinite(loss) for loss in losses[-1])
    assert np.mean(losses[-1]) < np.mean(losses[0])
    logits, _ = stacked.validate()

    halfway = stack([1])
    halfway.advance(), halfway.advance()
    resumed = stack([1])
    resumed.load_state_dict(copy.deepcopy(halfway.state_dict()))
    resumed.advance(), resumed.advance()
    np.testing.assert_allclose(resumed.validate()[0][0], logits[1], rtol=1e-4, atol=1e-5)
    halfway.advance(), halfway.advance()
    np.testing.assert_array_equal(resumed.validate()[0][0], halfway.validate()[0][0])


def test_attends_to_the_one_chunk_that_decides():
    generator = np.random.default_rng(1)
    offsets = np.arange(0, 1601, 8)
    embeddings = generator.standard_normal((1600, DIM)).astype(np.float32)
    labels = generator.integers(0, 2, (200, 1)).astype(np.int8)
    places = offsets[:-1] + generator.integers(0, 8, 200)
    embeddings[places[labels[:, 0] == 1]] = np.eye(DIM)[0] * 4
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    corpus = EmbeddedCorpus(embeddings, offsets, np.eye(DIM, dtype=np.float32)[1:2], labels)
    folds = Folds(np.arange(200) % 2, 2)
    candidate = CandidateConfig(CONFIG, TrainingConfig(batch_size=20, learning_rate=0.01), BCEConfig())
    stack = FoldStack(corpus, folds, [0], candidate, seed=0)
    for _ in range(15):
        stack.advance()
    validation = folds.validation(0)
    (logits,), _ = stack.validate()
    assert ((logits[:, 0] > 0) == labels[validation, 0]).mean() > 0.95
    positive = validation[labels[validation, 0] == 1]
    weights = stack.model.attention(stack.inputs.batch(positive[None]))
    assert (weights[0, :, 0].argmax(-1).numpy() + offsets[positive] == places[positive]).mean() > 0.95
