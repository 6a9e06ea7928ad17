"""Losses are tested by identities between them and by their values and gradients at extreme logits."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as torch_bce

from sparse_evidence.core import classic, losses
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


def test_bce_equals_torch():
    logits, targets = sample()
    torch.testing.assert_close(losses.bce(logits, targets), torch_bce(logits, targets.double(), reduction="none"))


def test_bce_accepts_soft_targets():
    logits, _ = sample()
    soft = torch.rand_like(logits)
    torch.testing.assert_close(losses.bce(logits, soft), torch_bce(logits, soft, reduction="none"))


def test_weighted_bce_equals_torch():
    logits, targets = sample()
    weights = torch.tensor([0.5, 1, 2, 9.86, 40], dtype=torch.float64)
    expected = torch_bce(logits, targets.double(), pos_weight=weights, reduction="none")
    torch.testing.assert_close(losses.weighted_bce(logits, targets, pos_weight=weights), expected)


def test_weighted_bce_with_weight_one_is_bce():
    logits, targets = sample()
    torch.testing.assert_close(losses.weighted_bce(logits, targets, pos_weight=1), losses.bce(logits, targets))


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.9])
def test_focal_without_gamma_is_alpha_weighted_bce(alpha):
    logits, targets = sample()
    weights = torch.where(targets == 1, alpha, 1 - alpha)
    values = losses.focal(logits, targets, gamma=0, alpha=alpha)
    torch.testing.assert_close(values, weights * losses.bce(logits, targets))
    weighted = losses.weighted_bce(logits, targets, pos_weight=alpha / (1 - alpha))
    torch.testing.assert_close(values, (1 - alpha) * weighted)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_the_ratio_of_focal_to_bce_is_the_modulating_factor(gamma):
    logits, targets = sample()
    ratio = losses.focal(logits, targets, gamma=gamma, alpha=None) / losses.bce(logits, targets)
    torch.testing.assert_close(ratio, (1 - p_t(logits, targets)) ** gamma)


def test_focal_alpha_weights_the_classes():
    logits, targets = sample()
    only_positives = losses.focal(logits, targets, gamma=2, alpha=1.0)
    assert (only_positives[targets == 0] == 0).all()
    both = only_positives + losses.focal(logits, targets, gamma=2, alpha=0.0)
    torch.testing.assert_close(both, losses.focal(logits, targets, gamma=2, alpha=None))


def test_asymmetric_without_gammas_and_clip_is_bce():
    logits, targets = sample()
    values = losses.asymmetric(logits, targets, gamma_pos=0, gamma_neg=0, clip=0)
    torch.testing.assert_close(values, losses.bce(logits, targets))


def test_asymmetric_with_one_gamma_and_no_clip_is_focal():
    logits, targets = sample()
    values = losses.asymmetric(logits, targets, gamma_pos=2, gamma_neg=2, clip=0)
    torch.testing.assert_close(values, losses.focal(logits, targets, gamma=2, alpha=None))


def test_asymmetric_equals_its_formula():
    logits, targets = sample()
    p = logits.sigmoid()
    shifted = (p - 0.05).clamp(min=0)
    expected = torch.where(targets == 1, -(1 - p) * p.log(), -(shifted**4) * (1 - shifted).log())
    values = losses.asymmetric(logits, targets, gamma_pos=1, gamma_neg=4, clip=0.05)
    torch.testing.assert_close(values, expected)
    assert (values[(targets == 0) & (p < 0.05)] == 0).all()


def test_logit_adjustment_shifts_the_logits():
    logits, targets = sample()
    log_odds = torch.tensor([-3.0, -2, -1, 0, 1], dtype=torch.float64)
    values = losses.logit_adjusted_bce(logits, targets, log_odds=log_odds, tau=0.5)
    torch.testing.assert_close(values, losses.bce(logits + 0.5 * log_odds, targets))
    untouched = losses.logit_adjusted_bce(logits, targets, log_odds=log_odds, tau=0)
    torch.testing.assert_close(untouched, losses.bce(logits, targets))


def test_parameters_per_fold_equal_single_folds():
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
def test_gradients_equal_finite_differences(loss):
    source = torch.Generator().manual_seed(1)
    logits = (torch.randn(40, generator=source, dtype=torch.float64) * 3).requires_grad_()
    targets = torch.arange(40) % 2
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), (logits,))


# ---- modules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (classic.BCELoss, losses.bce),
        (
            lambda reduction: classic.WeightedBCELoss(3.0, reduction=reduction),
            lambda z, y: losses.weighted_bce(z, y, pos_weight=3.0),
        ),
        (
            lambda reduction: classic.FocalLoss(alpha=0.5, gamma=1.5, reduction=reduction),
            lambda z, y: losses.focal(z, y, gamma=1.5, alpha=0.5),
        ),
        (
            lambda reduction: classic.FocalLoss(reduction=reduction),
            lambda z, y: losses.focal(z, y, gamma=2.0, alpha=None),
        ),
        (
            lambda reduction: classic.AsymmetricLoss(1.0, 2.0, 0.25, reduction=reduction),
            lambda z, y: losses.asymmetric(z, y, gamma_pos=1.0, gamma_neg=2.0, clip=0.25),
        ),
        (
            lambda reduction: classic.LogitAdjustedBCELoss(torch.arange(5.0), 0.5, reduction=reduction),
            lambda z, y: losses.logit_adjusted_bce(z, y, log_odds=torch.arange(5.0), tau=0.5),
        ),
    ],
)
def test_modules_reduce_their_functions(module, function):
    logits, targets = sample()
    values = function(logits, targets)
    torch.testing.assert_close(module("none")(logits, targets), values)
    torch.testing.assert_close(module("sum")(logits, targets), values.sum())
    torch.testing.assert_close(module("mean")(logits, targets), values.mean())
    with pytest.raises(ValueError, match="mean, sum, none"):
        module("max")


@pytest.mark.parametrize("name", ["bce", "weighted_bce", "focal", "asymmetric", "logit_adjusted"])
def test_modules_ignore_unlabelled_targets(name):
    logits, targets = sample()
    logits.requires_grad_()
    marked = targets.clone()
    marked[:, ::2] = -1
    mean, total = (classic.create_loss_function(name, targets.flatten(0, 1), reduction=how) for how in ("mean", "sum"))
    torch.testing.assert_close(mean(logits, marked), mean(logits[:, 1::2], targets[:, 1::2]))
    torch.testing.assert_close(total(logits, marked), total(logits[:, 1::2], targets[:, 1::2]))
    mean(logits, marked).backward()
    assert logits.grad[:, ::2].abs().max() == 0
    assert mean(logits, torch.full_like(targets, -1)) == 0


def test_modules_refuse_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"logits are \(4, 1\), but targets are \(4,\)"):
        classic.BCELoss()(torch.zeros(4, 1), torch.zeros(4))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (classic.BCELoss(), "BCELoss(reduction='mean')"),
        (classic.WeightedBCELoss(9.0, reduction="sum"), "WeightedBCELoss(pos_weight=9, reduction='sum')"),
        (classic.FocalLoss(), "FocalLoss(alpha=None, gamma=2, reduction='mean')"),
        (classic.FocalLoss(0.9, 1.5), "FocalLoss(alpha=0.9, gamma=1.5, reduction='mean')"),
        (classic.AsymmetricLoss(), "AsymmetricLoss(gamma_pos=0, gamma_neg=4, clip=0.05, reduction='mean')"),
        (
            classic.LogitAdjustedBCELoss(torch.tensor([-2.5, 0.125])),
            "LogitAdjustedBCELoss(log_odds=[-2.5, 0.125], tau=1, reduction='mean')",
        ),
        (
            classic.create_loss_function("focal", NINETY_TEN, gamma=0.5),
            "FocalLoss(alpha=0.9, gamma=0.5, reduction='mean')",
        ),
    ],
)
def test_the_repr_of_a_module_shows_its_parameters(module, text):
    assert repr(module) == text


# ---- class weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [lambda x: x, lambda x: x.numpy(), lambda x: x.tolist(), lambda x: x.bool()])
def test_class_weights_of_ninety_to_ten(convert):
    labels = convert(NINETY_TEN)
    np.testing.assert_allclose(classic.compute_class_weights(labels), [90 / 162, 5.0])
    assert classic.compute_pos_weight(labels) == 9.0
    assert classic.compute_focal_alpha(labels) == 0.10
    assert classic.compute_focal_alpha(labels, method="inverse") == 0.90
    assert float(classic.compute_log_odds(labels)) == pytest.approx(-math.log(9))


def test_the_parameters_of_a_loss_are_class_frequencies():
    assert losses.class_counts(NINETY_TEN) == (90, 10)
    assert losses.negative_share(NINETY_TEN) == classic.compute_focal_alpha(NINETY_TEN, "inverse") == 0.9
    per_criterion = losses.compute_log_odds([[0, 1], [1, 1], [0, 0], [-1, 1]])
    torch.testing.assert_close(per_criterion, torch.log(torch.tensor([0.5, 3.0])))


def test_pos_weight_of_redsm5():
    labels = torch.cat([torch.zeros(13_474), torch.ones(1_366)])
    assert round(classic.compute_pos_weight(labels), 2) == 9.86


def test_effective_number_of_samples():
    weights = classic.compute_class_weights(NINETY_TEN, "effective")
    assert float(weights.sum()) == pytest.approx(2)
    assert float(weights[1] / weights[0]) == pytest.approx((1 - 0.999**90) / (1 - 0.999**10))
    np.testing.assert_allclose(classic.compute_class_weights(NINETY_TEN, "effective", beta=0.0), [1, 1])
    nearly_inverse = classic.compute_class_weights(NINETY_TEN, "effective", beta=1 - 1e-9)
    assert float(nearly_inverse[1] / nearly_inverse[0]) == pytest.approx(9, rel=1e-4)
    with pytest.raises(ValueError, match="beta is 1"):
        classic.compute_class_weights(NINETY_TEN, "effective", beta=1.0)


def test_class_weights_ignore_unlabelled_items():
    labels = torch.cat([NINETY_TEN, torch.full((50,), -1)])
    assert classic.compute_pos_weight(labels) == 9.0
    assert classic.compute_focal_alpha(labels) == 0.10


def test_labels_of_one_class_are_refused():
    for compute in (classic.compute_class_weights, classic.compute_pos_weight, classic.compute_focal_alpha):
        with pytest.raises(ValueError, match="3 negatives and 0 positives, but class weights need both"):
            compute([0, 0, 0, -1])
    with pytest.raises(ValueError, match="need both"):
        classic.compute_log_odds([[0, 1], [0, 0]])
    with pytest.raises(ValueError, match="balanced, inverse"):
        classic.compute_focal_alpha([0, 1], "best")
    with pytest.raises(ValueError, match="inverse, effective"):
        classic.compute_class_weights([0, 1], "best")


# ---- by name ----------------------------------------------------------------------------------------------------


def test_every_loss_can_be_created_from_labels():
    logits, targets = sample(torch.float32)
    labels = targets.reshape(-1, 5)
    for name in LOSSES:
        assert classic.create_loss_function(name, labels)(logits, targets).isfinite()
    assert classic.create_loss_function("weighted_bce", NINETY_TEN).pos_weight == 9.0
    assert float(classic.create_loss_function("focal", NINETY_TEN).alpha) == pytest.approx(0.9)
    assert classic.create_loss_function("focal", [0, 0], alpha=None, gamma=1.0).alpha is None
    assert classic.create_loss_function("weighted_bce", [0, 0], pos_weight=2.0, reduction="sum").pos_weight == 2.0


def test_unknown_names_are_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"'focl' is not a loss; did you mean 'focal'.* asymmetric"):
        classic.create_loss_function("focl", NINETY_TEN)
    with pytest.raises(ConfigError, match="'gama' is not a parameter of the loss 'focal'; did you mean 'gamma'"):
        classic.create_loss_function("focal", NINETY_TEN, gama=1.0)
    with pytest.raises(ConfigError, match="allowed: reduction"):
        classic.create_loss_function("bce", NINETY_TEN, pos_weight=2.0)


# ---- by configuration, for several folds ------------------------------------------------------------------------


def fold_labels():
    source = torch.Generator().manual_seed(2)
    return [torch.randint(-1, 2, (rows, 5), generator=source).to(torch.int8) for rows in (40, 50, 60)]


@pytest.mark.parametrize(
    ("config", "name", "arguments"),
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
def test_the_loss_of_several_folds_equals_single_folds(config, name, arguments):
    logits, targets = sample(torch.float32)
    labels = fold_labels()
    together = losses.make_loss(config, labels)(logits, targets)
    assert together.shape == logits.shape
    for fold in range(3):
        alone = classic.create_loss_function(name, labels[fold], reduction="none", **arguments)
        torch.testing.assert_close(together[fold], alone(logits[fold], targets[fold]))


def test_make_loss_knows_every_configuration():
    logits, targets = sample(torch.float32)
    for config in LOSSES.values():
        assert losses.make_loss(config(), fold_labels())(logits, targets).isfinite().all()


def test_a_fold_with_one_class_is_refused_only_if_a_weight_is_computed():
    labels = [torch.zeros(4, 5, dtype=torch.int8)]
    with pytest.raises(ValueError, match="20 negatives and 0 positives"):
        losses.make_loss(WeightedBCEConfig(), labels)
    losses.make_loss(WeightedBCEConfig(pos_weight=2.0), labels)
