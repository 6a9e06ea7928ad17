"""`make bench`: measure everything, write benchmarks/results.json, print a table.

    python -m benchmarks [epoch] [encode] [service] [scaling] [studies]
    python -m benchmarks table

With names only those parts are measured; the other figures stay. `table` prints the stored figures.
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

# The label and the target of each figure.
TARGETS = {
    "epoch.vs_reference": ("epoch of all folds: times faster than a plain implementation", "≥ 10"),
    "epoch.vs_matmul": ("epoch: time relative to its bare matrix products", "≤ 3.5"),
    "epoch.vs_matmul_10x": ("the same with ten times the posts", "≤ 3.5"),
    "encode.vs_sentence_transformers": ("embedding: times faster than SentenceTransformer.encode", "≥ 1.0"),
    "service.vs_optuna_100": ("database and sampler per trial vs plain Optuna, 100 stored trials", ""),
    "service.vs_optuna_1000": ("database and sampler per trial vs plain Optuna, 1,000 stored trials", "≤ 0.35"),
    "service.vs_optuna_5000": ("database and sampler per trial vs plain Optuna, 5,000 stored trials", "≤ 0.4"),
    "scaling.workers_2": ("trials per second, two workers relative to one", "≥ 1.7"),
    "scaling.sleeping_64_loss": ("share of throughput that 64 workers with 2 s trials lose", "< 0.10"),
    "memory.worker_gib": ("peak resident memory of a worker, GiB", "< 1.5"),
    "startup.help_seconds": ("`hpo --help`, seconds", "< 0.3"),
    "startup.worker_seconds": ("start-up of a worker that joins a home-case study, seconds", "< 3"),
    "study.home_vs_script": ("home-case study: times faster than a plain script", "≥ 5"),
    "study.quickstart_vs_script": ("quickstart study: times faster than a plain script", "≥ 2"),
    "study.home_minus_script": ("home-case study: re-scored winner minus the script's", "≥ -0.01"),
    "study.quickstart_minus_script": ("quickstart study: re-scored winner minus the script's", "≥ -0.01"),
}


def machine() -> dict[str, Any]:
    """The machine that the figures were measured on."""
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
    return ["| figure | measured | target |", "|---|---|---|", *rows]


def main() -> None:
    """Measure the requested parts and write the figures."""
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
