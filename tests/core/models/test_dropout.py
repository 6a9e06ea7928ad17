"""Dropout: the share of zeros, the scale, and draws that follow from the key of each fold alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_evidence.core.models.dropout import FoldDropout
from sparse_evidence.core.seeding import torch_generator

KEYS = [(0, "dropout", fold, 3) for fold in range(4)]


def seeded(keys, rate=0.4):
    dropout = FoldDropout(rate)
    dropout.reseed(keys)
    return dropout


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(KEYS), min_size=1, max_size=4), st.floats(0.05, 0.95))
def test_a_fold_draws_the_same_alone_and_in_any_stack(keys, rate):
    x = torch.arange(1.0, 13.0).view(1, 3, 4).repeat(len(keys), 1, 1)
    together = seeded(keys, rate)
    passes = [together(x) for _ in range(2)]
    for position, key in enumerate(keys):
        alone = seeded([key], rate)
        for stacked in passes:
            torch.testing.assert_close(stacked[position], alone(x[:1])[0], rtol=0, atol=0)


def test_entries_are_dropped_where_a_quarter_of_the_folds_random_numbers_is_below_the_rate():
    numbers = torch.empty(2, 5, 2, dtype=torch.int64)
    for row, key in zip(numbers, KEYS[:2], strict=True):
        row.random_(-(2**63), None, generator=torch_generator(*key))
    draws = (numbers.view(torch.int16)[..., :7].double() + 2**15) / 2**16  # in [0, 1)
    expected = torch.where(draws >= 0.25, 1 / 0.75, 0.0).float()
    torch.testing.assert_close(seeded(KEYS[:2], 0.25)(torch.ones(2, 5, 7)), expected)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.37, 0.5, 0.9])
def test_the_share_of_dropped_entries_is_the_rate(rate):
    dropped = seeded(KEYS[:2], rate)(torch.ones(2, 1000, 250)) == 0
    assert dropped.float().mean((1, 2)).tolist() == pytest.approx([rate] * 2, abs=0.005)
    of_lanes = dropped[..., :248].reshape(-1, 4).float().mean(0)  # no quarter of a number is special
    assert of_lanes.tolist() == pytest.approx([rate] * 4, abs=0.007)


def test_passes_of_an_epoch_differ_and_reseeding_repeats_them():
    x, dropout = torch.ones(1, 20, 20), seeded(KEYS[:1])
    first, second = dropout(x), dropout(x)
    assert not torch.equal(first, second)
    dropout.reseed(KEYS[:1])
    assert torch.equal(dropout(x), first)
    assert torch.equal(dropout(x), second)


def test_another_epoch_draws_other_numbers():
    x = torch.ones(1, 20, 20)
    assert not torch.equal(seeded([(0, "dropout", 0, 1)])(x), seeded([(0, "dropout", 0, 2)])(x))


@pytest.mark.parametrize("keys", [None, KEYS[:2]], ids=["never reseeded", "reseeded"])
def test_a_rate_of_zero_and_evaluation_change_nothing(keys):
    x = torch.ones(2, 3)
    for dropout in (FoldDropout(0.0), FoldDropout(0.5).eval()):
        if keys:
            dropout.reseed(keys)
        assert dropout(x) is x


def test_without_a_seed_it_draws_from_the_global_generator():
    x = torch.ones(1, 50, 50)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        ours = FoldDropout(0.3)(x)
        torch.manual_seed(7)
        assert torch.equal(ours, torch.nn.functional.dropout(x, 0.3))
        assert 0.2 < float((ours == 0).float().mean()) < 0.4


def test_a_seeded_pass_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    seeded(KEYS[:2])(torch.ones(2, 9))
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_flow_through_the_entries_that_are_left():
    x = torch.ones(1, 40, requires_grad=True)
    y = seeded(KEYS[:1], 0.5)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())  # 0 or 1 / (1 - rate), as x is 1
