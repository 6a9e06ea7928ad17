"""`make bench`: measure everything, write benchmarks/results.json, print a table.

    python -m benchmarks [epoch] [encode] [service] [scaling] [studies]
    python -m benchmarks table

With names only these are measured again; the other figures stay as they were. `table` prints what there is.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import encode, epoch, scaling, service, studies

RESULTS = Path(__file__).with_name("results.json")

PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "epoch": epoch.measure,
    "encode": encode.measure,
    "service": service.measure,
    "scaling": scaling.measure,
    "studies": studies.measure,
}

# figure: (what it is, what it should be)
TARGETS = {
    "epoch.vs_reference": ("an epoch of all folds: times faster than written plainly", "≥ 10"),
    "epoch.vs_matmul": ("an epoch over its bare matrix products", "≤ 3.5"),
    "epoch.vs_matmul_10x": ("the same at ten times the posts", "≤ 3.5"),
    "encode.vs_sentence_transformers": ("embedding: times faster than SentenceTransformer.encode", "≥ 1.0"),
    "service.vs_optuna_100": ("database and sampler a trial, over plain Optuna's, 100 stored trials", ""),
    "service.vs_optuna_1000": ("database and sampler a trial, over plain Optuna's, 1,000 stored trials", "≤ 0.35"),
    "service.vs_optuna_5000": ("database and sampler a trial, over plain Optuna's, 5,000 stored trials", "≤ 0.4"),
    "scaling.workers_2": ("trials a second with two workers over one", "≥ 1.7"),
    "scaling.sleeping_64_loss": ("throughput that 64 workers with 2 s trials lose", "< 0.10"),
    "memory.worker_gib": ("largest resident memory of a worker, GiB", "< 1.5"),
    "startup.help_seconds": ("`hpo --help`, seconds", "< 0.3"),
    "startup.worker_seconds": ("a worker that joins a study of the home case's size, seconds", "< 3"),
    "study.home_vs_script": ("a study of the home case's size: times faster than a plain script", "≥ 5"),
    "study.quickstart_vs_script": ("the quickstart: times faster than a plain script", "≥ 2"),
    "study.home_minus_script": ("re-scored winner minus the script's, home case's size", "≥ -0.01"),
    "study.quickstart_minus_script": ("re-scored winner minus the script's, quickstart", "≥ -0.01"),
}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def table(found: dict[str, Any]) -> list[str]:
    """The figures as lines of Markdown, as docs/performance.md has them."""
    rows = [
        f"| {words} (`{key}`) | {found[key]:.3g} | {target} |"
        for key, (words, target) in TARGETS.items()
        if key in found
    ]
    return ["| figure | measured | wanted |", "|---|---|---|", *rows]


def main() -> None:
    """Measure what was asked for and write it down."""
    wanted = [] if sys.argv[1:] == ["table"] else sys.argv[1:] or list(PARTS)
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() and sys.argv[1:] else {}
    for name in wanted:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        found |= {key: round(value, 4) for key, value in PARTS[name]().items()} | {"machine": machine()}
        RESULTS.write_text(
            json.dumps(found, indent=2, sort_keys=True) + "\n"
        )  # after each part: together they take an hour
    print(*table(found), sep="\n")


if __name__ == "__main__":
    main()
