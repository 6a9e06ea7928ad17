"""Rankings and evidence hits of any attribution against loops, and attributions of any model against its passes."""

import numpy as np
import pytest
import torch
from corpora import assert_same_bits, planted
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparse_evidence.core import explain
from sparse_evidence.core.config import AbmilConfig, IrisConfig, LinearConfig, RetrievalConfig
from sparse_evidence.core.explain import Attribution
from sparse_evidence.core.features.retrieval import NOTHING
from sparse_evidence.core.models import build_model

MODELS = [
    IrisConfig(hidden=8, num_queries=2, dropout=0.5),
    AbmilConfig(hidden=8, dropout=0.5),
    LinearConfig(),
    RetrievalConfig(),
]
every_model = pytest.mark.parametrize("config", MODELS, ids=lambda config: config.name)


@st.composite
def attributions(draw):
    """An attribution of some posts of a corpus, the corpus's offsets, labels, and evidence of its chunks."""
    source = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = np.array(draw(st.lists(st.integers(1, 5), min_size=1, max_size=6)))
    criteria = draw(st.integers(1, 3))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    posts = source.permutation(len(lengths))[: draw(st.integers(1, len(lengths)))]
    width = int(lengths[posts].max())
    chunks = np.array([[c if c < offsets[p + 1] else NOTHING for c in offsets[p] + np.arange(width)] for p in posts])
    absent = np.broadcast_to((chunks == NOTHING)[:, None], (len(posts), criteria, width))
    contribution = source.integers(-2, 3, absent.shape).astype(np.float32)  # many ties
    attention = source.integers(1, 4, absent.shape).astype(np.float32)
    contribution[absent], attention[absent] = np.nan, 0
    logits = source.standard_normal((len(posts), criteria)).astype(np.float32)
    labels = source.choice((-1, 0, 1), (len(lengths), criteria)).astype(np.int8)
    evidence = source.random((offsets[-1], criteria)) < 0.4
    return Attribution(posts, logits, chunks, attention, contribution), labels, evidence


# ---- rankings ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(attributions(), st.sampled_from(["contribution", "attention"]))
def test_a_ranking_sorts_the_chunks_of_a_post_and_keeps_the_order_of_equal_ones(case, by):
    attribution, _, _ = case
    ranking = attribution.ranking(by)
    assert ranking.shape == attribution.contribution.shape
    for (row, criterion), _ in np.ndenumerate(attribution.logits):
        scores = getattr(attribution, by)[row, criterion]
        present = [place for place, chunk in enumerate(attribution.chunks[row]) if chunk != NOTHING]
        expected = [attribution.chunks[row, place] for place in sorted(present, key=lambda place: -scores[place])]
        assert ranking[row, criterion].tolist() == expected + [NOTHING] * (len(scores) - len(expected))


@settings(deadline=None)
@given(attributions(), st.sampled_from(["contribution", "attention"]))
def test_a_hit_is_a_top_chunk_that_is_evidence(case, by):
    attribution, labels, evidence = case
    expected = []
    for row, post in enumerate(attribution.posts):
        chunks = attribution.chunks[row][attribution.chunks[row] != NOTHING]
        for criterion in range(labels.shape[1]):
            if labels[post, criterion] == 1 and evidence[chunks, criterion].any():
                top = attribution.ranking(by)[row, criterion, 0]
                expected.append((post, criterion, evidence[top, criterion], evidence[chunks, criterion].mean()))
    hits = explain.evidence_hits(attribution, evidence, labels, by=by)
    measured = list(zip(hits.posts, hits.criteria, hits.hit, hits.chance, strict=True))
    assert measured == [pytest.approx(pair) for pair in expected]
    if expected:
        assert hits.rate == pytest.approx(np.mean([hit for _, _, hit, _ in expected]))
        assert hits.expected == pytest.approx(np.mean([chance for *_, chance in expected]))


@settings(deadline=None, max_examples=30)
@given(attributions(), attributions())
def test_attributions_are_combined_in_the_order_of_their_posts(left, right):
    first, second = left[0], right[0]
    assume(first.logits.shape[1] == second.logits.shape[1])
    second = Attribution(second.posts + 100, second.logits, second.chunks, second.attention, second.contribution)
    combined = explain.concatenate([second, first])
    assert combined.posts.tolist() == sorted([*first.posts, *second.posts])
    for part in (first, second):
        for row, post in enumerate(part.posts):
            position, length = combined.posts.tolist().index(post), part.chunks.shape[1]
            np.testing.assert_array_equal(combined.logits[position], part.logits[row])
            np.testing.assert_array_equal(combined.chunks[position, :length], part.chunks[row])
            assert (combined.chunks[position, length:] == NOTHING).all()
            for name, fill in (("attention", 0), ("contribution", np.nan)):
                values = getattr(combined, name)[position]
                np.testing.assert_array_equal(values[:, :length], getattr(part, name)[row])
                np.testing.assert_array_equal(values[:, length:], np.full_like(values[:, length:], fill))


