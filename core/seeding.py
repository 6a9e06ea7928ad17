"""Seeds that are the same on every machine: a stable hash of the purpose of the random numbers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stable_seed(*parts: int | str) -> int:
    """A 63-bit seed from `parts`, e.g. `stable_seed(seed, "dropout", fold, epoch)`.

    SHA-256 instead of `hash()`, so the seed is the same in every process, on every platform, in every Python version.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator seeded with `stable_seed(*parts)`."""
    return np.random.Generator(np.random.PCG64(stable_seed(*parts)))


def torch_generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator on `device`, seeded with `stable_seed(*parts)`.

    CPU and CUDA generators draw different numbers from the same seed.
    """
    import torch

    return torch.Generator(device).manual_seed(stable_seed(*parts))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch inside the block; afterwards restore their state."""
    import torch

    seed = stable_seed(*parts)
    python, legacy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond without CUDA
        if devices:
            torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


@contextmanager
def torch_seeded(*parts: int | str, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators (the CPU's, and that of a CUDA `device`) inside the block; then restore them."""
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stable_seed(*parts))
        yield
