"""The stop rule, the best epoch and the projection: properties that hold for every curve."""

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparse_evidence.core.training.stopping import best_index, is_stale, projected_best

# multiples of 1/8, so that sums and differences are exact and values often tie
VALUES = st.integers(-16, 16).map(lambda number: number / 8)
CURVES = st.lists(VALUES, min_size=1, max_size=20)
GAPS = st.lists(VALUES | st.just(math.nan), min_size=1, max_size=20)
PATIENCE = st.integers(1, 8)


def negated(means):
    return [-value for value in means]


def naive_epochs_until_stop(means, patience):
    """The number of epochs after which a loop stops, or None: it counts the epochs without an improvement."""
    best, waited = -math.inf, 0
    for epoch, value in enumerate(means, start=1):
        if value > best or epoch == 1:  # NaN compares as False
            best, waited = max(best, value) if value == value else best, 0
        else:
            waited += 1
        if waited >= patience:
            return epoch
    return None


@settings(deadline=None)
@given(GAPS, PATIENCE)
def test_a_curve_stops_where_a_counting_loop_stops(means, patience):
    stops = [epoch for epoch in range(1, len(means) + 1) if is_stale(means[:epoch], patience)]
    assert (stops[0] if stops else None) == naive_epochs_until_stop(means, patience)


@settings(deadline=None)
@given(GAPS, PATIENCE)
def test_lower_is_better_mirrors_higher_is_better(means, patience):
    assert is_stale(means, patience) is is_stale(negated(means), patience, higher_is_better=False)
    assert best_index(means) == best_index(negated(means), higher_is_better=False)
    up = projected_best(means, patience, longest=30)
    down = projected_best(negated(means), patience, longest=30, higher_is_better=False)
    assert down == -up or (math.isnan(up) and math.isnan(down))


@settings(deadline=None)
@given(GAPS)
def test_the_best_index_is_the_first_of_the_largest_values(means):
    defined = [value for value in means if value == value]
    assert best_index(means) == (means.index(max(defined)) if defined else 0)


@settings(deadline=None)
@given(CURVES, PATIENCE, st.integers(1, 8))
def test_more_patience_never_stops_earlier(means, patience, more):
    assert is_stale(means, patience) or not is_stale(means, patience + more)


@settings(deadline=None)
@given(CURVES, PATIENCE, VALUES)
def test_a_new_best_value_is_never_stale(means, patience, step):
    assert not is_stale([*means, max(means) + abs(step) + 1], patience)


@settings(deadline=None)
@given(CURVES, PATIENCE, VALUES, st.integers(1, 4))
def test_only_the_shape_of_a_curve_decides(means, patience, shift, scale):
    moved = [scale * value + shift for value in means]
    assert is_stale(moved, patience) is is_stale(means, patience)
    projected = projected_best(means, patience, longest=40)
    assert projected_best(moved, patience, longest=40) == pytest.approx(scale * projected + shift)


@settings(deadline=None)
@given(CURVES, PATIENCE, st.integers(0, 10))
def test_a_projection_is_at_least_the_best_value_so_far(means, patience, more):
    assert projected_best(means, patience, longest=len(means) + more) >= max(means)


@settings(deadline=None)
@given(CURVES, PATIENCE)
def test_at_the_last_epoch_the_projection_is_the_best_value(means, patience):
    assume(len(means) > math.ceil(patience / 2))
    assert projected_best(means, patience, longest=len(means)) == max(means)


@settings(deadline=None)
@given(CURVES, st.lists(st.integers(0, 16), min_size=1, max_size=12), PATIENCE)
def test_a_stale_curve_is_projected_to_its_best_value(rise, drops, patience):
    """So the rule that stops stages and the rule that prunes trials never contradict each other."""
    means = [*rise, *(max(rise) - drop / 8 for drop in drops)]
    stale = is_stale(means, patience)
    assert stale or len(drops) < patience
    if stale:
        assert projected_best(means, patience, longest=99) == max(means)


@settings(deadline=None)
@given(st.integers(3, 12), PATIENCE, st.integers(1, 8))
def test_a_straight_line_is_continued(length, patience, slope):
    assume(length > math.ceil(patience / 2))
    line = [slope * epoch / 8 for epoch in range(length)]
    assert projected_best(line, patience, longest=99) == pytest.approx(line[-1] + patience * slope / 8)
    assert projected_best(line, patience, longest=length + 1) == pytest.approx(line[-1] + slope / 8)


@settings(deadline=None)
@given(CURVES, PATIENCE)
def test_a_curve_within_its_warm_up_has_no_slope_yet(means, patience):
    for warmup in range(len(means) + 1):
        projected = projected_best(means, patience, longest=40, warmup=warmup)
        if len(means) <= warmup + math.ceil(patience / 2):
            assert projected == math.inf
        else:
            assert projected == projected_best(means, patience, longest=40)
