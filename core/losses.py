"""Losses for rare positives: pure element-wise functions of logits, and the loss of a configuration.

Throughout, z is the logit, p = σ(z) the probability, y ∈ {0, 1} the target. Everything is computed from log σ, which is
finite where p has been rounded to 0 or 1: log p = log σ(z), log(1−p) = log σ(−z), and p^γ = exp(γ log σ(z)), whose
gradient stays finite for every γ ≥ 0. A target of -1 (not labelled) gives a finite value without meaning: the caller
masks it out and reduces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import logsigmoid

from .config import AsymmetricConfig, BCEConfig, FocalConfig, LogitAdjustedConfig, LossConfig, WeightedBCEConfig
from .errors import ConfigError

Labels = Tensor | ArrayLike
Parameter = float | Tensor
Elementwise = Callable[[Tensor, Tensor], Tensor]
"""Logits and targets to losses, all of the same shape."""


# ---- element-wise functions -------------------------------------------------------------------------------------


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, −y log p − (1−y) log(1−p).

    Args:
        logits: float tensor of any shape.
        targets: same shape, values in [0, 1].

    Returns:
        Same shape as `logits`.
    """
    return weighted_bce(logits, targets, pos_weight=1.0)


def weighted_bce(logits: Tensor, targets: Tensor, *, pos_weight: Parameter) -> Tensor:
    """Binary cross-entropy with weighted positives, −w y log p − (1−y) log(1−p).

    With weight w, p = 0.5 means a true posterior of 1/(1+w).

    Args:
        logits: float tensor of any shape.
        targets: same shape, values in [0, 1].
        pos_weight: w > 0; a number or a tensor that broadcasts against `logits`.

    Returns:
        Same shape as `logits`.
    """
    y = targets.to(logits.dtype)
    return torch.addcmul((y - 1) * logsigmoid(-logits), -pos_weight * y, logsigmoid(logits))


def focal(logits: Tensor, targets: Tensor, *, gamma: Parameter, alpha: Parameter | None) -> Tensor:
    """Focal loss, −α_t (1−p_t)^γ log p_t, where p_t = p and α_t = α if y = 1, else 1−p and 1−α.

    Lin, Goyal, Girshick, He and Dollár, "Focal Loss for Dense Object Detection", ICCV 2017. With weight α, p = 0.5
    means (at γ = 0) a true posterior of 1−α.

    Args:
        logits: float tensor of any shape.
        targets: same shape, values in [0, 1].
        gamma: γ ≥ 0, 0 is α-weighted cross-entropy; a number or a tensor that broadcasts against `logits`.
        alpha: weight of the positive class in [0, 1], likewise; None = no class weights (α_t = 1).

    Returns:
        Same shape as `logits`.
    """
    y = targets.to(logits.dtype)
    log_p, log_not_p = logsigmoid(logits), logsigmoid(-logits)
    positive = y * torch.exp(gamma * log_not_p) * log_p
    negative = (1 - y) * torch.exp(gamma * log_p) * log_not_p
    if alpha is None:
        return -(positive + negative)
    return -(alpha * positive + (1 - alpha) * negative)


def asymmetric(
    logits: Tensor, targets: Tensor, *, gamma_pos: Parameter, gamma_neg: Parameter, clip: Parameter
) -> Tensor:
    """Asymmetric loss, −y (1−p)^γ₊ log p − (1−y) p_m^γ₋ log(1−p_m), where p_m = max(p − m, 0).

    Ridnik, Ben-Baruch, Zamir, Noy, Friedman, Protter and Zelnik-Manor, "Asymmetric Loss For Multi-Label
    Classification", ICCV 2021.

    Args:
        logits: float tensor of any shape.
        targets: same shape, values in [0, 1].
        gamma_pos: γ₊ ≥ 0; a number or a tensor that broadcasts against `logits`.
        gamma_neg: γ₋ ≥ 0, likewise.
        clip: the margin m, 0 ≤ m < 1, likewise; the loss of negatives with p ≤ m is 0.

    Returns:
        Same shape as `logits`.
    """
    y = targets.to(logits.dtype)
    log_p, log_not_p = logsigmoid(logits), logsigmoid(-logits)
    margin = torch.as_tensor(clip, dtype=logits.dtype, device=logits.device)
    # 1 − p_m = min(1 − p + m, 1) in logarithms, so that it is exact with m = 0 too (log 0 = −∞ adds nothing)
    log_not_shifted = torch.logaddexp(log_not_p, margin.log()).clamp(max=0)
    shifted = (-torch.expm1(log_not_shifted)).clamp(min=torch.finfo(logits.dtype).tiny)  # the slope of 0^γ is infinite
    positive = y * torch.exp(gamma_pos * log_not_p) * log_p
    negative = (1 - y) * shifted**gamma_neg * log_not_shifted
    return -(positive + negative)


