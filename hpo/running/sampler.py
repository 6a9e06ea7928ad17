"""Samplers whose proposals depend only on the study's seed and the trial, not on the worker that runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from sparse_evidence.core.seeding import stable_seed

from ..database.optuna_storage import reseeded


def make_sampler(name: Literal["tpe", "random"], seed: int) -> SeededPerTrial:
    """Return the named sampler, reseeded for each trial from the study's seed and the trial's number."""
    if name == "random":
        sampler = RandomSampler()
        return SeededPerTrial(lambda trial_seed: reseeded(sampler, trial_seed), seed)
    return SeededPerTrial(lambda trial_seed: TPESampler(multivariate=True, seed=trial_seed), seed)


class SeededPerTrial(BaseSampler):
    """Wraps a sampler and makes it anew before every trial, seeded with a hash of (study seed, trial number).

    Workers that share a seed therefore propose different points, a restarted worker repeats none, and a single worker
    run twice proposes the same points. Independently sampled parameters are seeded with their name as well: a trial's
    parameters do not depend on how many of them were drawn before a worker was killed.

    Args:
        make: the wrapped sampler, seeded; it may be the same object every time.
        seed: the study's seed.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._inner = make(seed)
        # Shared across trials: it visits every finished trial once, while a new one would visit all of them each time.
        self._search_space = IntersectionSearchSpace(include_pruned=True)

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._inner})"

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seed the wrapped sampler for the trial."""
        self._inner = self._make(short_seed(self._seed, trial.number))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, _trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that all previous trials have in common; none if the wrapped sampler samples independently."""
        if isinstance(self._inner, RandomSampler):
            return {}
        common = self._search_space.calculate(study, use_cache=True)
        return {name: distribution for name, distribution in common.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Delegate to the wrapped sampler."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 (the type of a parameter depends on its distribution)
        """Delegate to a sampler seeded with (study seed, trial number, parameter name)."""
        inner = self._make(short_seed(self._seed, trial.number, param_name))
        return inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Delegate to the wrapped sampler."""
        self._inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Do nothing: seeds come from the trial."""


def short_seed(*parts: int | str) -> int:
    """A stable 32-bit seed: Optuna's samplers accept no longer ones."""
    return stable_seed(*parts) >> 31
