"""The slots of a machine, each for one worker process: how many, on which GPU, with how many CPU threads.

`CUDA_VISIBLE_DEVICES` is the environment variable that tells CUDA which GPUs a process may use. It lists indices or
UUIDs, and CUDA renumbers the listed GPUs from 0. This module reads it to find the GPUs that this process may assign,
and sets it to a single UUID for every worker: a UUID means the same GPU in every process, an index does not.

The GPUs are listed by `nvidia-smi`, which comes with the driver, so no further package is needed. CUDA itself is not
queried, because that would allocate a context on every GPU in a process that only starts others.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparse_evidence.core.errors import UserError

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
MAX_CPU_SLOTS = 4
"""Default number of slots on a machine without GPUs, if it has that many cores."""
_QUERY_SECONDS = 60.0
_LIST_UUIDS = ("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader")


@dataclass(frozen=True)
class Slot:
    """Resources for one worker process."""

    number: int
    threads: int
    """CPU threads."""
    gpu: str | None = None
    """UUID of its GPU; None: the worker sees the same devices as this process."""

    def environment(self) -> dict[str, str]:
        """Environment variables that must be set before Python, CUDA and OpenMP start."""
        threads = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        return threads if self.gpu is None else {**threads, VISIBLE_DEVICES: self.gpu}


def usable_cores() -> int:
    """Number of cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def plan_slots(count: int | None, *, per_gpu: int = 1, cores: int | None = None) -> list[Slot]:
    """Plan the machine's slots: GPUs are assigned round-robin, and the cores are divided equally.

    Args:
        count: number of slots; default: `per_gpu` on every GPU, or without GPUs one per core, at most four.
        per_gpu: workers that may share a GPU.
        cores: cores to divide; default: those that this process may use.

    Raises:
        UserError: more slots than fit on the GPUs.
    """
    gpus = visible_gpus()
    capacity = per_gpu * len(gpus)
    if gpus and count is not None and count > capacity:
        raise UserError(
            f"{count} slots do not fit on {len(gpus)} GPU{'s' if len(gpus) > 1 else ''} with {per_gpu} each: "
            f"give --slots {capacity} or fewer, or a larger --per-gpu"
        )
    cores = cores or usable_cores()
    slots = count or capacity or min(cores, MAX_CPU_SLOTS)
    threads = max(1, cores // slots)
    return [Slot(number, threads, gpus[number % len(gpus)] if gpus else None) for number in range(slots)]


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """UUIDs of the GPUs that this process may use, in the order in which CUDA numbers them; empty without a driver."""
    setting = environ.get(VISIBLE_DEVICES)
    if setting is not None and not setting.strip():
        return []
    installed = installed_gpus()
    return installed if setting is None else _select(setting, installed)


def installed_gpus() -> list[str]:
    """UUIDs of the machine's GPUs in the driver's order; empty without a driver."""
    try:
        result = subprocess.run(  # noqa: S603 (our own command line)
            _LIST_UUIDS, check=True, capture_output=True, text=True, timeout=_QUERY_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def _select(setting: str, installed: Sequence[str]) -> list[str]:
    """Interpret CUDA_VISIBLE_DEVICES as CUDA does: indices and (prefixes of) UUIDs, up to the first invalid entry."""
    selected: list[str] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdigit() and int(entry) < len(installed):
            selected.append(installed[int(entry)])
        elif entry.startswith("MIG-"):
            selected.append(entry)  # a slice of a GPU, which this nvidia-smi query does not list
        elif entry.startswith("GPU-") and (matches := [uuid for uuid in installed if uuid.startswith(entry)]):
            selected.append(matches[0])
        else:
            break
    return selected