def logit_adjusted_bce(logits: Tensor, targets: Tensor, *, log_odds: Parameter, tau: Parameter) -> Tensor:
    """Binary cross-entropy of z + τ log(π / (1−π)), π the share of positives in training.

    The two-class form of Menon, Jayasumana, Rawat, Jain, Veit and Kumar, "Long-tail learning via logit adjustment",
    ICLR 2021. With τ = 1, z is the log-odds as if both classes were equally frequent.

    Args:
        logits: float tensor of any shape.
        targets: same shape, values in [0, 1].
        log_odds: log(π / (1−π)), usually of each criterion; a number or a tensor that broadcasts against `logits`.
        tau: τ ≥ 0, 0 is plain binary cross-entropy; likewise.

    Returns:
        Same shape as `logits`.
    """
    return bce(logits + tau * log_odds, targets)


# ---- parameters that follow from the labels ---------------------------------------------------------------------


def class_counts(labels: Labels) -> tuple[int, int]:
    """Return the numbers of negatives and of positives.

    Args:
        labels: 0 and 1 in any shape, taken together; -1 = not labelled, ignored.

    Raises:
        ValueError: only one class occurs.
    """
    table = _tensor(labels)
    negatives, positives = int((table == 0).sum()), int((table == 1).sum())
    if not (negatives and positives):
        raise ValueError(
            f"the labels have {negatives} negatives and {positives} positives, but class weights need both; "
            "give the weight yourself, or use more labels"
        )
    return negatives, positives


def compute_pos_weight(labels: Labels) -> float:
    """Return negatives / positives, n₀ / n₁; 90 / 10 gives 9.00.

    Args:
        labels: 0 and 1 in any shape, taken together; -1 = not labelled, ignored.

    Raises:
        ValueError: only one class occurs.
    """
    negatives, positives = class_counts(labels)
    return negatives / positives


def negative_share(labels: Labels) -> float:
    """Return negatives / all, n₀ / n, the default weight of the positive class in the focal loss; 90 / 10 gives 0.90.

    Args:
        labels: 0 and 1 in any shape, taken together; -1 = not labelled, ignored.

    Raises:
        ValueError: only one class occurs.
    """
    negatives, positives = class_counts(labels)
    return negatives / (negatives + positives)


def compute_log_odds(labels: Labels) -> Tensor:
    """Return log(n₁ / n₀) of each criterion.

    Args:
        labels: 0 and 1, [posts, criteria] or [posts]; -1 = not labelled, ignored.

    Returns:
        float32 [criteria], or a scalar tensor for [posts].

    Raises:
        ValueError: a criterion has only one class.
    """
    table = _tensor(labels)
    columns = table.reshape(len(table), -1).T if table.ndim > 1 else [table]
    counts = torch.tensor([class_counts(column) for column in columns], dtype=torch.float64)
    log_odds = (counts[:, 1] / counts[:, 0]).log().to(torch.float32)
    return log_odds if table.ndim > 1 else log_odds[0]


# ---- the loss of a configuration --------------------------------------------------------------------------------


def make_loss(config: LossConfig, labels_per_fold: Sequence[Tensor]) -> Elementwise:
    """Turn a configuration into the element-wise loss of several folds at once.

    Parameters that the configuration does not set are computed for every fold from its own training labels.

    Args:
        config: the loss.
        labels_per_fold: the training labels of each fold, int8 [posts, criteria]; -1 = not labelled, ignored. Logits
            must be on the same device.

    Returns:
        A function of logits [folds, batch, criteria] and targets of the same shape, to losses of the same shape.

    Raises:
        ConfigError: there is no loss for the configuration.
        ValueError: a parameter must be computed, but a fold (for log-odds: a criterion of a fold) has only one class.
    """
    device = labels_per_fold[0].device

    def per_fold(values: Iterable[Parameter]) -> Tensor:
        """Stack one number per fold, or one per fold and criterion, to [folds, 1, 1 or criteria]."""
        return torch.stack([as_constant(value).reshape(1, -1) for value in values]).to(device)

    match config:
        case BCEConfig():
            return bce
        case WeightedBCEConfig(pos_weight=None):
            return partial(weighted_bce, pos_weight=per_fold(map(compute_pos_weight, labels_per_fold)))
        case WeightedBCEConfig(pos_weight=float() | int() as pos_weight):
            return partial(weighted_bce, pos_weight=pos_weight)
        case FocalConfig(gamma=gamma, alpha=None):
            return partial(focal, gamma=gamma, alpha=per_fold(map(negative_share, labels_per_fold)))
        case FocalConfig(gamma=gamma, alpha=alpha):
            return partial(focal, gamma=gamma, alpha=alpha)
        case AsymmetricConfig(gamma_pos=gamma_pos, gamma_neg=gamma_neg, clip=clip):
            return partial(asymmetric, gamma_pos=gamma_pos, gamma_neg=gamma_neg, clip=as_constant(clip).to(device))
        case LogitAdjustedConfig(tau=tau):
            return partial(logit_adjusted_bce, log_odds=per_fold(map(compute_log_odds, labels_per_fold)), tau=tau)
    raise ConfigError(f"there is no loss for {config!r}")


def as_constant(value: Parameter) -> Tensor:
    """Return a parameter of a loss as a float32 tensor."""
    return torch.as_tensor(value, dtype=torch.float32)


def _tensor(labels: Labels) -> Tensor:
    return labels if isinstance(labels, Tensor) else torch.tensor(np.asarray(labels))
