"""Losses are tested by identities between them and by their values and gradients at extreme logits."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as torch_bce

from sparse_evidence.core import losses
from sparse_evidence.core.config import (
    LOSSES,
    AsymmetricConfig,
    BCEConfig,
    FocalConfig,
    LogitAdjustedConfig,
    WeightedBCEConfig,
)
from sparse_evidence.core.errors import ConfigError

NINETY_TEN = torch.tensor([0] * 90 + [1] * 10)


def sample(dtype=torch.float64):
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 5, generator=source, dtype=dtype) * 4
    return logits, (torch.rand(3, 7, 5, generator=source) < 0.3).to(torch.int8)


def p_t(logits, targets):
    return torch.where(targets == 1, logits.sigmoid(), 1 - logits.sigmoid())


# ---- identities -------------------------------------------------------------------------------------------------


def test_bce_is_torchs():
    logits, targets = sample()
    torch.testing.assert_close(losses.bce(logits, targets), torch_bce(logits, targets.double(), reduction="none"))


def test_bce_takes_soft_targets():
    logits, _ = sample()
    soft = torch.rand_like(logits)
    torch.testing.assert_close(losses.bce(logits, soft), torch_bce(logits, soft, reduction="none"))


def test_weighted_bce_is_torchs():
    logits, targets = sample()
    weights = torch.tensor([0.5, 1, 2, 9.86, 40], dtype=torch.float64)
    expected = torch_bce(logits, targets.double(), pos_weight=weights, reduction="none")
    torch.testing.assert_close(losses.weighted_bce(logits, targets, pos_weight=weights), expected)


def test_weight_one_is_bce():
    logits, targets = sample()
    torch.testing.assert_close(losses.weighted_bce(logits, targets, pos_weight=1), losses.bce(logits, targets))


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.9])
def test_focal_without_gamma_is_alpha_weighted_bce(alpha):
    logits, targets = sample()
    weights = torch.where(targets == 1, alpha, 1 - alpha)
    found = losses.focal(logits, targets, gamma=0, alpha=alpha)
    torch.testing.assert_close(found, weights * losses.bce(logits, targets))
    weighted = losses.weighted_bce(logits, targets, pos_weight=alpha / (1 - alpha))
    torch.testing.assert_close(found, (1 - alpha) * weighted)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_to_bce_is_the_modulating_factor(gamma):
    logits, targets = sample()
    ratio = losses.focal(logits, targets, gamma=gamma, alpha=None) / losses.bce(logits, targets)
    torch.testing.assert_close(ratio, (1 - p_t(logits, targets)) ** gamma)


def test_focal_alpha_is_the_share_of_each_class():
    logits, targets = sample()
    only_positives = losses.focal(logits, targets, gamma=2, alpha=1.0)
    assert (only_positives[targets == 0] == 0).all()
    both = only_positives + losses.focal(logits, targets, gamma=2, alpha=0.0)
    torch.testing.assert_close(both, losses.focal(logits, targets, gamma=2, alpha=None))


def test_asymmetric_without_gammas_and_clip_is_bce():
    logits, targets = sample()
    found = losses.asymmetric(logits, targets, gamma_pos=0, gamma_neg=0, clip=0)
    torch.testing.assert_close(found, losses.bce(logits, targets))


def test_asymmetric_with_one_gamma_and_no_clip_is_focal():
    logits, targets = sample()
    found = losses.asymmetric(logits, targets, gamma_pos=2, gamma_neg=2, clip=0)
    torch.testing.assert_close(found, losses.focal(logits, targets, gamma=2, alpha=None))


def test_asymmetric_is_its_formula():
    logits, targets = sample()
    p = logits.sigmoid()
    shifted = (p - 0.05).clamp(min=0)
    expected = torch.where(targets == 1, -(1 - p) * p.log(), -(shifted**4) * (1 - shifted).log())
    found = losses.asymmetric(logits, targets, gamma_pos=1, gamma_neg=4, clip=0.05)
    torch.testing.assert_close(found, expected)
    assert (found[(targets == 0) & (p < 0.05)] == 0).all()


def test_logit_adjustment_shifts_the_logits():
    logits, targets = sample()
    log_odds = torch.tensor([-3.0, -2, -1, 0, 1], dtype=torch.float64)
    found = losses.logit_adjusted_bce(logits, targets, log_odds=log_odds, tau=0.5)
    torch.testing.assert_close(found, losses.bce(logits + 0.5 * log_odds, targets))
    untouched = losses.logit_adjusted_bce(logits, targets, log_odds=log_odds, tau=0)
    torch.testing.assert_close(untouched, losses.bce(logits, targets))


def test_parameters_per_fold_are_the_folds_one_by_one():
    logits, targets = sample()
    column = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).reshape(3, 1, 1)
    together = losses.focal(logits, targets, gamma=column * 4, alpha=column)
    for fold, value in enumerate(column.ravel().tolist()):
        alone = losses.focal(logits[fold], targets[fold], gamma=value * 4, alpha=value)
        torch.testing.assert_close(together[fold], alone)
    together = losses.asymmetric(logits, targets, gamma_pos=column, gamma_neg=column * 4, clip=column / 10)
    for fold, value in enumerate(column.ravel().tolist()):
        alone = losses.asymmetric(logits[fold], targets[fold], gamma_pos=value, gamma_neg=value * 4, clip=value / 10)
        torch.testing.assert_close(together[fold], alone)


# ---- extremes ---------------------------------------------------------------------------------------------------

EXTREME = {
    "bce": losses.bce,
    "weighted": lambda z, y: losses.weighted_bce(z, y, pos_weight=12.0),
    "adjusted": lambda z, y: losses.logit_adjusted_bce(z, y, log_odds=-3.7, tau=1.0),
    **{
        f"focal {gamma}": lambda z, y, gamma=gamma: losses.focal(z, y, gamma=gamma, alpha=0.25)
        for gamma in (0.0, 0.01, 0.5, 1.0, 4.0)
    },
    **{
        f"asymmetric {gamma} {clip}": lambda z, y, gamma=gamma, clip=clip: losses.asymmetric(
            z, y, gamma_pos=gamma, gamma_neg=gamma, clip=clip
        )
        for gamma in (0.0, 0.01, 0.5, 4.0)
        for clip in (0.0, 0.05)
    },
}


@pytest.mark.parametrize("loss", EXTREME.values(), ids=EXTREME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients_are_finite_at_the_extremes(loss, dtype):
    edge = math.log(0.05 / 0.95)  # where the asymmetric loss clips
    logits = torch.tensor([-1000, -100, -88, -20, edge, 0, 20, 88, 100, 1000], dtype=dtype).repeat(3, 1)
    targets = torch.tensor([0, 1, -1], dtype=torch.int8)[:, None].expand(-1, 10)  # -1 is masked by the caller
    logits.requires_grad_()
    values = loss(logits, targets)
    values.sum().backward()
    assert values.isfinite().all()
    assert logits.grad.isfinite().all()
    assert (values[:2] >= 0).all()


@pytest.mark.parametrize("loss", EXTREME.values(), ids=EXTREME)
def test_gradients_are_those_of_finite_differences(loss):
    source = torch.Generator().manual_seed(1)
    logits = (torch.randn(40, generator=source, dtype=torch.float64) * 3).requires_grad_()
    targets = torch.arange(40) % 2
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), (logits,))


# ---- modules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (losses.BCELoss, losses.bce),
        (
            lambda reduction: losses.WeightedBCELoss(3.0, reduction=reduction),
            lambda z, y: losses.weighted_bce(z, y, pos_weight=3.0),
        ),
        (
            lambda reduction: losses.FocalLoss(alpha=0.5, gamma=1.5, reduction=reduction),
            lambda z, y: losses.focal(z, y, gamma=1.5, alpha=0.5),
        ),
        (
            lambda reduction: losses.FocalLoss(reduction=reduction),
            lambda z, y: losses.focal(z, y, gamma=2.0, alpha=None),
        ),
        (
            lambda reduction: losses.AsymmetricLoss(1.0, 2.0, 0.25, reduction=reduction),
            lambda z, y: losses.asymmetric(z, y, gamma_pos=1.0, gamma_neg=2.0, clip=0.25),
        ),
        (
            lambda reduction: losses.LogitAdjustedBCELoss(torch.arange(5.0), 0.5, reduction=reduction),
            lambda z, y: losses.logit_adjusted_bce(z, y, log_odds=torch.arange(5.0), tau=0.5),
        ),
    ],
)
def test_modules_are_the_functions_reduced(module, function):
    logits, targets = sample()
    values = function(logits, targets)
    torch.testing.assert_close(module("none")(logits, targets), values)
    torch.testing.assert_close(module("sum")(logits, targets), values.sum())
    torch.testing.assert_close(module("mean")(logits, targets), values.mean())
    with pytest.raises(ValueError, match="mean, sum, none"):
        module("max")


@pytest.mark.parametrize("name", ["bce", "weighted_bce", "focal", "asymmetric", "logit_adjusted"])
def test_modules_leave_out_what_is_not_labelled(name):
    logits, targets = sample()
    logits.requires_grad_()
    marked = targets.clone()
    marked[:, ::2] = -1
    mean, total = (losses.create_loss_function(name, targets.flatten(0, 1), reduction=how) for how in ("mean", "sum"))
    torch.testing.assert_close(mean(logits, marked), mean(logits[:, 1::2], targets[:, 1::2]))
    torch.testing.assert_close(total(logits, marked), total(logits[:, 1::2], targets[:, 1::2]))
    mean(logits, marked).backward()
    assert logits.grad[:, ::2].abs().max() == 0
    assert mean(logits, torch.full_like(targets, -1)) == 0


def test_modules_refuse_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"logits are \(4, 1\), but targets are \(4,\)"):
        losses.BCELoss()(torch.zeros(4, 1), torch.zeros(4))


# ---- what the labels say ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [lambda x: x, lambda x: x.numpy(), lambda x: x.tolist(), lambda x: x.bool()])
def test_ninety_to_ten(convert):
    labels = convert(NINETY_TEN)
    np.testing.assert_allclose(losses.compute_class_weights(labels), [90 / 162, 5.0])
    assert losses.compute_pos_weight(labels) == 9.0
    assert losses.compute_focal_alpha(labels) == 0.10
    assert losses.compute_focal_alpha(labels, method="inverse") == 0.90
    assert float(losses.compute_log_odds(labels)) == pytest.approx(-math.log(9))


def test_the_home_case():
    labels = torch.cat([torch.zeros(13_474), torch.ones(1_366)])
    assert round(losses.compute_pos_weight(labels), 2) == 9.86


def test_effective_number():
    weights = losses.compute_class_weights(NINETY_TEN, "effective")
    assert float(weights.sum()) == pytest.approx(2)
    assert float(weights[1] / weights[0]) == pytest.approx((1 - 0.999**90) / (1 - 0.999**10))
    np.testing.assert_allclose(losses.compute_class_weights(NINETY_TEN, "effective", beta=0.0), [1, 1])
    nearly_inverse = losses.compute_class_weights(NINETY_TEN, "effective", beta=1 - 1e-9)
    assert float(nearly_inverse[1] / nearly_inverse[0]) == pytest.approx(9, rel=1e-4)
    with pytest.raises(ValueError, match="beta is 1"):
        losses.compute_class_weights(NINETY_TEN, "effective", beta=1.0)


def test_what_is_not_labelled_does_not_count():
    labels = torch.cat([NINETY_TEN, torch.full((50,), -1)])
    assert losses.compute_pos_weight(labels) == 9.0
    assert losses.compute_focal_alpha(labels) == 0.10


def test_one_class_is_refused():
    for compute in (losses.compute_class_weights, losses.compute_pos_weight, losses.compute_focal_alpha):
        with pytest.raises(ValueError, match="3 negatives and 0 positives, but class weights need both"):
            compute([0, 0, 0, -1])
    with pytest.raises(ValueError, match="need both"):
        losses.compute_log_odds([[0, 1], [0, 0]])
    with pytest.raises(ValueError, match="inverse, effective"):
        losses.compute_class_weights([0, 1], "best")


# ---- by name ----------------------------------------------------------------------------------------------------


def test_every_loss_can_be_created_from_labels():
    logits, targets = sample(torch.float32)
    labels = targets.reshape(-1, 5)
    for name in LOSSES:
        assert losses.create_loss_function(name, labels)(logits, targets).isfinite()
    assert losses.create_loss_function("weighted_bce", NINETY_TEN).pos_weight == 9.0
    assert float(losses.create_loss_function("focal", NINETY_TEN).alpha) == pytest.approx(0.9)
    assert losses.create_loss_function("focal", [0, 0], alpha=None, gamma=1.0).alpha is None
    assert losses.create_loss_function("weighted_bce", [0, 0], pos_weight=2.0, reduction="sum").pos_weight == 2.0


def test_what_is_not_known_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'focl' is not a loss; did you mean 'focal'.* asymmetric"):
        losses.create_loss_function("focl", NINETY_TEN)
    with pytest.raises(ConfigError, match="'gama' is not a parameter of the loss 'focal'; did you mean 'gamma'"):
        losses.create_loss_function("focal", NINETY_TEN, gama=1.0)
    with pytest.raises(ConfigError, match="allowed: reduction"):
        losses.create_loss_function("bce", NINETY_TEN, pos_weight=2.0)


# ---- by configuration, for several folds ------------------------------------------------------------------------


def fold_labels():
    source = torch.Generator().manual_seed(2)
    return [torch.randint(-1, 2, (rows, 5), generator=source).to(torch.int8) for rows in (40, 50, 60)]


@pytest.mark.parametrize(
    ("config", "name", "given"),
    [
        (BCEConfig(), "bce", {}),
        (WeightedBCEConfig(), "weighted_bce", {}),
        (WeightedBCEConfig(pos_weight=3.0), "weighted_bce", {"pos_weight": 3.0}),
        (FocalConfig(), "focal", {}),
        (FocalConfig(gamma=0.5, alpha=0.25), "focal", {"gamma": 0.5, "alpha": 0.25}),
        (AsymmetricConfig(gamma_pos=1.0), "asymmetric", {"gamma_pos": 1.0}),
        (LogitAdjustedConfig(tau=0.5), "logit_adjusted", {"tau": 0.5}),
    ],
)
def test_folds_together_are_the_folds_one_by_one(config, name, given):
    logits, targets = sample(torch.float32)
    labels = fold_labels()
    together = losses.resolve(config, labels)(logits, targets)
    assert together.shape == logits.shape
    for fold in range(3):
        alone = losses.create_loss_function(name, labels[fold], reduction="none", **given)
        torch.testing.assert_close(together[fold], alone(logits[fold], targets[fold]))


def test_every_configured_loss_is_resolved():
    logits, targets = sample(torch.float32)
    for config in LOSSES.values():
        assert losses.resolve(config(), fold_labels())(logits, targets).isfinite().all()


def test_a_fold_with_one_class_is_refused_only_where_it_matters():
    labels = [torch.zeros(4, 5, dtype=torch.int8)]
    with pytest.raises(ValueError, match="20 negatives and 0 positives"):
        losses.resolve(WeightedBCEConfig(), labels)
    losses.resolve(WeightedBCEConfig(pos_weight=2.0), labels)
