"""The places on a machine where a worker process may run: how many, on which GPU, with how many CPU threads.

GPUs are asked of `nvidia-smi` and named by UUID: the numbers that CUDA gives them depend on what it may see, and asking
CUDA itself would put a context on every GPU into the process that only starts others.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from sparse_evidence.core.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
MOST_ON_CPU = 4
_QUERY_SECONDS = 60.0


@dataclass(frozen=True)
class Slot:
    """A place for one worker process."""

    number: int
    threads: int
    gpu: str | None = None
    """UUID; None leaves the worker what this process sees."""

    def environment(self) -> dict[str, str]:
        """What the worker must find before Python, CUDA and OpenMP start."""
        threads = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        return threads if self.gpu is None else {**threads, VISIBLE: self.gpu}


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def plan_slots(count: int | None, *, per_gpu: int = 1) -> list[Slot]:
    """Lay out the machine's slots, GPUs in turn and cores divided.

    Args:
        count: number of slots; None: `per_gpu` on every GPU, without any GPU one per core and at most four.
        per_gpu: workers that may share a GPU.

    Raises:
        UserError: more slots than the GPUs take.
    """
    found = visible_gpus()
    room = per_gpu * len(found)
    if found and count is not None and count > room:
        raise UserError(
            f"{count} slots do not fit on {len(found)} GPU{'s' if len(found) > 1 else ''} with {per_gpu} each: "
            f"give --slots {room} or fewer, or a larger --per-gpu"
        )
    wanted = count or room or min(usable_cores(), MOST_ON_CPU)
    threads = max(1, usable_cores() // wanted)
    return [Slot(number, threads, found[number % len(found)] if found else None) for number in range(wanted)]


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """UUIDs of the GPUs that this process may use, in the driver's order; none where there is no driver."""
    allowed = environ.get(VISIBLE)
    if allowed is not None and not allowed.strip():
        return []
    try:
        asked = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
        answer = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=_QUERY_SECONDS)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    found = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    return found if allowed is None else _visible(allowed, found)


def _visible(allowed: str, found: list[str]) -> list[str]:
    """Read CUDA_VISIBLE_DEVICES as CUDA does: numbers or (beginnings of) UUIDs, up to the first that is neither."""
    visible: list[str] = []
    for entry in (part.strip() for part in allowed.split(",")):
        if entry.isdigit() and int(entry) < len(found):
            visible.append(found[int(entry)])
        elif entry.startswith("MIG-"):
            visible.append(entry)  # a part of a GPU: nvidia-smi lists it elsewhere
        elif entry.startswith("GPU-") and (match := [uuid for uuid in found if uuid.startswith(entry)]):
            visible.append(match[0])
        else:
            break
    return visible
