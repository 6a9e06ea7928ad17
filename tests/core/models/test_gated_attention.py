"""The gated attention of ABMIL against the equation of its paper, for posts of several chunks."""

import numpy as np
import torch
from corpora import planted

from sparse_evidence.core.config import AbmilConfig
from sparse_evidence.core.models.abmil import Abmil

CORPUS = planted()
CONFIG = AbmilConfig(hidden=8, attention_hidden=5, dropout=0.0)


def noisy(folds=(0, 1)):
    model = Abmil(CONFIG, 12, torch.zeros(len(folds), 3), seed=0, folds=folds).eval()
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    return model


def by_the_paper(weights, chunks):
    """Attention `[criteria, chunks]` and logits of a post: a_k ∝ exp(wᵀ (tanh(V h_k) ⊙ σ(U h_k))), equation 9."""
    h = np.maximum(chunks @ weights["value"] + weights["value_bias"], 0)
    v, u = np.split(h @ weights["gated"] + weights["gated_bias"], 2, axis=1)
    scores = np.exp((np.tanh(v) / (1 + np.exp(-u))) @ weights["score"])
    attention = (scores / scores.sum(0)).T
    return attention, ((attention @ h) * weights["head"]).sum(1) + weights["bias"]


def test_attention_and_logits_equal_the_equation():
    model, posts = noisy(), np.arange(60)[None].repeat(2, 0)
    bag = CORPUS.bags.chunks("cpu").batch(posts)
    attention, logits = model.attention(bag).detach().numpy(), model(bag).detach().numpy()
    assert np.diff(CORPUS.offsets).max() > 5  # the attention over a single chunk is 1 by any equation
    for fold in (0, 1):
        weights = {name: value[fold].detach().double().numpy() for name, value in model.named_parameters()}
        for post in range(60):
            chunks = CORPUS.embeddings[CORPUS.offsets[post] : CORPUS.offsets[post + 1]]
            expected_attention, expected_logits = by_the_paper(weights, chunks.astype(np.float64))
            np.testing.assert_allclose(attention[fold, post, :, : len(chunks)], expected_attention, atol=1e-5)
            np.testing.assert_allclose(logits[fold, post], expected_logits, atol=1e-4)


def test_equal_chunks_share_the_attention_equally():
    """And a post of one chunk, repeated, has the logits of that chunk."""
    model = noisy()
    bag = CORPUS.bags.chunks("cpu").batch(np.array([[0], [0]]))
    single = type(bag)(bag.embeddings[:, :, :1], bag.present[:, :, :1])
    repeated = type(bag)(single.embeddings.repeat(1, 1, 4, 1), single.present.repeat(1, 1, 4))
    torch.testing.assert_close(model.attention(repeated), torch.full((2, 1, 3, 4), 0.25))
    torch.testing.assert_close(model(repeated), model(single), atol=1e-5, rtol=1e-4)
