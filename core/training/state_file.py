"""The file format of a training state: tensors as safetensors, everything else as JSON in the header; no pickle.

A state is nested dicts, lists and tuples of tensors, NumPy arrays, numbers, strings, booleans and None, and round-trips
exactly. The JSON is part of the file's metadata, so a checkpoint is a single file that a rename creates atomically, and
`head -c` shows it. A SHA-256 over the JSON and every tensor is checked whenever a state is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..cache import write_atomically
from ..errors import CheckpointError, reason_of

_FORMAT = 1
_KEY = "checkpoint"  # in the file's metadata
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its JSON header
# What reading bytes that nobody vouches for may raise; a RecursionError is a RuntimeError, a KeyError a LookupError.
_MALFORMED = (SafetensorError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)


def save_state(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write `state` to `path` atomically, readable by its owner only.

    Raises:
        TypeError: the state holds something that cannot be stored; the message names its path.
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, pack_state(state))


def load_state(path: Path | str) -> dict[str, Any]:
    """Load a file of `save_state`, with all tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged or not a checkpoint.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read ({error.strerror})") from error
    return unpack_state(content, f"the checkpoint {path}")


def pack_state(state: Mapping[str, Any]) -> bytes:
    """The content of a checkpoint file.

    Raises:
        TypeError: the state holds something that cannot be stored; the message names its path.
    """
    tensors: dict[str, Tensor] = {}
    plain = _encode(dict(state), "", tensors)
    envelope = {"format": _FORMAT, "sha256": _digest(plain, tensors), "state": plain}
    # under a single key: safetensors writes several keys in random order
    return safetensors.torch.save(tensors, {_KEY: json.dumps(envelope, allow_nan=False)})


def unpack_state(content: bytes, name: str = "the checkpoint") -> dict[str, Any]:
    """The state in the content of a checkpoint file.

    Args:
        content: from `pack_state`.
        name: the checkpoint's name in error messages.

    Raises:
        CheckpointError: the content is damaged or not a checkpoint.
    """
    try:
        return _unpack(content, name)
    except CheckpointError:
        raise
    except _MALFORMED as error:
        reason = reason_of(error, longest=200)
        raise CheckpointError(f"{name} is damaged or not a checkpoint of this project ({reason})") from error


def _unpack(content: bytes, name: str) -> dict[str, Any]:
    """The same, but whatever else stands in a forged file raises an error of `_MALFORMED`."""
    tensors = safetensors.torch.load(content)
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    metadata = json.loads(content[_LENGTH_BYTES:end]).get("__metadata__") or {}
    envelope = json.loads(metadata.get(_KEY, "{}"))
    if not isinstance(envelope, dict) or envelope.get("format") != _FORMAT:
        raise CheckpointError(f"{name} is not a checkpoint of this project, or was written by another version of it")
    if envelope.get("sha256") != _digest(envelope.get("state"), tensors):
        raise CheckpointError(f"{name} is damaged (its SHA-256 differs); use an earlier one")
    state = _decode(envelope["state"], tensors)
    if not isinstance(state, dict):
        raise TypeError(f"its state is a {type(state).__name__}")
    return state


def _digest(plain: Any, tensors: Mapping[str, Tensor]) -> str:  # noqa: ANN401
    digest = hashlib.sha256(f"{_FORMAT}\n{json.dumps(plain, allow_nan=False)}\n".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---- a state as JSON, and its tensors separately -----------------------------------------------------------------
# A value that JSON cannot express is written as a dict with a single key that begins with "$".


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        return {"$tensor": _put(value, path, tensors)}
    if isinstance(value, np.ndarray):
        return {"$array": _put(_from_numpy(value, path), path, tensors)}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        return _encode_dict(value, path, tensors)
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__} (at {path or '/'})")


def _encode_dict(value: Mapping[Any, Any], path: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    if not all(key is None or isinstance(key, (bool, int, str)) for key in value):
        raise TypeError(
            f"the keys of a checkpoint must be strings, integers, booleans or None, which they are not at {path or '/'}"
        )
    items = [(key, _encode(item, f"{path}/{key}", tensors)) for key, item in value.items()]
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return dict(items)
    return {"$dict": [list(item) for item in items]}


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$tensor": name}:
            return tensors[name]
        case {"$array": name}:
            return tensors[name].numpy()
        case {"$float": text}:
            return float(text)
        case {"$tuple": items}:
            return tuple(_decode(item, tensors) for item in items)
        case {"$dict": items}:
            return {key: _decode(item, tensors) for key, item in items}
    return {key: _decode(item, tensors) for key, item in value.items()}


def _put(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    """Add a copy of a tensor to `tensors` under its path in the state; returns the name."""
    name = path
    while name in tensors:  # {"a/b": …} and {"a": {"b": …}}
        name += "'"
    tensors[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return name


def _from_numpy(array: np.ndarray[Any, Any], path: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))  # a copy, so read-only is fine
    except TypeError as error:
        raise TypeError(f"a checkpoint cannot hold an array of {array.dtype} (at {path or '/'})") from error
