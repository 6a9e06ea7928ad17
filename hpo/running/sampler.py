"""Samplers whose proposals depend on the study's seed and the trial, never on the worker that runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from sparse_evidence.core.seeding import stable_seed


def seeded(name: Literal["tpe", "random"], seed: int) -> SeededPerTrial:
    """Return the named sampler, seeded anew for each trial."""
    if name == "random":
        return SeededPerTrial(lambda each: RandomSampler(seed=each), seed)
    return SeededPerTrial(lambda each: TPESampler(multivariate=True, seed=each), seed)


class SeededPerTrial(BaseSampler):
    """Wraps a sampler: built anew from a hash of (study seed, trial number) before every trial.

    So workers that share a seed propose different points, a restart repeats none, and one worker run twice proposes
    the same. Parameters sampled on their own are seeded with their name as well: what a trial gets does not depend
    on how many parameters had been drawn when its first worker was killed.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._inner = make(seed)
        # Kept over trials: it looks at each finished trial once, a new sampler would look at all of them every time.
        self._search_space = IntersectionSearchSpace(include_pruned=True)

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._inner})"

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Forget everything and start from the trial's own seed."""
        self._inner = self._make(short_seed(self._seed, trial.number))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, _trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that every trial so far has had, if the wrapped sampler proposes them together."""
        if isinstance(self._inner, RandomSampler):
            return {}
        found = self._search_space.calculate(study, use_cache=True)
        return {name: distribution for name, distribution in found.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the wrapped sampler does."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 (a parameter's value is whatever its distribution holds)
        """As the wrapped sampler does, with a generator of the parameter's own."""
        inner = self._make(short_seed(self._seed, trial.number, param_name))
        return inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the wrapped sampler does."""
        self._inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Nothing: seeds come from the trial."""


def short_seed(*parts: int | str) -> int:
    """A stable seed that fits into the 32 bits which Optuna's samplers take."""
    return stable_seed(*parts) >> 31
