"""The same-folds rule as a truth table, and who counts as a peer."""

import math

import pytest

from hpo.pruning import is_hopeless

PEERS = [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize(
    ("value", "peers", "percentile", "startup", "higher", "expected"),
    [
        # the median and what is better goes on
        (0.29, PEERS, 50, 5, True, True),
        (0.30, PEERS, 50, 5, True, False),
        (0.31, PEERS, 50, 5, True, False),
        # lower is better: the mirror image
        (0.31, PEERS, 50, 5, False, True),
        (0.30, PEERS, 50, 5, False, False),
        (0.29, PEERS, 50, 5, False, False),
        # a quarter goes on, or three quarters
        (0.39, PEERS, 25, 5, True, True),
        (0.40, PEERS, 25, 5, True, False),
        (0.19, PEERS, 75, 5, True, True),
        (0.20, PEERS, 75, 5, True, False),
        (0.21, PEERS, 25, 5, False, True),
        (0.20, PEERS, 25, 5, False, False),
        # too few peers to compare with
        (0.00, PEERS, 50, 6, True, False),
        (0.00, PEERS[:4], 50, 5, True, False),
        (0.00, [], 50, 0, True, False),
        (0.00, [0.5], 50, 0, True, True),
        # equals are never hopeless
        (0.30, [0.3] * 9, 50, 5, True, False),
        (0.30, [0.3] * 9, 1, 5, True, False),
        # what is not defined is no peer
        (0.00, [*PEERS[:4], math.nan], 50, 5, True, False),
        (0.29, [*PEERS, math.nan], 50, 5, True, True),
    ],
)
def test_truth_table(value, peers, percentile, startup, higher, expected):
    told = is_hopeless(value, peers, percentile=percentile, startup_trials=startup, higher_is_better=higher)
    assert told is expected


def test_an_undefined_value_is_not_pruned_by_accident():
    assert not is_hopeless(math.nan, PEERS, percentile=50, startup_trials=5, higher_is_better=True)
