"""`make bench`: measure everything, write benchmarks/results.json, print a table.

    python -m benchmarks [epoch] [encode] [service] [load] [scaling] [studies] [worth]
    python -m benchmarks table

With names, only those parts are measured again, and the other figures stay as they are. `table` measures nothing and
prints the stored figures.
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

from benchmarks import cases, encode, epoch, scaling, service, studies, worth

RESULTS = Path(__file__).with_name("results.json")

PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "epoch": epoch.measure,
    "encode": encode.measure,
    "service": service.measure,
    "load": service.measure_load,
    "scaling": scaling.measure,
    "studies": studies.measure,
    "worth": worth.measure,
}

TARGETS: dict[str, tuple[str, str]] = {
    "epoch.vs_reference": ("an epoch of all folds: times faster than a straightforward implementation", "≥ 10"),
    "epoch.vs_matmul": ("an epoch: time relative to its bare matrix products", "≤ 3.5"),
    "epoch.vs_matmul_10x": ("the same with ten times the posts", "≤ 3.5"),
    "encode.vs_sentence_transformers": ("embedding: times faster than SentenceTransformer.encode", "≥ 1.0"),
    "service.vs_optuna_100": ("database and sampler per trial: time relative to plain Optuna, 100 stored trials", ""),
    "service.vs_optuna_1000": (
        "database and sampler per trial: time relative to plain Optuna, 1,000 stored trials",
        "≤ 0.35",
    ),
    "service.vs_optuna_5000": (
        "database and sampler per trial: time relative to plain Optuna, 5,000 stored trials",
        "≤ 0.4",
    ),
    "service.claims_128": ("trials without work a second, 128 workers and Postgres on one machine", "≥ 70"),
    "service.claim_p95_128": ("95th percentile of a claim's seconds, 128 workers", "< 1"),
    "service.running_1000_ms": ("a claim beside 1,000 running trials, milliseconds", "≤ 60"),
    "service.claims_16_at_5ms": ("trials without work a second, 16 workers, 5 ms from the database", "≥ 60"),
    "scaling.workers_2": ("throughput of two workers relative to one", "≥ 1.7"),
    "scaling.sleeping_64_loss": ("throughput lost by 64 workers with 2 s trials", "< 0.10"),
    "memory.worker_gib": ("peak resident memory of a worker, GiB", "< 1.5"),
    "startup.help_seconds": ("`hpo --help`, seconds", "< 0.3"),
    "startup.worker_seconds": ("a worker joining a study of the size of ReDSM5, seconds", "< 3"),
    "study.home_vs_script": ("a study of the size of ReDSM5: times faster than a plain script", "≥ 5"),
    "study.editorials_vs_script": ("IRIS on the editorials: times faster than a plain script", "≥ 2"),
    "study.home_minus_script": ("re-scored winner minus the script's, size of ReDSM5", "≥ -0.01"),
    "study.editorials_minus_script": ("re-scored winner minus the script's, IRIS on the editorials", "≥ -0.01"),
    **{
        f"worth.{corpus}.{name}": (f"{text}, {corpus}", target)
        for corpus in cases.CORPORA
        for name, (text, target) in worth.TARGETS.items()
    },
}
"""Description and target of each figure."""


def machine() -> dict[str, Any]:
    """Return a description of the machine."""
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


def table(figures: dict[str, Any]) -> list[str]:
    """Return the lines of the Markdown table in docs/performance.md."""
    rows = [
        f"| {description} (`{key}`) | {figures[key]:.3g} | {target} |"
        for key, (description, target) in TARGETS.items()
        if key in figures
    ]
    return ["| figure | measured | target |", "|---|---|---|", *rows]


def main() -> None:
    """Measure the requested parts, store the figures and print the table."""
    parts = [] if sys.argv[1:] == ["table"] else sys.argv[1:] or list(PARTS)
    figures: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() and sys.argv[1:] else {}
    for name in parts:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        figures |= {key: round(value, 4) for key, value in PARTS[name]().items()} | {"machine": machine()}
        # after each part, because together they take hours
        RESULTS.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
    print(*table(figures), sep="\n")


if __name__ == "__main__":
    main()
