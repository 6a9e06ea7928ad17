"""The optimizers, the warm-up schedule, and the update that ends a training step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..config import TrainingConfig
from ..models.base import Model


def make_optimizer(model: Model, training: TrainingConfig) -> Optimizer:
    """Make the optimizer of a model. It clips the gradients, those of every stacked fold by their own norm."""
    rate, decay, limit = training.learning_rate, training.weight_decay, training.clip_norm
    if model.stacked_folds:
        return FoldAdamW(model.parameters(), rate, weight_decay=decay, max_norm=limit)
    return ClippedAdamW(model.parameter_groups(rate), weight_decay=decay, max_norm=limit)


def linear_warmup(optimizer: Optimizer, steps: int) -> LambdaLR:
    """A schedule that raises the learning rate linearly over the first `steps` optimizer steps, then keeps it."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (steps + 1)))


class Update(Protocol):
    """How a loss becomes gradients, and gradients become a step of the optimizer."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss to the parameters' gradients."""

    def step(self) -> bool:
        """Change the weights by the accumulated gradients; False if this step was skipped."""


class PlainUpdate:
    """Backpropagation and `optimizer.step()`, nothing else."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss to the parameters' gradients."""
        loss.backward()

    def step(self) -> bool:
        """Change the weights by the accumulated gradients."""
        self.optimizer.step()
        return True


class ClippedAdamW(AdamW):
    """torch's AdamW, which clips the norm of all its gradients before every step.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate of the groups that do not set it.
        weight_decay: a step multiplies every weight by 1 − learning rate · weight decay.
        max_norm: largest gradient norm of all parameters together; 0 = no clipping.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.01,
        max_norm: float = 0.0,
    ) -> None:
        super().__init__(params, lr, weight_decay=weight_decay)
        self.max_norm = max_norm

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (torch's signature)
        """Clip the gradients, then step."""
        if self.max_norm > 0:
            parameters = [parameter for group in self.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.max_norm)
        super().step()


class FoldAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, ICLR 2019) over `[folds, ...]` parameters; every fold is clipped by its own norm.

    The parameters become views of one matrix `[folds, weights]`, so that a step is a handful of operations on the whole
    stack, however many parameters there are. The results are those of `torch.optim.AdamW(fused=True)`, whose kernel
    reads and writes everything once. Every worker starts a second earlier than with torch's own optimizers, which
    import torch's compiler when they are created.

    Args:
        parameters: `[folds, ...]` each, on their device.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the square root of the second moment.
        weight_decay: a step multiplies every weight by 1 − learning rate · weight decay.
        max_norm: largest gradient norm of a fold; 0 = no clipping.
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
        self._weights = self._rows(parameter.detach() for parameter in self._parameters)
        columns = self._weights.split([parameter[0].numel() for parameter in self._parameters], 1)
        for parameter, view in zip(self._parameters, columns, strict=True):
            parameter.data = view.view(parameter.shape)
        self._first, self._second = torch.zeros_like(self._weights), torch.zeros_like(self._weights)
        self._steps = 0
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_norm": max_norm}
        super().__init__(self._parameters, settings)

    @staticmethod
    def _rows(tensors: Iterable[Tensor]) -> Tensor:
        """`[folds, ...]` tensors side by side as `[folds, weights]`."""
        return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the only group; torch's own method would import its compiler."""
        self.param_groups.append({**self.defaults, **param_group})

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: ARG002 (torch's signature)
        """Drop the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (torch's signature)
        """One step of every fold. A parameter without a gradient counts as one with a gradient of zero."""
        (group,) = self.param_groups
        gradient = self._rows(torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters)
        if group["max_norm"] > 0:
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient.mul_((group["max_norm"] / norm.clamp(min=1e-12)).clamp(max=1.0))
        self._steps += 1
        # fold by fold: where the kernel's vectors end must not depend on the other folds
        matrices = (self._weights, gradient, self._first, self._second)
        weights, gradients, first, second = (list(matrix.unbind()) for matrix in matrices)
        steps = [torch.full((), float(self._steps), device=gradient.device)] * len(weights)
        rate, (beta1, beta2) = float(group["lr"]), group["betas"]
        torch._fused_adamw_(  # what torch's own optimizer calls
            weights, gradients, first, second, [], steps, lr=rate, beta1=beta1, beta2=beta2,
            weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Moments `[folds, weights]`, the number of steps, and the settings."""
        (group,) = self.param_groups
        settings = {name: value for name, value in group.items() if name != "params"}
        return {"first": self._first, "second": self._second, "steps": self._steps, "settings": settings}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            ValueError: the state belongs to parameters of another shape.
        """
        _copy(state_dict["first"], self._first)
        _copy(state_dict["second"], self._second)
        self._steps = state_dict["steps"]
        self.param_groups[0].update(state_dict["settings"])


def _copy(source: Tensor, target: Tensor) -> None:
    if source.shape != target.shape:
        raise ValueError(f"the optimizer's state is {tuple(source.shape)}, but the weights are {tuple(target.shape)}")
    target.copy_(source)
