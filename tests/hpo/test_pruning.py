"""The same-folds rule as a truth table."""

import math

import pytest

from hpo.definition import PrunerConfig
from hpo.pruning import needed

PEERS = [0.1, 0.2, 0.3, 0.4, 0.5]
NOTHING, NOTHING_LOW = -math.inf, math.inf


@pytest.mark.parametrize(
    ("peers", "percentile", "startup", "higher", "expected"),
    [
        # the median, a quarter, three quarters go on
        (PEERS, 50, 5, True, 0.3),
        (PEERS, 25, 5, True, 0.4),
        (PEERS, 75, 5, True, 0.2),
        # lower is better: the mirror image
        (PEERS, 50, 5, False, 0.3),
        (PEERS, 25, 5, False, 0.2),
        # too few peers to compare with
        (PEERS, 50, 6, True, NOTHING),
        (PEERS[:4], 50, 5, False, NOTHING_LOW),
        ([], 50, 0, True, NOTHING),
        ([0.5], 50, 0, True, 0.5),
        ([0.5], 50, 1, True, 0.5),
        # equals go on together
        ([0.3] * 9, 50, 5, True, 0.3),
        ([0.3] * 9, 1, 5, True, 0.3),
        # what is not defined is no peer
        ([*PEERS[:4], math.nan], 50, 5, True, NOTHING),
        ([*PEERS, math.nan], 50, 5, True, 0.3),
    ],
)
def test_what_is_needed(peers, percentile, startup, higher, expected):
    pruner = PrunerConfig(percentile=percentile, startup_trials=startup)
    assert needed(peers, pruner, higher_is_better=higher) == pytest.approx(expected)
