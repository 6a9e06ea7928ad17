"""The kinds of batches that a loader may yield, and how a model is called with them.

A batch is one of
- a `Batch`, which names everything;
- a mapping with "labels": all other entries are the model's keyword arguments (the output of a tokenizer's collator);
- a pair (inputs, labels): the model's argument, or its keyword arguments if `inputs` is a mapping. In a longer tuple
  or list, the last item holds the labels, and the items before it are the model's arguments in order.

Labels below 0 mean "not labelled" and do not count. A model returns logits, or a mapping that holds them under
"logits" (as every Hugging Face model does).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Posts = npt.NDArray[np.int64]
"""Numbers of posts."""
FoldLogits = list[npt.NDArray[np.float32]]
"""One array `[posts, criteria]` per fold."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch: the model's inputs, the targets, and how much the batch counts.

    `inputs` are the keyword arguments of the model if a dict, its arguments if a tuple, else its one argument.
    `weight` is the number of labelled items behind the batch's mean loss, with the shape of the loss.
    """

    inputs: Any
    targets: Tensor
    weight: Tensor


def as_batch(item: Any, device: torch.device) -> Batch:  # noqa: ANN401
    """Convert an item of a loader to a `Batch` on the model's device.

    Raises:
        TypeError: the item is none of the three kinds.
    """
    match item:
        case Batch():
            return Batch(to_device(item.inputs, device), item.targets.to(device), item.weight.to(device))
        case Mapping() if "labels" in item:
            inputs: Any = {name: value for name, value in item.items() if name != "labels"}
            labels = item["labels"]
        case [inputs, labels]:
            inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
        case [*arguments, labels] if arguments:
            inputs = tuple(arguments)
        case _:
            raise TypeError(
                f"the loader yielded a {type(item).__name__}, but must yield a Batch, a dict with 'labels', or a pair "
                "(inputs, labels)"
            )
    targets = torch.as_tensor(labels).to(device, non_blocking=True)
    return Batch(to_device(inputs, device), targets, (targets >= 0).sum().to(torch.float32))


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Cut `batches` into lists of `size`; the last may be shorter."""
    iterator = iter(batches)
    while window := list(islice(iterator, size)):
        yield window


def to_device(value: Any, device: torch.device) -> Any:  # noqa: ANN401
    """Move the tensors in dicts, lists and tuples to a device; everything else is returned unchanged."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if type(value) is dict:
        return {name: to_device(item, device) for name, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(to_device(item, device) for item in value)
    return value


def logits_of(model: nn.Module, inputs: Any) -> Tensor:  # noqa: ANN401
    """Call a model with a batch's `inputs`.

    Raises:
        TypeError: the model returns something other than logits.
    """
    if type(inputs) is dict:
        output = model(**inputs)
    elif type(inputs) is tuple:
        output = model(*inputs)
    else:
        output = model(inputs)
    if isinstance(output, Mapping):
        output = output.get("logits")
    if not isinstance(output, Tensor):
        raise TypeError(
            f"{type(model).__name__} returned a {type(output).__name__}, but must return a tensor of logits, or a "
            "mapping with a tensor under 'logits'"
        )
    return output
