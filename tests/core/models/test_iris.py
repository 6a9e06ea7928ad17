"""IRIS: where its queries start, which chunks they retrieve, and its attention, each against a loop."""

import math

import numpy as np
import pytest
import torch
from corpora import planted, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_evidence.core.config import IrisConfig
from sparse_evidence.core.features.bags import Bag
from sparse_evidence.core.models import build_model, iris_operations
from sparse_evidence.core.models.iris import Iris
from sparse_evidence.core.models.iris_operations import (
    INSERTION_MAX_K,
    INSERTION_MIN_SCORES,
    attended,
    largest,
    overlap,
    with_highest,
    with_length,
)

DIM, CRITERIA = 12, 3


def iris(folds=(0,), *, criteria=None, seed=0, noise=0.0, **settings):
    """A model as published, with normal noise of that size on all its weights."""
    criteria = torch.eye(CRITERIA, DIM) if criteria is None else criteria
    published = {"similarities": 0, "mean_embedding": False}
    config = IrisConfig(**{"num_queries": 2, "k_retrieved": 2, "hidden": 8, **published, **settings})
    model = Iris(config, criteria, torch.zeros(len(folds), len(criteria)), seed=seed, folds=folds).eval()
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.add_(noise * torch.randn(weight.shape[1:], generator=torch.Generator().manual_seed(number)))
    return model


def bag_of(*posts, folds=1):
    """A bag of posts, each an array `[chunks, dim]`."""
    longest = max(map(len, posts))
    padded = np.stack([np.pad(post, ((0, longest - len(post)), (0, 0)), mode="edge") for post in posts])
    present = np.array([[place < len(post) for place in range(longest)] for post in posts])
    return Bag(
        torch.from_numpy(padded.astype(np.float32))[None].repeat(folds, 1, 1, 1),
        torch.from_numpy(present)[None].repeat(folds, 1, 1),
    )


