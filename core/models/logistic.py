"""L2-regularised logistic regression, solved exactly: Newton's method in float64, all criteria at once.

For every criterion the solution minimises ‖w‖² / 2 + C Σ log(1 + exp(−y (w·x + b))) over its labelled rows, y = ±1.
C is scikit-learn's; the intercept b has no penalty. The problem is convex and every step is shortened until it
descends, so the solution depends neither on a seed nor on a number of epochs, and exists for every C, for separable
rows too.

The rows are first rotated to their principal directions, as many as there are rows or features, whichever are fewer. A
penalty on the norm does not notice. There the Hessian is nearly diagonal, so a few conjugate gradients give a step
(inexact Newton: Nocedal and Wright, "Numerical Optimization", Springer 2006, section 7.1), and all C and all criteria
share the rotation.

A criterion whose labelled rows are all of one class has no finite solution. It gets w = 0, and as its intercept the
log-odds of that class smoothed by half a row, log((positives + ½) / (negatives + ½)): 0 without any label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

TOLERANCE = 1e-8
"""A criterion is solved when a step changes no logit by more. Convergence is faster than linear, so what is left is
much less."""
MAX_STEPS = 300
MAX_HALVINGS = 40
MAX_GRADIENTS = 300
"""Conjugate gradients of a step; those of a shorter series descend, too."""
SUFFICIENT = 1e-4
"""Share of the descent that the slope promises which a step must reach (Armijo)."""
ROUNDING = 1e-13
"""Relative error of an objective: what is no more than this above another counts as equal."""
RANK = 1e-12
"""Directions whose variance is this share of the largest are rounding, and left out."""


@dataclass(frozen=True, eq=False)
class Solution:
    """The weights of one training part."""

    weight: npt.NDArray[np.float64]
    """[features, criteria]"""
    bias: npt.NDArray[np.float64]
    """[criteria]"""

    def logits(self, rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Logits `[rows, criteria]` of rows `[rows, features]`."""
        return np.asarray(rows @ self.weight + self.bias, dtype=np.float64)


def solve(rows: npt.NDArray[np.floating], labels: npt.NDArray[np.int8], strength: float) -> Solution:
    """Solve the problem for one C.

    Args:
        rows: float `[rows, features]`, finite.
        labels: 1, 0 or -1 (unlabelled, does not count), `[rows, criteria]`.
        strength: C, above 0.
    """
    return solve_path(rows, labels, [strength])[0]


def solve_path(
    rows: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int8],
    strengths: Sequence[float],
    *,
    tolerance: float = TOLERANCE,
) -> list[Solution]:
    """Solve the problem for several C, each from the solution of the one before: cheapest in ascending order.

    Args:
        rows: float `[rows, features]`, finite.
        labels: 1, 0 or -1 (unlabelled, does not count), `[rows, criteria]`.
        strengths: every C, above 0.
        tolerance: a solution is accepted when a step changes no logit by more.
    """
    x = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float64))
    y = torch.from_numpy(np.ascontiguousarray(labels.T))
    positives, negatives = (y == 1).sum(1), (y == 0).sum(1)
    bias = torch.log((positives + 0.5) / (negatives + 0.5)).double()
    weight = torch.zeros(len(y), x.shape[1], dtype=torch.float64)
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        return [Solution(weight.T.numpy(), bias.numpy()) for _ in strengths]
    result = []
    with torch.no_grad():
        rotation = _Rotation(x)
        fit = _Fit(rotation, y[both], bias[both])
        for strength in strengths:
            fit.run(strength, tolerance)
            weight[both], bias[both] = rotation.back(fit.theta)
            result.append(Solution(weight.T.numpy().copy(), bias.numpy().copy()))
    return result


