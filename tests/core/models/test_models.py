"""A model depends on its post, on nothing else, and only on the chunks that it retrieves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import planted, unit, with_post

from sparse_evidence.core.config import (
    MODELS,
    InstanceConfig,
    IrisConfig,
    LinearConfig,
    RetrievalConfig,
    is_solved,
    reads_text,
)
from sparse_evidence.core.errors import ConfigError
from sparse_evidence.core.features.views import TextCorpus
from sparse_evidence.core.models import (
    REGISTRY,
    build_model,
    fuses_folds,
    make_inputs,
    prior_log_odds,
)
from sparse_evidence.core.models.base import enable_gradient_checkpointing
from sparse_evidence.core.models.dropout import FoldDropout
from sparse_evidence.core.models.iris_operations import largest, overlap
from sparse_evidence.core.seeding import numpy_generator

PUBLISHED = {"similarities": 0, "mean_embedding": False}
"""IRIS without its direct inputs."""
IRIS = IrisConfig(num_queries=3, k_retrieved=3, hidden=8)
CONFIGS = [IRIS, replace(IRIS, **PUBLISHED), InstanceConfig(hidden=8), LinearConfig(), RetrievalConfig()]
every_model = pytest.mark.parametrize(
    "config", CONFIGS, ids=["iris", "iris as published", "instance", "linear", "retrieval"]
)
POSTS = np.array([[0, 1, 2, 3, 4, 5]])


def perturbed(config, corpus, folds=(0,), seed=0, train=None):
    """A model with noise on all initial weights, with which heads are zero and every logit is the prior."""
    train = np.arange(len(corpus.labels)) if train is None else train
    model, _ = build_model(config, corpus, [train] * len(folds), folds=folds, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def logits(model, config, corpus, posts=POSTS):
    with torch.no_grad():
        return model(make_inputs(config, corpus).batch(posts)).numpy()


def other_chunks(count, seed=1, dim=12):
    return unit(numpy_generator(seed, "other").standard_normal((count, dim)))


# ---- logits depend on the post alone ----------------------------------------------------------------------------


@every_model
def test_changing_the_post_changes_its_logits(config):
    corpus = planted()
    model = perturbed(config, corpus)
    before = logits(model, config, corpus)
    after = logits(model, config, with_post(corpus, 2, other_chunks(5)))
    assert (np.abs(before - after)[0, 2] > 1e-3).all()  # for every criterion


@every_model
def test_different_posts_have_different_logits(config):
    corpus = planted()
    all_logits = logits(perturbed(config, corpus), config, corpus, np.arange(40)[None])
    assert (all_logits.std(1) > 1e-2).all()


@every_model
def test_logits_do_not_depend_on_other_posts_of_the_batch(config):
    corpus = planted()
    model = perturbed(config, corpus)
    length = np.diff(corpus.offsets)[3]
    before = logits(model, config, corpus)
    after = logits(model, config, with_post(corpus, 3, other_chunks(length)))
    unchanged = [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(before[0, unchanged], after[0, unchanged])  # the same shapes, so the same bits


@every_model
@pytest.mark.parametrize("post", range(6))
def test_logits_do_not_depend_on_padding(config, post):
    corpus = planted()
    model = perturbed(config, corpus)
    padded = with_post(corpus, (post + 1) % 6, other_chunks(40))  # one post much longer than all the others
    with_padding = logits(model, config, padded)[:, post]
    without = logits(model, config, corpus, np.array([[post]]))[:, 0]
    np.testing.assert_allclose(with_padding, without, atol=1e-5)


@every_model
def test_logits_do_not_depend_on_the_order_of_chunks(config):
    corpus = planted()
    model = perturbed(config, corpus)
    start, end = corpus.offsets[0], corpus.offsets[1]
    reversed_chunks = with_post(corpus, 0, corpus.embeddings[start:end][::-1])
    np.testing.assert_allclose(logits(model, config, corpus), logits(model, config, reversed_chunks), atol=1e-5)


@every_model
def test_stacked_folds_equal_single_folds(config):
    corpus = planted()
    posts = np.array([[0, 1, 2], [3, 4, 5]])
    stacked = perturbed(config, corpus, folds=(0, 1))
    stacked_logits = logits(stacked, config, corpus, posts)
    for fold in (0, 1):
        single = perturbed(config, corpus, folds=(fold,))
        single.load_state_dict({name: value[[fold]] for name, value in stacked.state_dict().items()})
        np.testing.assert_allclose(stacked_logits[fold], logits(single, config, corpus, posts[[fold]])[0], atol=1e-5)


# ---- IRIS against a slow reference ------------------------------------------------------------------------------


def slow_iris(model, config, chunks, criterion):
    """One post, one criterion, query by query in float64: the paper's formulas as a loop."""
    w = double_weights(model)
    pooled = np.zeros(config.hidden)
    for query in w["queries"][criterion]:
        similarity = chunks.astype(np.float64) @ (query / np.linalg.norm(query))
        retrieved = np.argsort(-similarity)[: config.k_retrieved]
        attention = np.exp(similarity[retrieved] / config.temperature)
        value = (attention / attention.sum()) @ (chunks[retrieved] @ w["value"])
        inner = np.maximum(value @ w["inner"] + w["inner_bias"], 0)
        pooled += (value + inner @ w["outer"]) / config.num_queries
    normed = (pooled - pooled.mean()) / np.sqrt(pooled.var() + 1e-5)
    return (normed * w["scale"] + w["shift"]) @ w["head"][criterion] + w["bias"][criterion]


