"""AdamW for folds stacked into one model: all weights of a fold are a row of one matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class FoldAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, ICLR 2019) over `[folds, ...]` parameters; every fold is clipped by its own norm.

    The parameters become views of one matrix `[folds, weights]`, so that a step is a handful of operations on the whole
    stack, however many parameters it has. It comes to the numbers of `torch.optim.AdamW`, and spares every worker a
    second: torch's own optimizers import its compiler when they are made.

    Args:
        parameters: `[folds, ...]` each, on their device.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: share of the learning rate that a weight loses in a step.
        max_norm: largest gradient norm of a fold; 0 switches clipping off.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        max_norm: float = 0.0,
    ) -> None:
        self._parameters = list(parameters)
        self._weights = self._rows(each.detach() for each in self._parameters)
        parts = self._weights.split([each[0].numel() for each in self._parameters], 1)
        for each, part in zip(self._parameters, parts, strict=True):
            each.data = part.view(each.shape)
        self._first, self._second = torch.zeros_like(self._weights), torch.zeros_like(self._weights)
        self._steps = 0
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_norm": max_norm}
        super().__init__(self._parameters, settings)

    @staticmethod
    def _rows(tensors: Iterable[Tensor]) -> Tensor:
        """`[folds, ...]` tensors side by side as `[folds, weights]`."""
        return torch.cat([each.flatten(1) for each in tensors], dim=1)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the one group there is; torch's own method imports its compiler."""
        self.param_groups.append({**self.defaults, **param_group})

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: ARG002 (torch's signature)
        """Forget the gradients."""
        for each in self._parameters:
            each.grad = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (torch's signature)
        """One step of every fold. A parameter without a gradient has one of zero."""
        (group,) = self.param_groups
        (slow, slower), rate = group["betas"], group["lr"]
        gradient = self._rows(torch.zeros_like(each) if each.grad is None else each.grad for each in self._parameters)
        if group["max_norm"] > 0:
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient.mul_((group["max_norm"] / norm.clamp(min=1e-12)).clamp(max=1.0))
        self._steps += 1
        self._first.lerp_(gradient, 1 - slow)
        self._second.mul_(slower).addcmul_(gradient, gradient, value=1 - slower)
        root = self._second.sqrt().div_((1 - slower**self._steps) ** 0.5).add_(group["eps"])
        self._weights.mul_(1 - rate * group["weight_decay"])
        self._weights.addcdiv_(self._first, root, value=-rate / (1 - slow**self._steps))

    def state_dict(self) -> dict[str, Any]:
        """Moments `[folds, weights]`, the number of steps, and the settings."""
        (group,) = self.param_groups
        settings = {name: value for name, value in group.items() if name != "params"}
        return {"first": self._first, "second": self._second, "steps": self._steps, "settings": settings}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: it is of other parameters.
        """
        for own, saved in ((self._first, state_dict["first"]), (self._second, state_dict["second"])):
            _copy(saved, own)
        self._steps = state_dict["steps"]
        self.param_groups[0].update(state_dict["settings"])


def _copy(source: Tensor, target: Tensor) -> None:
    if source.shape != target.shape:
        raise ValueError(f"the optimizer's state is {tuple(source.shape)}, but the weights are {tuple(target.shape)}")
    target.copy_(source)