# ---- attributions of models -------------------------------------------------------------------------------------


def noisy(config, corpus, folds=(0, 1)):
    model, inputs = build_model(config, corpus, [np.arange(60)] * len(folds), folds=folds, seed=0)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    return model, inputs


@every_model
def test_attributing_leaves_the_model_as_it_was(config):
    """Its mode, its weights, and the generators: an explanation in the middle of a training disturbs nothing."""
    corpus = planted()
    model, _ = noisy(config, corpus)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        explain.attribute(model, corpus, [np.arange(3)] * 2)
        assert model.training is training
    assert torch.equal(torch.get_rng_state(), generator)
    assert_same_bits(dict(model.state_dict()), before)
    assert all(weight.grad is None for weight in model.parameters())


@every_model
def test_a_training_model_is_attributed_without_dropout(config):
    corpus = planted()
    model, inputs = noisy(config, corpus)
    posts = [np.arange(8), np.arange(8, 16)]
    attributions = explain.attribute(model.train(), corpus, posts)
    with torch.no_grad():
        logits = model.eval()(inputs.batch(np.stack(posts))).numpy()
    for fold in (0, 1):
        np.testing.assert_allclose(attributions[fold].logits, logits[fold], atol=1e-4)


@every_model
def test_a_post_is_attributed_alone_as_in_any_list(config):
    """In any position, beside longer posts, in any pass, and whatever the other folds are attributed."""
    corpus = planted(posts=150)
    model, _ = noisy(config, corpus)
    order = np.random.default_rng(0).permutation(150)
    for fold, attribution in enumerate(explain.attribute(model, corpus, [order, order[:7]])):
        for position in (0, 3, -1):
            post, length = attribution.posts[position], int(np.diff(corpus.offsets)[attribution.posts[position]])
            alone = explain.attribute(model, corpus, [np.array([post])] * 2)[fold]
            assert alone.chunks.shape == (1, length)
            np.testing.assert_array_equal(alone.chunks[0], attribution.chunks[position, :length])
            np.testing.assert_allclose(alone.logits[0], attribution.logits[position], atol=1e-4)
            for name in ("attention", "contribution"):
                many = getattr(attribution, name)[position]
                np.testing.assert_allclose(getattr(alone, name)[0], many[:, :length], atol=1e-4)


@every_model
def test_the_only_chunk_of_a_post_contributes_what_the_post_adds_to_the_bias(config):
    corpus = planted()
    model, _ = noisy(config, corpus)
    single = np.flatnonzero(np.diff(corpus.offsets) == 1)
    for fold, attribution in enumerate(explain.attribute(model, corpus, [single] * 2)):
        expected = attribution.logits - model.bias[fold].detach().numpy()
        np.testing.assert_allclose(attribution.contribution[:, :, 0], expected, atol=1e-5)
        np.testing.assert_allclose(attribution.attention, 1.0, atol=1e-6)


def test_the_overlap_is_the_mean_jaccard_similarity_over_all_posts():
    """More posts than one pass holds, so that no pass counts twice."""
    corpus = planted(posts=150)
    config = IrisConfig(hidden=8, num_queries=3, k_retrieved=2)
    model, _ = noisy(config, corpus)
    posts = np.arange(150)
    measured = explain.specialisation(model, corpus, posts, fold=1, k=4)
    queries = torch.nn.functional.normalize(model.queries.detach()[1], dim=-1).numpy()
    expected = np.zeros((3, 3, 3))
    for post in posts:
        chunks = corpus.embeddings[corpus.offsets[post] : corpus.offsets[post + 1]]
        for criterion in range(3):
            sets = [set(np.argsort(-chunks @ query)[:2].tolist()) for query in queries[criterion]]
            expected[criterion] += [[len(a & b) / len(a | b) for b in sets] for a in sets]
    np.testing.assert_allclose(measured.overlap, expected / 150, atol=1e-5)
    np.testing.assert_allclose(measured.cosine, queries @ queries.swapaxes(1, 2), atol=1e-5)
    nearest = np.argsort(-queries @ corpus.embeddings.T, axis=-1)[..., :4]
    np.testing.assert_array_equal(measured.nearest.chunks, nearest)