def double_weights(model):
    """The state of the first fold, float64."""
    return {name: value[0].numpy().astype(np.float64) for name, value in model.state_dict().items()}


def slow_similarities(queries, chunks, count):
    """The highest cosines of all queries, the second highest of all, ..., and their means."""
    cosines = [chunks.astype(np.float64) @ (query / np.linalg.norm(query)) for query in queries.reshape(-1, 12)]
    descending = [sorted(column, reverse=True) for column in cosines]
    highest = [[column[min(rank, len(column) - 1)] for column in descending] for rank in range(count)]
    return np.array([*highest, [column.mean() for column in cosines]]).ravel()


def slow_direct(model, config, corpus, post, train):
    """What the direct inputs add to the logits of a post, with constants from the posts `train`."""
    w, start = double_weights(model), double_weights(build_model(config, corpus, [train], folds=[0], seed=0)[0])
    posts = [corpus.embeddings[corpus.offsets[p] : corpus.offsets[p + 1]] for p in range(len(corpus.labels))]
    total = np.zeros(3)
    if config.similarities:
        fitted = np.array([slow_similarities(start["queries"], posts[p], config.similarities) for p in train])
        inputs = slow_similarities(w["queries"], posts[post], config.similarities) - fitted.mean(0)
        total += (config.similarity_weight * inputs / fitted.std(0)) @ w["similarity_head"]
    if config.mean_embedding:
        means = unit(np.array([chunks.mean(0) for chunks in posts], dtype=np.float64)).astype(np.float64)
        total += (means[post] - means[train].mean(0)) / means[train].std(0) @ w["mean_head"]
    return total


@pytest.mark.parametrize("direct", [(0, True), (1, False), (3, True), (10, True), (12, True)])
def test_direct_inputs_add_what_their_slow_reference_says(direct):
    config = replace(IRIS, similarities=direct[0], mean_embedding=direct[1], similarity_weight=3.0)
    corpus, train = planted(), np.arange(10, 50)
    assert np.diff(corpus.offsets).min() == 1  # some posts have fewer chunks than similarities
    model = perturbed(config, corpus, train=train)
    fast = logits(model, config, corpus, np.arange(20)[None])[0]
    for post in range(20):
        chunks = corpus.embeddings[corpus.offsets[post] : corpus.offsets[post + 1]]
        expected = [slow_iris(model, config, chunks, criterion) for criterion in range(3)]
        np.testing.assert_allclose(fast[post], expected + slow_direct(model, config, corpus, post, train), atol=1e-3)


