"""The replay of choices: what a rule may see, what it costs, and what it is worth."""

import numpy as np
import pytest

from benchmarks import choices
from sparse_evidence.core.selection import Scorer
from sparse_evidence.core.splits import Folds

FOLDS = Folds(np.arange(40) % 5, 5)
LABELS = (np.arange(40)[:, None] % 4 == 0).astype(np.int8)


@pytest.fixture
def trials():
    """Six trials, of which each is noisier than the one before; the test logits are the number of the trial."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(6, 40, 1)) * np.arange(6)[:, None, None]
    test = np.broadcast_to(np.arange(6.0)[:, None, None, None], (6, 5, 3, 1))
    return choices.Trials(
        (4.0 * LABELS + noise).astype(np.float32),
        test.astype(np.float32),
        np.linspace(0.9, 0.4, 6, dtype=np.float32),
        Scorer("average_precision", LABELS, FOLDS),
        lambda members: float(np.mean(members)),
        2,
    )


def test_a_rule_chooses_among_the_trials_that_were_run(trials):
    assert choices.RULES["best single trial"](trials, [3, 1, 5]) == [1]
    assert choices.RULES["average of the best 5"](trials, [3, 1]) == [1, 3]
    members = choices.RULES["10 picks of the best 30"](trials, [5, 4, 2])
    assert len(members) == 10
    assert set(members) <= {5, 4, 2}
    assert len(set(choices.RULES["20 picks of the best 30, at most 2 members"](trials, range(6)))) <= 2
    assert choices.USUAL in choices.RULES
    assert trials.worth([1, 3]) == 2.0


def test_pruned_trials_cost_the_first_folds_and_leave_time_for_others(trials):
    assert choices.survivors(trials, range(6), 100.0, budget=15) == [0, 1, 2]
    order = [0, 0, 0, 0, 5, 5, 1]  # 5 and 1 are not among the best half, and pruned
    assert choices.survivors(trials, order, 50.0, budget=4 * 5 + 3 * 2) == [0, 0, 0, 0]
    assert choices.survivors(trials, [0, 0, 0, 0, 5, 5, 0], 50.0, budget=4 * 5 + 2 * 2 + 5) == [0, 0, 0, 0, 0]
    assert choices.survivors(trials, order, 100.0, budget=4 * 5 + 5) == [0, 0, 0, 0, 5]


def test_differences_are_paired():
    lines = choices.markdown("rule", {"a": [0.5, 0.7], "b": [0.6, 0.8]}, "a")
    assert lines[2] == "| a | 0.6000 |  |"
    assert lines[3] == "| b | 0.7000 | +0.1000 ± 0.0000 |"
