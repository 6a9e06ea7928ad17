"""Losses for rare positives: pure element-wise functions of logits, the caller reduces; class weights.

Throughout z is the logit, p = σ(z) the probability, y ∈ {0, 1} the target. Everything is written with log σ, which is
finite where p has been rounded to 0 or 1: log p = log σ(z), log(1−p) = log σ(−z), and p^γ = exp(γ log σ(z)), whose
gradient stays finite for every γ ≥ 0. Targets marked -1 (not labelled) give a finite value that means nothing: the
caller masks them out, and so do the modules, whose mean is that of the labelled targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from .config import (
    LOSSES,
    AsymmetricConfig,
    BCEConfig,
    FocalConfig,
    LogitAdjustedConfig,
    LossConfig,
    WeightedBCEConfig,
)
from .errors import ConfigError, nearest

Labels = Tensor | ArrayLike
Parameter = float | Tensor
Reduction = Literal["mean", "sum", "none"]
Elementwise = Callable[[Tensor, Tensor], Tensor]
Entry = TypeVar("Entry")


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
        clip: the margin m, 0 ≤ m < 1, likewise; negatives with p ≤ m cost nothing.

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
        log_odds: log(π / (1−π)), of each criterion as a rule; a number or a tensor that broadcasts against `logits`.
        tau: τ ≥ 0, 0 is plain binary cross-entropy; likewise.

    Returns:
        Same shape as `logits`.
    """
    return bce(logits + tau * log_odds, targets)


# ---- the same as modules ----------------------------------------------------------------------------------------