@pytest.mark.parametrize("k", [1, 2, 4, 50])
def test_iris_as_published_equals_its_slow_reference(k):
    config = IrisConfig(num_queries=3, k_retrieved=k, hidden=8, temperature=0.1, **PUBLISHED)
    corpus = planted()
    assert np.diff(corpus.offsets).min() == 1  # some posts have fewer chunks than k
    model = perturbed(config, corpus)
    fast = logits(model, config, corpus, np.arange(20)[None])[0]
    for post in range(20):
        chunks = corpus.embeddings[corpus.offsets[post] : corpus.offsets[post + 1]]
        expected = [slow_iris(model, config, chunks, criterion) for criterion in range(3)]
        np.testing.assert_allclose(fast[post], expected, atol=1e-4)


def test_logits_depend_on_retrieved_chunks_only():
    """A chunk that no query retrieves may change, as long as it stays far from the query."""
    config = IrisConfig(num_queries=1, k_retrieved=2, hidden=8, **PUBLISHED)
    corpus = planted(criteria=1, longest=9)
    model = perturbed(config, corpus)
    post = int(np.argmax(np.diff(corpus.offsets)))
    start, end = corpus.offsets[post], corpus.offsets[post + 1]
    query = model.queries.detach()[0, 0, 0].numpy()
    far = int(np.argmin(corpus.embeddings[start:end] @ query))
    changed = corpus.embeddings[start:end].copy()
    changed[far] = -unit(query) + 0.1
    where = np.array([[post]])
    after = logits(model, config, with_post(corpus, post, changed), where)
    np.testing.assert_array_equal(logits(model, config, corpus, where), after)
    near = int(np.argmax(corpus.embeddings[start:end] @ query))
    changed[near] = -unit(query) + 0.2
    assert not np.allclose(after, logits(model, config, with_post(corpus, post, changed), where))


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_all_chunks_of_a_post_shorter_than_k_are_retrieved(chunks):
    corpus = with_post(planted(), 0, other_chunks(chunks))
    few, many = (IrisConfig(num_queries=3, k_retrieved=k, hidden=8) for k in (3, 7))
    model, other = perturbed(few, corpus), perturbed(many, corpus)
    np.testing.assert_allclose(logits(model, few, corpus)[0, 0], logits(other, many, corpus)[0, 0], atol=1e-5)


# ---- the diversity penalty --------------------------------------------------------------------------------------


def test_the_penalty_equals_its_formula():
    config = IrisConfig(num_queries=3, hidden=8, diversity_weight=0.7)
    model = perturbed(config, planted(), folds=(0, 1))
    for fold in (0, 1):
        expected = 0.0
        for queries in model.queries.detach()[fold].double().numpy():
            normed = queries / np.linalg.norm(queries, axis=1, keepdims=True)
            expected += 0.7 * ((normed @ normed.T - np.eye(3)) ** 2).sum() / 3
        assert model.penalty()[fold].item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_the_penalty_is_correct():
    model = perturbed(IrisConfig(num_queries=3, hidden=8), planted(), folds=(0, 1)).double()
    assert torch.autograd.gradcheck(overlap, model.queries)


def test_minimising_the_penalty_separates_the_queries():
    model = perturbed(IrisConfig(num_queries=3, hidden=8, diversity_weight=1.0), planted())
    before = model.penalty().item()
    optimizer = torch.optim.SGD([model.queries], lr=0.3)
    for _ in range(50):
        optimizer.zero_grad()
        model.penalty().sum().backward()
        optimizer.step()
    assert model.penalty().item() < 0.1 * before


# ---- initial weights, dropout, priors -------------------------------------------------------------------------------