def random_posts(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [unit(generator.standard_normal((length, DIM))) for length in lengths]


# ---- the start --------------------------------------------------------------------------------------------------


def test_queries_start_at_the_criterion_plus_noise_of_the_configured_length():
    criteria = 7 * torch.from_numpy(unit(np.random.default_rng(0).standard_normal((4, 400))))
    for noise in (0.0, 0.5, 2.0):
        queries = iris(criteria=criteria, query_noise=noise, num_queries=20).queries.detach()[0]
        lengths = (queries - criteria[:, None] / 7).norm(dim=-1)
        assert lengths.mean().item() == pytest.approx(noise, abs=0.05)
    assert lengths.std() > 0


def test_values_of_unit_vectors_have_unit_variance():
    """At the start, whatever the width of the embeddings, so that one learning rate suits all encoders."""
    for dim in (32, 512):
        model = iris(criteria=torch.eye(2, dim), hidden=256)
        chunks = torch.from_numpy(unit(np.random.default_rng(0).standard_normal((200, dim))))
        assert (chunks @ model.value[0]).std().item() == pytest.approx(1.0, abs=0.1)
        normal = torch.randn(500, 256, generator=torch.Generator().manual_seed(0))
        assert (normal @ model.inner[0]).std().item() == pytest.approx(1.0, abs=0.1)
        assert (normal @ model.outer[0]).std().item() == pytest.approx(0.5, abs=0.05)


def test_an_untrained_model_predicts_its_prior():
    config = IrisConfig(num_queries=2, hidden=8)
    prior = torch.tensor([[-1.0, 0.0, 2.0], [0.5, -0.5, 3.0]])
    model = Iris(config, torch.eye(CRITERIA, DIM), prior, seed=0, folds=[4, 2]).eval()
    logits = model(bag_of(*random_posts(3, 5), folds=2))
    torch.testing.assert_close(logits, prior[:, None].expand(2, 2, 3))


def test_training_a_model_leaves_the_given_prior_alone():
    prior = torch.zeros(1, CRITERIA)
    model = Iris(IrisConfig(hidden=8), torch.eye(CRITERIA, DIM), prior, seed=0, folds=[0])
    with torch.no_grad():
        model.bias.add_(1)
    assert (prior == 0).all()


def test_the_seed_and_the_fold_decide_the_start():
    starts = {(seed, fold): iris((fold,), seed=seed).queries.detach() for seed in (0, 1) for fold in (0, 1)}
    assert len({tuple(queries.flatten().tolist()) for queries in starts.values()}) == 4


# ---- attention --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_attention_is_a_softmax_over_the_nearest_chunks(k, length, queries, seed):
    model = iris(k_retrieved=k, num_queries=queries, temperature=0.3, noise=0.3)
    posts = random_posts(length, 6, seed=seed)
    attention = model.attention(bag_of(*posts)).detach().numpy()
    for post, chunks in enumerate(posts):
        for criterion in range(CRITERIA):
            expected = np.zeros(6)
            for query in unit(model.queries.detach().numpy()[0, criterion]):
                similarity = chunks @ query
                nearest = np.argsort(-similarity)[:k]
                weight = np.exp(similarity[nearest] / 0.3)
                expected[nearest] += weight / weight.sum() / queries
            np.testing.assert_allclose(attention[0, post, criterion], expected, atol=1e-5)


def test_chunks_that_tie_with_the_last_one_are_all_retrieved():
    """So the order of a post's chunks never decides which of two equal chunks counts."""
    first, second = np.eye(2, DIM)
    post = np.stack([second, first, second, second])
    attention = iris(k_retrieved=2, num_queries=1, query_noise=0.0).attention(bag_of(post))[0, 0, 0].detach()
    assert (attention > 0).all()
    torch.testing.assert_close(attention[[0, 2, 3]], attention[0].expand(3))
    assert attention[1] > attention[0]


def test_the_length_of_a_query_changes_nothing():
    model, bag = iris(noise=0.3), bag_of(*random_posts(5, 2, 7))
    before = model(bag)
    with torch.no_grad():
        model.queries.mul_(torch.tensor([0.1, 30.0])[:, None])
    torch.testing.assert_close(model(bag), before, atol=1e-5, rtol=1e-4)


def test_the_order_of_a_criterions_queries_does_not_matter():
    model, bag = iris(num_queries=3, noise=0.3), bag_of(*random_posts(5, 2, 7))
    before = model(bag), model.attention(bag), model.penalty()
    with torch.no_grad():
        model.queries.copy_(model.queries[:, :, [2, 0, 1]])
    for left, right in zip(before, (model(bag), model.attention(bag), model.penalty()), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_a_lower_temperature_concentrates_the_attention():
    bag = bag_of(*random_posts(6, 6, 6))
    largest = [
        iris(num_queries=1, k_retrieved=6, temperature=temperature, noise=0.3).attention(bag).amax(-1).mean().item()
        for temperature in (1e-3, 0.1, 1.0, 1e3)
    ]
    assert largest == sorted(largest, reverse=True)
    assert largest[0] == pytest.approx(1.0, abs=0.01)
    assert largest[-1] == pytest.approx(1 / 6, abs=0.01)


def test_a_criterion_depends_on_its_own_queries_and_head_alone():
    model, bag = iris(noise=0.3), bag_of(*random_posts(5, 2))
    before = model(bag)
    with torch.no_grad():
        model.queries[:, 1] *= -1
        model.head[:, 1] += 1
    after = model(bag)
    torch.testing.assert_close(after[..., [0, 2]], before[..., [0, 2]])
    assert (after[..., 1] - before[..., 1]).abs().min() > 1e-3


def test_dropout_acts_in_training_only_and_follows_the_key():
    model, bag = iris(noise=0.3, dropout=0.5), bag_of(*random_posts(5, 2))
    quiet = model(bag)
    torch.testing.assert_close(model(bag), quiet)
    model.train()
    draws = []
    for epoch in (0, 1, 0):
        model.reseed([(0, "dropout", 0, epoch)])
        draws.append(model(bag).detach())
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.allclose(draws[0], quiet)


# ---- the penalty ------------------------------------------------------------------------------------------------


def test_the_overlap_is_zero_for_orthogonal_and_largest_for_equal_queries():
    orthogonal = torch.eye(4, 9)[None, None].repeat(2, 3, 1, 1)
    assert overlap(orthogonal).tolist() == [0.0, 0.0]
    equal = torch.ones(1, 1, 4, 9)
    assert overlap(equal).item() == pytest.approx(4 * 4 - 4)
    assert overlap(-equal).item() == pytest.approx(12)


def test_a_query_of_zeros_has_a_finite_penalty_and_gradient():
    queries = torch.zeros(1, 1, 2, 5, requires_grad=True)
    value = overlap(queries)
    value.sum().backward()
    assert value.isfinite().all()
    assert queries.grad.isfinite().all()


# ---- direct inputs ----------------------------------------------------------------------------------------------


def test_the_first_query_starts_exactly_at_the_criterion_if_similarities_enter():
    """The other queries start where they do without direct inputs."""
    plain, direct = iris(query_noise=0.7).queries[0], iris(query_noise=0.7, similarities=2).queries[0]
    assert torch.equal(direct[:, 0], torch.eye(CRITERIA, DIM))
    assert torch.equal(direct[:, 1], plain[:, 1])
    assert not torch.equal(direct[:, 0], plain[:, 0])


def test_a_model_as_published_has_no_other_state():
    added = set(iris(similarities=1, mean_embedding=True).state_dict()) - set(iris().state_dict())
    assert added == {
        *("similarity_head", "similarity_standard.mean", "similarity_standard.scale"),
        *("mean_head", "mean_standard.mean", "mean_standard.scale"),
    }


def test_the_constants_are_those_of_the_training_posts_alone():
    corpus, train = planted(), [np.arange(30), np.arange(20, 60)]
    model, _ = build_model(IrisConfig(num_queries=2, hidden=8), corpus, train, folds=[0, 1], seed=0)
    changed = planted()
    changed.embeddings[corpus.offsets[30] :] *= -1  # the posts that fold 0 does not train on
    other, _ = build_model(IrisConfig(num_queries=2, hidden=8), changed, train, folds=[0, 1], seed=0)
    for name in ("similarity_standard", "mean_standard"):
        for part in ("mean", "scale"):
            ours, theirs = getattr(getattr(model, name), part), getattr(getattr(other, name), part)
            assert torch.equal(ours[0], theirs[0])
            assert not torch.equal(ours[1], theirs[1]) or part == "scale"


def test_queries_learn_through_the_values_of_their_similarities():
    """The gradient of the highest similarities, against finite differences."""
    scores = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores[0, 0, 2:] = -torch.inf  # fewer chunks than similarities: the lowest is repeated
    mask = torch.where(scores == -torch.inf, -torch.inf, 0.0)

    def highest(raw):
        masked = raw + mask
        return with_highest(masked, largest(masked.detach(), 4), 4)

    raw = scores.nan_to_num(neginf=0.0).requires_grad_()
    assert torch.autograd.gradcheck(highest, raw)
    values = highest(raw)
    assert torch.equal(values[0, 0, 1], values[0, 0, 3])
    torch.testing.assert_close(values[1], raw.sort(dim=2, descending=True).values[1, :, :4])


def test_equal_similarities_share_their_gradient():
    scores = torch.tensor([0.5, 0.9, 0.5, 0.5])[None, None, :, None].requires_grad_()
    with_highest(scores, largest(scores.detach(), 2), 2)[0, 0, :, 0].backward(torch.tensor([6.0, 3.0]))
    torch.testing.assert_close(scores.grad[0, 0, :, 0], torch.tensor([1.0, 6.0, 1.0, 1.0]))


def test_the_similarities_do_not_depend_on_how_they_are_found():
    """With insertion and with topk, with one pass for both uses."""
    posts = random_posts(*([9] * 120))
    few, many = (iris(noise=0.3, similarities=k, mean_embedding=True, num_queries=8) for k in (3, INSERTION_MAX_K + 1))
    inserted, sorted_ = bag_of(*posts), bag_of(*posts[:2])
    assert 120 * 9 * 8 * CRITERIA > INSERTION_MIN_SCORES > 2 * 9 * 8 * CRITERIA
    for model in (few, many):
        torch.testing.assert_close(model(inserted)[:, :2], model(sorted_), atol=1e-5, rtol=1e-4)


# ---- gradients written by hand ----------------------------------------------------------------------------------


def operands(posts, length, queries, *, criteria=2, hidden=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(posts, length, criteria * queries, dtype=dtype, generator=generator)
    values = (torch.randn(posts, length, hidden, dtype=dtype, generator=generator) for _ in range(2))
    return [tensor.requires_grad_() for tensor in (weights, *values)]


def as_written(weights, inner_values, values, queries):
    inner = torch.relu(weights.mT @ inner_values).unflatten(1, (-1, queries)).sum(2)
    return inner, (weights.mT @ values).unflatten(1, (-1, queries)).mean(2)


@pytest.mark.parametrize("queries", [1, 3])
def test_the_gradient_of_what_is_attended_to_agrees_with_finite_differences(queries):
    inputs = operands(3, 4, queries)
    assert torch.autograd.gradcheck(lambda *tensors: attended(*tensors, queries), inputs)


def test_posts_in_parts_give_what_the_formula_says():
    """More posts than fit into one part, the last part shorter."""
    inputs = operands(1001, 3, 4, criteria=5, hidden=17, dtype=torch.float32)
    assert 2 * iris_operations.CACHE_BYTES > 1001 * 4 * 5 * 17 * 4 > iris_operations.CACHE_BYTES
    found, expected = attended(*inputs, 4), as_written(*inputs, 4)
    weighted = [sum((part * (1 + part.detach().cos())).sum() for part in parts) for parts in (found, expected)]
    gradients = [torch.autograd.grad(total, inputs) for total in weighted]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("length", [1.0, 12.5])
def test_vectors_get_another_length(length):
    vectors = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = with_length(vectors, length)
    torch.testing.assert_close(found.norm(dim=-1), torch.full((2, 3), length, dtype=torch.float64))
    torch.testing.assert_close(found, length * torch.nn.functional.normalize(vectors, dim=-1))
    assert torch.autograd.gradcheck(lambda raw: with_length(raw, length), vectors)
    assert torch.autograd.gradcheck(overlap, vectors[None].detach().requires_grad_())


# ---- the k largest ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, INSERTION_MAX_K + 1), st.integers(0, 6), st.integers(1, 3), st.integers(0, 99))
def test_both_ways_to_the_k_largest_agree_with_sorting(k, more, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, math.ceil(INSERTION_MIN_SCORES / 2 / 64 / (k + more)), k + more, 64)
    scores = torch.randint(-steps, steps, shape, generator=generator).float()  # many ties
    scores[:, 0, 1:] = -torch.inf  # padding
    for part in (scores, scores[:, :1]):
        expected = part.sort(dim=2, descending=True).values[:, :, :k]
        assert torch.equal(torch.stack(list(largest(part, k)), 2), expected)


def test_models_of_a_planted_corpus_retrieve_the_planted_chunk():
    """Without any training: the query starts at the criterion, and the chunk that meets it is close to it."""
    corpus = planted()
    model = iris(criteria=torch.from_numpy(corpus.criteria), num_queries=1, k_retrieved=1, query_noise=0.0)
    attention = model.attention(corpus.bags.chunks("cpu").batch(np.arange(60)[None]))[0]
    for post, criterion in np.argwhere(corpus.labels == 1):
        chunks = corpus.embeddings[corpus.offsets[post] : corpus.offsets[post + 1]]
        assert attention[post, criterion].argmax() == np.argmax(chunks @ corpus.criteria[criterion])
