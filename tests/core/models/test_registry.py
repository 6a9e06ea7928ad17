"""Every model behind the one interface: built from its registry entry, with its priors, folds and defaults."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import planted
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sparse_evidence.core.config import (
    AbmilConfig,
    InstanceConfig,
    IrisConfig,
    LinearConfig,
    RetrievalConfig,
    TokenConfig,
    is_solved,
)
from sparse_evidence.core.features.bags import Bag
from sparse_evidence.core.features.encoders import locate
from sparse_evidence.core.features.views import TextCorpus
from sparse_evidence.core.models import REGISTRY, Model, build_model, prior_log_odds
from sparse_evidence.core.models.abmil import Abmil
from sparse_evidence.core.models.base import enable_gradient_checkpointing, normal

STACKED = [
    IrisConfig(hidden=8, num_queries=2),
    AbmilConfig(hidden=8, attention_hidden=4),
    InstanceConfig(hidden=8),
    LinearConfig(),
    RetrievalConfig(),
    RetrievalConfig(top_k=2, pooling="mean"),
]
stacked_models = pytest.mark.parametrize("config", STACKED, ids=lambda config: config.name)
PARTS = [np.arange(40), np.arange(20, 60)]


@pytest.fixture(scope="module")
def corpus():
    return planted(unlabelled=0.2)


@pytest.fixture(scope="module")
def text(tiny_encoder):
    labels = np.array([[1, 0], [0, 1], [-1, 1]], dtype=np.int8)
    return TextCorpus(("w7 w8. w9.", "w10", "w11 w12"), ("w0 w1", "w2"), locate(str(tiny_encoder)), labels)


# ---- priors -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=30))
def test_a_prior_is_the_smoothed_share_of_positives(column):
    labels = np.array(column, dtype=np.int8).reshape(-1, 1)
    prior = prior_log_odds(labels, [np.arange(len(labels))])
    positives, negatives = column.count(1) + 0.5, column.count(0) + 0.5
    assert prior.dtype == torch.float32
    assert prior.item() == pytest.approx(math.log(positives / negatives), abs=1e-5)


def test_priors_have_one_row_for_each_training_part(corpus):
    together = prior_log_odds(corpus.labels, PARTS)
    assert together.shape == (2, 3)
    for row, part in enumerate(PARTS):
        torch.testing.assert_close(together[row], prior_log_odds(corpus.labels, [part])[0], rtol=0, atol=0)


def test_exchanging_the_classes_negates_the_prior(corpus):
    exchanged = np.where(corpus.labels < 0, -1, 1 - corpus.labels).astype(np.int8)
    torch.testing.assert_close(prior_log_odds(exchanged, PARTS), -prior_log_odds(corpus.labels, PARTS))


# ---- stacked models ---------------------------------------------------------------------------------------------


@stacked_models
def test_a_fold_alone_starts_as_it_does_in_any_stack(config, corpus):
    both, _ = build_model(config, corpus, PARTS, folds=[3, 1], seed=5)
    for position, fold in enumerate((3, 1)):
        alone, _ = build_model(config, corpus, [PARTS[position]], folds=[fold], seed=5)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(both.state_dict()[name][position], value[0], rtol=0, atol=0)


@stacked_models
def test_every_parameter_has_a_fold_axis_and_gets_a_gradient(config, corpus):
    """With noise, because heads start at zero."""
    model, inputs = build_model(config, corpus, PARTS, folds=[0, 1], seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    logits = model(inputs.batch(np.arange(20).reshape(2, 10)))
    assert logits.shape == (2, 10, 3)
    (logits.square().sum() + model.penalty().sum()).backward()
    for name, weight in model.named_parameters():
        assert weight.shape[0] == 2, name
        assert weight.grad.flatten(1).abs().sum(1).min() > 0, name


@stacked_models
def test_the_gradient_of_a_fold_does_not_depend_on_other_folds(config, corpus):
    """The loss of fold 0 alone leaves fold 1 without any gradient."""
    model, inputs = build_model(config, corpus, PARTS, folds=[0, 1], seed=0)
    (model(inputs.batch(np.arange(20).reshape(2, 10)))[0].square().sum() + model.penalty()[0]).backward()
    assert all(weight.grad[1].abs().max() == 0 for weight in model.parameters() if weight.grad is not None)


@stacked_models
def test_a_post_without_chunks_gets_the_bias(config, corpus):
    model, _ = build_model(config, corpus, PARTS, folds=[0, 1], seed=0)
    torch.testing.assert_close(model.empty_logits(), prior_log_odds(corpus.labels, PARTS)[:, None])


@stacked_models
def test_only_iris_has_a_penalty_and_none_has_a_warm_up(config, corpus):
    model, _ = build_model(config, corpus, PARTS, folds=[0, 1], seed=0)
    assert model.penalty().shape == (2,)
    assert (model.penalty() > 0).all().item() is (config.name == "iris")
    assert model.warmup_epochs == 0
    if config.name == "iris":
        half, _ = build_model(replace(config, diversity_weight=0.005), corpus, PARTS, folds=[0, 1], seed=0)
        torch.testing.assert_close(half.penalty(), model.penalty() / 2)


@stacked_models
def test_reseeding_makes_training_passes_repeatable(config, corpus):
    model, inputs = build_model(config, corpus, PARTS, folds=[0, 1], seed=0)
    batch, keys = inputs.batch(np.arange(20).reshape(2, 10)), [(0, "dropout", fold, 0) for fold in (0, 1)]
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
    model.train()
    passes = []
    for _ in range(2):
        model.reseed(keys)
        passes.append(model(batch))
    assert torch.equal(*passes)
    assert torch.equal(passes[0], model.eval()(batch)) is is_solved(config)  # without dropout


@stacked_models
def test_chunk_logits_of_a_post_are_its_logits(config, corpus):
    model, inputs = build_model(config, corpus, PARTS, folds=[0, 1], seed=0)
    posts = np.arange(20).reshape(2, 10)
    from_chunks = model.eval().chunk_logits(corpus.bags.chunks("cpu").batch(posts))
    torch.testing.assert_close(from_chunks, model(inputs.batch(posts)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dim", [32, 512])
def test_features_of_abmil_start_at_unit_variance_for_every_encoder(dim):
    """So that one learning rate suits all of them; half of the variance passes the ReLU."""
    model = Abmil(AbmilConfig(hidden=256), dim, torch.zeros(1, 2), seed=0, folds=[0])
    chunks = torch.randn(1, 20, 5, dim, generator=torch.Generator().manual_seed(0))
    _, features = model.attend(Bag(functional.normalize(chunks, dim=-1), torch.ones(1, 20, 5, dtype=torch.bool)))
    assert features.square().mean().item() == pytest.approx(0.5, abs=0.05)


# ---- models of text ---------------------------------------------------------------------------------------------


def test_a_model_of_text_holds_a_single_fold(text):
    config = TokenConfig(max_length=24)
    model, _ = build_model(config, text, [np.arange(3)], folds=[2], seed=0)
    assert not REGISTRY["token"].fuses_folds
    torch.testing.assert_close(model.bias, prior_log_odds(text.labels, [np.arange(3)])[0])
    with pytest.raises(ValueError, match="too many values to unpack"):
        build_model(config, text, [np.arange(3)] * 2, folds=[0, 1], seed=0)


def test_a_model_of_text_predicts_its_prior_before_training_and_for_no_text(text):
    model, inputs = build_model(TokenConfig(max_length=24), text, [np.arange(3)], folds=[0], seed=0)
    with torch.no_grad():
        logits = model.eval()(inputs.batch(np.array([[0, 1, 2]])))
    torch.testing.assert_close(logits, model.empty_logits().expand(1, 3, 2))
    assert model.penalty().tolist() == [0.0]


@pytest.mark.parametrize("method", ["chunk_logits", "attention"])
def test_a_model_of_text_has_neither_logits_of_chunks_nor_attention(method, text, corpus):
    model, _ = build_model(TokenConfig(max_length=24), text, [np.arange(3)], folds=[0], seed=0)
    with pytest.raises(TypeError, match=r"Token does not read chunks; use explain\.attribute_text"):
        getattr(model, method)(corpus.bags.chunks("cpu").batch(np.array([[0]])))


# ---- the base class ---------------------------------------------------------------------------------------------


class Constant(Model):
    """The least that a model needs: a way to build it, logits, and a bias."""

    def __init__(self, prior):
        super().__init__()
        self.bias = torch.nn.Parameter(prior.clone())

    @classmethod
    def build(cls, config, features, prior, *, seed, folds, train):
        return cls(prior)

    def forward(self, batch):
        return self.bias[:, None].expand(-1, batch.shape[1], -1)


def test_a_new_model_needs_only_build_logits_and_a_bias():
    model = Constant.build(None, None, torch.zeros(2, 3), seed=0, folds=[0, 1], train=[])
    model.reseed([(0,), (1,)])
    assert model.penalty().tolist() == [0.0, 0.0]
    assert model.empty_logits().shape == (2, 1, 3)
    assert model.parameter_groups(0.5) == [{"params": [model.bias], "lr": 0.5}]
    with pytest.raises(TypeError, match="Constant does not read chunks"):
        model.attention(None)
    with pytest.raises(TypeError, match="abstract"):
        Model()


def test_initial_weights_are_normal_with_the_given_deviation():
    weights = normal(torch.Generator().manual_seed(0), 300, 400, std=0.2)
    assert (weights.dtype, weights.shape) == (torch.float32, (300, 400))
    assert (weights.mean().item(), weights.std().item()) == (pytest.approx(0, abs=0.01), pytest.approx(0.2, rel=0.02))


class Recorder(torch.nn.Module):
    """A module that can checkpoint gradients, and remembers with which options."""

    def gradient_checkpointing_enable(self, options=None):
        self.options = options


def test_gradient_checkpointing_is_enabled_with_the_given_options():
    for options in (None, {"use_reentrant": False}):
        module = Recorder()
        enable_gradient_checkpointing(module, options)
        assert module.options == options