def test_a_folds_initial_weights_do_not_depend_on_its_stack():
    corpus = planted()
    train = [np.arange(40), np.arange(20, 60)]
    stacked, _ = build_model(CONFIGS[0], corpus, train, folds=(0, 1), seed=3)
    alone, _ = build_model(CONFIGS[0], corpus, train[1:], folds=(1,), seed=3)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(value[0], stacked.state_dict()[name][1], rtol=0, atol=0)
    assert not torch.equal(stacked.queries[0], stacked.queries[1])


def test_dropout_is_seeded_by_fold_and_epoch():
    ones, drop = torch.ones(2, 200, 50), FoldDropout(0.3)
    drop.reseed([("a",), ("b",)])
    first = drop(ones)
    drop.reseed([("b",), ("c",)])
    second = drop(ones)
    torch.testing.assert_close(first[1], second[0], rtol=0, atol=0)
    assert not torch.equal(first[0], first[1])
    assert first.mean() == pytest.approx(1.0, abs=0.02)
    assert first.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert drop.eval()(ones) is ones


def test_priors_depend_on_the_training_part_only():
    corpus = planted(unlabelled=0.2)
    train = np.arange(30)
    prior = prior_log_odds(corpus.labels, [train])
    changed = corpus.labels.copy()
    changed[30:] = 1
    torch.testing.assert_close(prior_log_odds(changed, [train]), prior, rtol=0, atol=0)
    part = corpus.labels[train]
    rate = ((part == 1).sum(0) + 0.5) / ((part >= 0).sum(0) + 1)
    np.testing.assert_allclose(torch.sigmoid(prior[0]).numpy(), rate, rtol=1e-5)


# ---- the registry -----------------------------------------------------------------------------------------------


def test_every_configuration_has_a_model():
    assert {name: entry.config for name, entry in REGISTRY.items()} == MODELS
    assert {name for name, entry in REGISTRY.items() if entry.features is TextCorpus} == {"token"}
    assert {name for name, config in MODELS.items() if reads_text(config())} == {"token"}
    assert {name for name, config in MODELS.items() if not fuses_folds(config())} == {"token"}
    assert {name for name, config in MODELS.items() if is_solved(config())} == {"linear", "retrieval"}


def test_the_wrong_kind_of_features_is_refused():
    corpus = planted()
    text = TextCorpus((), (), None, corpus.labels)
    with pytest.raises(TypeError, match="iris takes features of type EmbeddedCorpus, not TextCorpus"):
        make_inputs(IrisConfig(), text)
    with pytest.raises(TypeError, match="token takes features of type TextCorpus, not EmbeddedCorpus"):
        build_model(MODELS["token"](), corpus, [np.arange(9)], folds=[0], seed=0)


@every_model
def test_embeddings_are_loaded_onto_a_device_once(config):
    corpus = planted()
    assert make_inputs(config, corpus, torch.device("cpu")) is make_inputs(config, corpus, "cpu")
    assert make_inputs(config, planted(), "cpu") is not make_inputs(config, corpus, "cpu")


@every_model
def test_the_only_parameter_group_holds_all_parameters(config):
    model, _ = build_model(config, planted(), [np.arange(9)], folds=[0], seed=0)
    (group,) = model.parameter_groups(0.3)
    assert group["lr"] == 0.3
    assert [id(part) for part in group["params"]] == [id(part) for part in model.parameters()]


def test_gradient_checkpointing_of_a_model_without_it_is_refused():
    with pytest.raises(ConfigError, match="gradient_checkpointing is on, but Linear does not support it"):
        enable_gradient_checkpointing(torch.nn.Linear(1, 1))


# ---- the k largest ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "k"), [(40, 1), (40, 4), (40, 8), (40, 9), (8, 8), (3, 2)])
def test_the_k_largest_equal_topk(length, k):
    """With either algorithm, with ties and with padding."""
    generator = torch.Generator().manual_seed(length + k)
    scores = torch.randn((2, 64, length, 16), generator=generator).round(decimals=1)
    scores[:, ::3, length // 2 :] = -torch.inf
    for part in (scores, scores[:, :4]):  # insertion, and topk
        assert torch.equal(torch.stack(list(largest(part, k)), 2), part.topk(k, dim=2).values)