class _Rotation:
    """Centred rows in their principal directions, with a column of ones for the intercept.

    Args:
        x: float64 `[rows, features]`.
    """

    def __init__(self, x: Tensor) -> None:
        self._mean = x.mean(0)
        centred = x - self._mean
        wide = len(x) <= x.shape[1]
        variance, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
        kept = variance > RANK * variance[-1].clamp(min=1e-100)
        variance, vectors = variance[kept], vectors[:, kept]
        directions = centred.T @ (vectors / variance.sqrt()) if wide else vectors
        projected = vectors * variance.sqrt() if wide else centred @ vectors
        self._directions = directions
        self.rows = torch.cat([projected, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
        """[rows, directions + 1]"""
        self.squares = torch.cat([variance, torch.tensor([float(len(x))], dtype=x.dtype)])
        """[directions + 1]: sum of the squares of each column; the columns are orthogonal."""

    def back(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients `[criteria, directions + 1]` as weights `[criteria, features]` and intercepts `[criteria]`."""
        weight = theta[:, :-1] @ self._directions.T
        return weight, theta[:, -1] - weight @ self._mean


class _Fit:
    """The criteria of one training part, and where Newton's method stands.

    Args:
        rotation: the rows.
        labels: 1, 0 or -1, `[criteria, rows]`.
        bias: where the intercepts start, `[criteria]`.
    """

    def __init__(self, rotation: _Rotation, labels: Tensor, bias: Tensor) -> None:
        self._rows, self._squares = rotation.rows, rotation.squares
        self._known, self._signs = (labels >= 0).double(), 2 * (labels == 1).double() - 1
        self._penalised = torch.ones_like(rotation.squares)
        self._penalised[-1] = 0
        self.theta = torch.zeros(len(labels), len(rotation.squares), dtype=torch.float64)
        """[criteria, directions + 1]; the last is the intercept."""
        self.theta[:, -1] = bias

    def run(self, strength: float, tolerance: float) -> None:
        """Take steps until every criterion is solved."""
        active = torch.arange(len(self.theta))
        for _ in range(MAX_STEPS):
            if not len(active):
                return
            active = active[self._step(active, strength) > tolerance]

    def _step(self, active: Tensor, strength: float) -> Tensor:
        """One step of the criteria `active`; returns the largest change of a logit for each."""
        theta, known, sign = self.theta[active], self._known[active], self._signs[active]
        logits = theta @ self._rows.T
        probabilities = torch.sigmoid(logits)
        pull = strength * known * sign * torch.sigmoid(-sign * logits)  # without the cancellation of y − p
        penalised = self._penalised * theta
        descent = pull @ self._rows - penalised
        step = self._direction(descent, strength * known * probabilities * (1 - probabilities))
        logit_step = step @ self._rows.T
        linear, square = (penalised * step).sum(1), (self._penalised * step.square()).sum(1)
        slope = -(descent * step).sum(1)
        loss = _loss(logits, sign, known)
        scale = (penalised * theta).sum(1) / 2 + strength * loss
        length = torch.ones_like(slope)
        for _ in range(MAX_HALVINGS):
            change = length * linear + length.square() * square / 2
            change += strength * (_loss(logits + length[:, None] * logit_step, sign, known) - loss)
            short = change > SUFFICIENT * length * slope + ROUNDING * scale
            if not short.any():
                break
            length[short] /= 2
        self.theta[active] = theta + length[:, None] * step
        return length * (logit_step.abs() * known).amax(1)

    def _direction(self, descent: Tensor, curvature: Tensor) -> Tensor:
        """The Newton step H⁻¹ · descent by preconditioned conjugate gradients, `[criteria, directions + 1]`.

        Args:
            descent: minus the gradient, `[criteria, directions + 1]`.
            curvature: second derivative of the loss by each logit, times C, `[criteria, rows]`.
        """
        # With the same curvature in every row, this would be the Hessian itself.
        diagonal = self._penalised + curvature.mean(1, keepdim=True).clamp(min=1e-100) * self._squares
        step, rest = torch.zeros_like(descent), descent.clone()
        search = rest / diagonal
        size = (rest * search).sum(1)
        goal = size * size.sqrt().clamp(max=0.01)  # inexact while far from the solution
        for _ in range(MAX_GRADIENTS):
            curved = self._penalised * search + (curvature * (search @ self._rows.T)) @ self._rows
            length = size / (search * curved).sum(1).clamp(min=1e-300)
            step += length[:, None] * search
            rest -= length[:, None] * curved
            preconditioned = rest / diagonal
            before, size = size, (rest * preconditioned).sum(1)
            if (size <= goal).all():
                break
            search = preconditioned + (size / before.clamp(min=1e-300))[:, None] * search
        return step


def _loss(logits: Tensor, signs: Tensor, known: Tensor) -> Tensor:
    """Sum of the log-losses of the labelled rows, `[criteria]`."""
    return (functional.softplus(-signs * logits) * known).sum(1)