class BCELoss(nn.Module):
    """`bce` with a reduction: "mean", "sum" or "none"."""

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.reduction = _checked(reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar, or the shape of `logits` without reduction."""
        return _reduced(bce, logits, targets, self.reduction)


class WeightedBCELoss(nn.Module):
    """`weighted_bce` with a reduction: "mean", "sum" or "none"."""

    pos_weight: Tensor

    def __init__(self, pos_weight: Parameter, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.register_buffer("pos_weight", _constant(pos_weight))
        self.reduction = _checked(reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar, or the shape of `logits` without reduction."""
        return _reduced(partial(weighted_bce, pos_weight=self.pos_weight), logits, targets, self.reduction)


class FocalLoss(nn.Module):
    """`focal` with a reduction: "mean", "sum" or "none"."""

    alpha: Tensor | None
    gamma: Tensor

    def __init__(self, alpha: Parameter | None = None, gamma: Parameter = 2.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.register_buffer("alpha", None if alpha is None else _constant(alpha))
        self.register_buffer("gamma", _constant(gamma))
        self.reduction = _checked(reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar, or the shape of `logits` without reduction."""
        return _reduced(partial(focal, gamma=self.gamma, alpha=self.alpha), logits, targets, self.reduction)


class AsymmetricLoss(nn.Module):
    """`asymmetric` with a reduction: "mean", "sum" or "none"."""

    gamma_pos: Tensor
    gamma_neg: Tensor
    clip: Tensor

    def __init__(
        self,
        gamma_pos: Parameter = 0.0,
        gamma_neg: Parameter = 4.0,
        clip: Parameter = 0.05,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.register_buffer("gamma_pos", _constant(gamma_pos))
        self.register_buffer("gamma_neg", _constant(gamma_neg))
        self.register_buffer("clip", _constant(clip))
        self.reduction = _checked(reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar, or the shape of `logits` without reduction."""
        loss = partial(asymmetric, gamma_pos=self.gamma_pos, gamma_neg=self.gamma_neg, clip=self.clip)
        return _reduced(loss, logits, targets, self.reduction)


class LogitAdjustedBCELoss(nn.Module):
    """`logit_adjusted_bce` with a reduction: "mean", "sum" or "none"."""

    log_odds: Tensor
    tau: Tensor

    def __init__(self, log_odds: Parameter, tau: Parameter = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.register_buffer("log_odds", _constant(log_odds))
        self.register_buffer("tau", _constant(tau))
        self.reduction = _checked(reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar, or the shape of `logits` without reduction."""
        loss = partial(logit_adjusted_bce, log_odds=self.log_odds, tau=self.tau)
        return _reduced(loss, logits, targets, self.reduction)


# ---- what the labels say ----------------------------------------------------------------------------------------


def compute_class_weights(
    labels: Labels, method: Literal["inverse", "effective"] = "inverse", beta: float = 0.999
) -> Tensor:
    """Weights of the negative and the positive class; 90 / 10 gives [0.56, 5.00] by inverse frequency.

    "inverse": n / (2 n_c). "effective": proportional to (1−β) / (1−β^n_c), adding up to 2 (Cui, Jia, Lin, Song and
    Belongie, "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019).

    Args:
        labels: 0 and 1 in any shape, taken together; -1 = not labelled, ignored.
        method: which of the two.
        beta: β of the effective number, 0 ≤ β < 1.

    Returns:
        float32 [2].

    Raises:
        ValueError: only one class is there, or the method or β is not known or not allowed.
    """
    _known("method", method, ("inverse", "effective"))
    counts = torch.tensor(_class_counts(labels), dtype=torch.float64)
    if method == "inverse":
        weights = counts.sum() / (2 * counts)
    else:
        if not 0 <= beta < 1:
            raise ValueError(f"beta is {beta}, but must be at least 0 and below 1")
        weights = (1 - beta) / (1 - beta**counts)
        weights = 2 * weights / weights.sum()
    return weights.to(torch.float32)


def compute_pos_weight(labels: Labels) -> float:
    """Return negatives / positives, n₀ / n₁; 90 / 10 gives 9.00.

    Args:
        labels: 0 and 1 in any shape, taken together; -1 = not labelled, ignored.

    Raises:
        ValueError: only one class is there.
    """
    negatives, positives = _class_counts(labels)
    return negatives / positives


def compute_focal_alpha(labels: Labels, method: Literal["balanced", "inverse"] = "balanced") -> float:
    """Return the focal loss's α: "balanced" is n₁ / n (90 / 10 gives 0.10), "inverse" is n₀ / n (0.90).

    Args:
        labels: 0 and 1 in any shape, taken together; -1 = not labelled, ignored.
        method: which of the two.

    Raises:
        ValueError: only one class is there, or the method is not known.
    """
    _known("method", method, ("balanced", "inverse"))
    negatives, positives = _class_counts(labels)
    return (positives if method == "balanced" else negatives) / (negatives + positives)


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
    counts = torch.tensor([_class_counts(column) for column in columns], dtype=torch.float64)
    log_odds = (counts[:, 1] / counts[:, 0]).log().to(torch.float32)
    return log_odds if table.ndim > 1 else log_odds[0]


# ---- a loss by its name -----------------------------------------------------------------------------------------


def create_loss_function(name: str, labels: Labels, **overrides: Parameter | Reduction | None) -> nn.Module:
    """Build a loss by its name; what is not given is computed from the labels (of the training part only).

    pos_weight: `compute_pos_weight`; alpha: `compute_focal_alpha(..., "inverse")`, as in `core.config.FocalConfig`;
    log_odds: `compute_log_odds`. Other values left out are the configuration's defaults.

    Args:
        name: "bce", "weighted_bce", "focal", "asymmetric" or "logit_adjusted".
        labels: 0 and 1, [posts, criteria] or [posts]; -1 = not labelled, ignored.
        overrides: arguments of the loss's module, `reduction` among them; alpha = None means no class weights.

    Raises:
        ConfigError: the name or an override is not known.
        ValueError: a value has to be computed, but only one class is there.
    """
    module, allowed = _lookup("loss", name, _MODULES)
    for given in overrides:
        _lookup(f"parameter of the loss '{name}'", given, dict.fromkeys((*allowed, "reduction")))
    arguments = dict(overrides)
    for parameter, compute in allowed.items():
        if parameter not in arguments and compute is not None:
            arguments[parameter] = compute(labels)
    return module(**arguments)


def resolve(
    config: LossConfig, labels_per_fold: Sequence[Tensor], *, device: torch.device | str | None = None
) -> Elementwise:
    """Turn a configuration into the element-wise loss of several folds at once.

    What the configuration leaves out is computed for every fold from its own training part.

    Args:
        config: the loss.
        labels_per_fold: of each fold the training part's labels, int8 [posts, criteria]; -1 = not labelled, ignored.
        device: where the logits will be; by default where the labels are.

    Returns:
        A function of logits [folds, batch, criteria] and targets of the same shape, to losses of the same shape.

    Raises:
        ValueError: a value has to be computed, but a fold (or, for log-odds, a criterion in it) has only one class.
    """
    where = device if device is not None else labels_per_fold[0].device

    def per_fold(values: Iterable[Parameter]) -> Tensor:
        """Stack each fold's number, or numbers per criterion, to [folds, 1, 1 or criteria]."""
        return torch.stack([_constant(value).reshape(1, -1) for value in values]).to(where)

    match config:
        case BCEConfig():
            return bce
        case WeightedBCEConfig(pos_weight=None):
            return partial(weighted_bce, pos_weight=per_fold(map(compute_pos_weight, labels_per_fold)))
        case WeightedBCEConfig(pos_weight=float() | int() as pos_weight):
            return partial(weighted_bce, pos_weight=pos_weight)
        case FocalConfig(gamma=gamma, alpha=None):
            return partial(focal, gamma=gamma, alpha=per_fold(map(_inverse_alpha, labels_per_fold)))
        case FocalConfig(gamma=gamma, alpha=alpha):
            return partial(focal, gamma=gamma, alpha=alpha)
        case AsymmetricConfig(gamma_pos=gamma_pos, gamma_neg=gamma_neg, clip=clip):
            return partial(asymmetric, gamma_pos=gamma_pos, gamma_neg=gamma_neg, clip=_constant(clip).to(where))
        case LogitAdjustedConfig(tau=tau):
            return partial(logit_adjusted_bce, log_odds=per_fold(map(compute_log_odds, labels_per_fold)), tau=tau)
    raise ConfigError(f"no loss is known for {config!r}")


def _inverse_alpha(labels: Labels) -> float:
    return compute_focal_alpha(labels, "inverse")


_MODULES: dict[str, tuple[Callable[..., nn.Module], dict[str, Callable[[Labels], Parameter] | None]]] = {
    "bce": (BCELoss, {}),
    "weighted_bce": (WeightedBCELoss, {"pos_weight": compute_pos_weight}),
    "focal": (FocalLoss, {"alpha": _inverse_alpha, "gamma": None}),
    "asymmetric": (AsymmetricLoss, {"gamma_pos": None, "gamma_neg": None, "clip": None}),
    "logit_adjusted": (LogitAdjustedBCELoss, {"log_odds": compute_log_odds, "tau": None}),
}
assert _MODULES.keys() == LOSSES.keys()


# ---- helpers ----------------------------------------------------------------------------------------------------


def _reduced(loss: Elementwise, logits: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
    """Reduce over the labelled targets; those below 0 cost nothing."""
    if logits.shape != targets.shape:  # nothing broadcasts by accident: [n, 1] against [n] would be n² pairs
        raise ValueError(f"logits are {tuple(logits.shape)}, but targets are {tuple(targets.shape)}")
    labelled = targets >= 0
    values = loss(logits, targets.clamp(min=0)) * labelled
    if reduction == "none":
        return values
    return values.sum() / labelled.sum().clamp(min=1) if reduction == "mean" else values.sum()


def _checked(reduction: Reduction) -> Reduction:
    _known("reduction", reduction, ("mean", "sum", "none"))
    return reduction


def _known(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{what} is {value!r}, but must be one of {', '.join(allowed)}")


def _lookup(what: str, name: str, known: dict[str, Entry]) -> Entry:
    """Return the entry of that name; an unknown name is refused with the nearest known one."""
    if name in known:
        return known[name]
    close = nearest(name, known)
    hint = f"did you mean '{close}'? " if close else ""
    raise ConfigError(f"'{name}' is not a {what}; {hint}allowed: {', '.join(known)}")


def _constant(value: Parameter) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32)


def _tensor(labels: Labels) -> Tensor:
    return labels if isinstance(labels, Tensor) else torch.tensor(np.asarray(labels))


def _class_counts(labels: Labels) -> tuple[int, int]:
    """Return how many negatives and positives there are."""
    table = _tensor(labels)
    negatives, positives = int((table == 0).sum()), int((table == 1).sum())
    if not (negatives and positives):
        raise ValueError(
            f"the labels have {negatives} negatives and {positives} positives, but class weights need both; "
            "give the weight yourself, or use more labels"
        )
    return negatives, positives
