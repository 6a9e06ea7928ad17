"""Losses for training by hand: modules with a reduction, class weights, and a factory that takes a loss's name.

Each module reduces a function of `core.losses` over the labelled targets; targets below 0 do not count. Its constructor
raises a ConfigError if the reduction is unknown, and `forward` a ValueError if logits and targets differ in shape.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ..config import LOSSES
from ..errors import check_choice, unknown_name
from ..losses import (
    Elementwise,
    Labels,
    Parameter,
    as_constant,
    asymmetric,
    bce,
    class_counts,
    compute_log_odds,
    compute_pos_weight,
    focal,
    logit_adjusted_bce,
    negative_share,
    weighted_bce,
)

Reduction = Literal["mean", "sum", "none"]
Entry = TypeVar("Entry")


# ---- modules ----------------------------------------------------------------------------------------------------


class BCELoss(nn.Module):
    """`bce` with a reduction: "mean", "sum" or "none"."""

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.reduction = _checked(reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar, or without reduction a tensor of the shape of `logits`."""
        return _reduce(bce, logits, targets, self.reduction)

    def extra_repr(self) -> str:
        """The arguments, as `repr` shows them."""
        return _arguments_text(self.reduction)


class WeightedBCELoss(nn.Module):
    """`weighted_bce` with a reduction: "mean", "sum" or "none"."""

    pos_weight: Tensor

    def __init__(self, pos_weight: Parameter, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.register_buffer("pos_weight", as_constant(pos_weight))
        self.reduction = _checked(reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar, or without reduction a tensor of the shape of `logits`."""
        return _reduce(partial(weighted_bce, pos_weight=self.pos_weight), logits, targets, self.reduction)

    def extra_repr(self) -> str:
        """The arguments, as `repr` shows them."""
        return _arguments_text(self.reduction, pos_weight=self.pos_weight)


class FocalLoss(nn.Module):
    """`focal` with a reduction: "mean", "sum" or "none"."""

    alpha: Tensor | None
    gamma: Tensor

    def __init__(self, alpha: Parameter | None = None, gamma: Parameter = 2.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.register_buffer("alpha", None if alpha is None else as_constant(alpha))
        self.register_buffer("gamma", as_constant(gamma))
        self.reduction = _checked(reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar, or without reduction a tensor of the shape of `logits`."""
        return _reduce(partial(focal, gamma=self.gamma, alpha=self.alpha), logits, targets, self.reduction)

    def extra_repr(self) -> str:
        """The arguments, as `repr` shows them."""
        return _arguments_text(self.reduction, alpha=self.alpha, gamma=self.gamma)


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
        self.register_buffer("gamma_pos", as_constant(gamma_pos))
        self.register_buffer("gamma_neg", as_constant(gamma_neg))
        self.register_buffer("clip", as_constant(clip))
        self.reduction = _checked(reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar, or without reduction a tensor of the shape of `logits`."""
        loss = partial(asymmetric, gamma_pos=self.gamma_pos, gamma_neg=self.gamma_neg, clip=self.clip)
        return _reduce(loss, logits, targets, self.reduction)

    def extra_repr(self) -> str:
        """The arguments, as `repr` shows them."""
        return _arguments_text(self.reduction, gamma_pos=self.gamma_pos, gamma_neg=self.gamma_neg, clip=self.clip)


class LogitAdjustedBCELoss(nn.Module):
    """`logit_adjusted_bce` with a reduction: "mean", "sum" or "none"."""

    log_odds: Tensor
    tau: Tensor

    def __init__(self, log_odds: Parameter, tau: Parameter = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.register_buffer("log_odds", as_constant(log_odds))
        self.register_buffer("tau", as_constant(tau))
        self.reduction = _checked(reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar, or without reduction a tensor of the shape of `logits`."""
        loss = partial(logit_adjusted_bce, log_odds=self.log_odds, tau=self.tau)
        return _reduce(loss, logits, targets, self.reduction)

    def extra_repr(self) -> str:
        """The arguments, as `repr` shows them."""
        return _arguments_text(self.reduction, log_odds=self.log_odds, tau=self.tau)


# ---- class weights ----------------------------------------------------------------------------------------------


def compute_class_weights(
    labels: Labels, method: Literal["inverse", "effective"] = "inverse", beta: float = 0.999
) -> Tensor:
    """Weights of the negative and the positive class; 90 / 10 gives [0.56, 5.00] by inverse frequency.

    "inverse": n / (2 n_c). "effective": proportional to (1−β) / (1−β^n_c), adding up to 2 (Cui, Jia, Lin, Song and
    Belongie, "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019).

    Args:
        labels: 0 and 1 in any shape, taken together; -1 = not labelled, ignored.
        method: "inverse" or "effective".
        beta: β of the effective number, 0 ≤ β < 1.

    Returns:
        float32 [2].

    Raises:
        ConfigError: the method is unknown.
        ValueError: only one class occurs, or β is out of range.
    """
    check_choice("method", method, ("inverse", "effective"))
    counts = torch.tensor(class_counts(labels), dtype=torch.float64)
    if method == "inverse":
        weights = counts.sum() / (2 * counts)
    else:
        if not 0 <= beta < 1:
            raise ValueError(f"beta is {beta}, but must be at least 0 and below 1")
        weights = (1 - beta) / (1 - beta**counts)
        weights = 2 * weights / weights.sum()
    return weights.to(torch.float32)


def compute_focal_alpha(labels: Labels, method: Literal["balanced", "inverse"] = "balanced") -> float:
    """Return the focal loss's α: "balanced" is n₁ / n (90 / 10 gives 0.10), "inverse" is n₀ / n (0.90).

    Args:
        labels: 0 and 1 in any shape, taken together; -1 = not labelled, ignored.
        method: "balanced" or "inverse".

    Raises:
        ConfigError: the method is unknown.
        ValueError: only one class occurs.
    """
    check_choice("method", method, ("balanced", "inverse"))
    if method == "inverse":
        return negative_share(labels)
    negatives, positives = class_counts(labels)
    return positives / (negatives + positives)


# ---- a loss by its name -----------------------------------------------------------------------------------------


def create_loss_function(name: str, labels: Labels, **overrides: Parameter | Reduction | None) -> nn.Module:
    """Build a loss by its name; omitted class weights are computed from the labels, which must be training labels.

    They are pos_weight (`compute_pos_weight`), alpha (`compute_focal_alpha(..., "inverse")`, as in
    `core.config.FocalConfig`) and log_odds (`compute_log_odds`). All other arguments have the defaults of the modules.

    Args:
        name: "bce", "weighted_bce", "focal", "asymmetric" or "logit_adjusted".
        labels: 0 and 1, [posts, criteria] or [posts]; -1 = not labelled, ignored.
        overrides: arguments of the loss's module, `reduction` among them; alpha = None means no class weights.

    Raises:
        ConfigError: the name or an override is unknown.
        ValueError: an argument must be computed, but only one class occurs.
    """
    module, allowed = _lookup("loss", name, _MODULES)
    for argument in overrides:
        _lookup(f"parameter of the loss '{name}'", argument, dict.fromkeys((*allowed, "reduction")))
    arguments = dict(overrides)
    for argument, compute in allowed.items():
        if argument not in arguments and compute is not None:
            arguments[argument] = compute(labels)
    return module(**arguments)


_MODULES: dict[str, tuple[Callable[..., nn.Module], dict[str, Callable[[Labels], Parameter] | None]]] = {
    "bce": (BCELoss, {}),
    "weighted_bce": (WeightedBCELoss, {"pos_weight": compute_pos_weight}),
    "focal": (FocalLoss, {"alpha": negative_share, "gamma": None}),
    "asymmetric": (AsymmetricLoss, {"gamma_pos": None, "gamma_neg": None, "clip": None}),
    "logit_adjusted": (LogitAdjustedBCELoss, {"log_odds": compute_log_odds, "tau": None}),
}
assert _MODULES.keys() == LOSSES.keys()


# ---- helpers ----------------------------------------------------------------------------------------------------


def _reduce(loss: Elementwise, logits: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
    """Reduce over the labelled targets; the loss of a target below 0 is 0."""
    if logits.shape != targets.shape:  # nothing may broadcast by accident: [n, 1] against [n] would be n² pairs
        raise ValueError(f"logits are {tuple(logits.shape)}, but targets are {tuple(targets.shape)}")
    labelled = targets >= 0
    values = loss(logits, targets.clamp(min=0)) * labelled
    if reduction == "none":
        return values
    return values.sum() / labelled.sum().clamp(min=1) if reduction == "mean" else values.sum()


def _arguments_text(reduction: Reduction, **parameters: Tensor | None) -> str:
    """The arguments of a module, each number with six digits: `alpha=0.9, gamma=2, reduction='mean'`."""
    texts = [f"{name}={None if value is None else _numbers_text(value)}" for name, value in parameters.items()]
    return ", ".join([*texts, f"reduction={reduction!r}"])


def _numbers_text(value: Tensor) -> str:
    numbers = [f"{number:.6g}" for number in value.flatten().tolist()]
    return f"[{', '.join(numbers)}]" if value.ndim else numbers[0]


def _checked(reduction: Reduction) -> Reduction:
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    return reduction


def _lookup(kind: str, name: str, entries: dict[str, Entry]) -> Entry:
    """Return the entry with this name, or raise a ConfigError that suggests the nearest one."""
    if name not in entries:
        raise unknown_name(kind, name, entries)
    return entries[name]
