"""Batches: every kind of item that a loader may yield, and how a model is called with it."""

from collections import OrderedDict, UserDict
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparse_evidence.core.training.batches import Batch, as_batch, logits_of, to_device, windows

CPU, META = torch.device("cpu"), torch.device("meta")
X, MASK, LABELS = torch.arange(6.0).view(3, 2), torch.ones(3, 2), torch.tensor([1.0, 0.0, -1.0])


class Pair(NamedTuple):
    x: torch.Tensor
    labels: torch.Tensor


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return type(left) is type(right) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return left == right


# ---- items ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "inputs"),
    [
        ((X, LABELS), X),
        ([X, LABELS], X),
        ((X, MASK, LABELS), (X, MASK)),
        ([X, MASK, LABELS], (X, MASK)),
        (({"x": X, "mask": MASK}, LABELS), {"x": X, "mask": MASK}),
        ((OrderedDict(x=X), LABELS), {"x": X}),
        (((X, MASK), LABELS), (X, MASK)),
        ({"x": X, "labels": LABELS, "mask": MASK}, {"x": X, "mask": MASK}),
        (UserDict(x=X, labels=LABELS), {"x": X}),
        (Pair(X, LABELS), X),
    ],
    ids=[
        "pair", "list", "triple", "list of three", "keywords", "any mapping", "pair of arguments", "dict",
        "output of a collator", "named tuple",
    ],
)  # fmt: skip
def test_an_item_becomes_inputs_targets_and_a_weight(item, inputs):
    batch = as_batch(item, CPU)
    assert same(batch.inputs, inputs)
    assert torch.equal(batch.targets, LABELS)
    assert (batch.weight.dtype, batch.weight.item()) == (torch.float32, 2.0)  # the third is not labelled


def test_a_batch_keeps_its_own_weight():
    batch = as_batch(Batch({"x": X}, LABELS, torch.tensor([5.0, 0.5])), CPU)
    assert batch.weight.tolist() == [5.0, 0.5]
    assert same(batch.inputs, {"x": X})


@pytest.mark.parametrize("labels", [[1, 0, -1], torch.tensor([1, 0, -1]), torch.tensor([[1], [0], [-1]])])
def test_labels_may_be_a_list_or_a_tensor_of_any_shape(labels):
    batch = as_batch((X, labels), CPU)
    assert batch.weight.item() == 2
    assert batch.targets.dtype == torch.int64  # as given: a loss decides what it needs


@pytest.mark.parametrize("item", [X, "text", 7, None, {"x": X}, (X,), [], {1, 2}], ids=lambda item: type(item).__name__)
def test_other_items_are_refused_by_their_type(item):
    message = rf"the loader yielded a {type(item).__name__}, but must yield a Batch, a dict with 'labels', or a pair"
    with pytest.raises(TypeError, match=message):
        as_batch(item, CPU)


def test_a_loader_of_tensors_yields_such_items():
    (batch,) = [as_batch(item, CPU) for item in DataLoader(TensorDataset(X, MASK, LABELS), batch_size=3)]
    assert same(batch.inputs, (X, MASK))


# ---- devices ----------------------------------------------------------------------------------------------------


def test_all_tensors_of_a_batch_move_to_the_device():
    items = [
        Batch({"x": X, "more": [MASK, (X,)]}, LABELS, torch.tensor(2.0)),
        {"x": X, "more": [MASK, (X,)], "labels": LABELS},
    ]
    for item in items:
        moved = as_batch(item, META)
        tensors = [moved.inputs["x"], moved.inputs["more"][0], moved.inputs["more"][1][0], moved.targets, moved.weight]
        assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_what_is_no_tensor_stays_as_it_is():
    """Subclasses too: a named tuple cannot be built from one list of items."""
    pair = Pair(X, LABELS)
    value = {"name": "a", "numbers": [1, None], "pair": pair, "nested": (2.5, {"flag": True})}
    assert same(to_device(value, CPU), value)
    assert to_device(value, META)["pair"] is pair


# ---- models -----------------------------------------------------------------------------------------------------


class Sum(nn.Module):
    """The sum of all arguments, returned as `wrap` makes it."""

    def __init__(self, wrap=lambda logits: logits):
        super().__init__()
        self.wrap = wrap

    def forward(self, x, mask=0.0, *more):
        return self.wrap(x + mask + sum(more))


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [(X, X), ((X, MASK), X + 1), ((X, MASK, X), 2 * X + 1), ({"mask": MASK, "x": X}, X + 1), ({"x": X}, X)],
)
def test_inputs_are_the_models_arguments(inputs, expected):
    assert torch.equal(logits_of(Sum(), inputs), expected)


def test_a_list_is_a_single_argument():
    class Longest(nn.Module):
        def forward(self, texts):
            return torch.tensor([float(len(text)) for text in texts])

    assert logits_of(Longest(), ["a", "abc"]).tolist() == [1.0, 3.0]


@pytest.mark.parametrize("mapping", [dict, OrderedDict, UserDict])
def test_logits_may_be_in_a_mapping(mapping):
    assert torch.equal(logits_of(Sum(lambda logits: mapping(loss=None, logits=logits)), X), X)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda z: {"scores": z}, "NoneType"),
        (lambda z: {"logits": [z]}, "list"),
        (lambda z: (z,), "tuple"),
        (lambda z: 0.5, "float"),
    ],
)
def test_a_model_that_returns_something_else_is_named(wrap, name):
    with pytest.raises(TypeError, match=f"Sum returned a {name}, but must return a tensor of logits"):
        logits_of(Sum(wrap), X)


# ---- windows ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 8))
def test_windows_are_full_but_the_last_and_keep_the_order(count, size):
    cut = list(windows(iter(range(count)), size))
    assert [item for window in cut for item in window] == list(range(count))
    assert all(len(window) == size for window in cut[:-1])
    assert all(window for window in cut)


def test_windows_take_only_the_batches_that_they_need():
    """A loader's workers prepare batches while the model trains, not all of them before."""
    taken = []
    stream = windows((taken.append(number) or number for number in range(9)), 3)
    assert next(stream) == [0, 1, 2]
    assert taken == [0, 1, 2]
