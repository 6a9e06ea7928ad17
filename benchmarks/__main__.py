"""`make bench`: measure speed, write benchmarks/results.json and a line of benchmarks/history.jsonl, print a table.

    python -m benchmarks [PART ...]              the parts that are named, or all that together take under half an hour
    python -m benchmarks [PART ...] --check      compare instead: exit 1 if a ratio is much worse than before
    python -m benchmarks table                   measure nothing, print the stored figures

Figures of parts that are not measured stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases, confirmed, encode, epoch, scaling, service, studies, worth

RESULTS = Path(__file__).with_name("results.json")
HISTORY = Path(__file__).with_name("history.jsonl")
"""A line for every part that was measured, with its commit."""
WORSE = 1.25
"""A ratio may get worse by this factor before `--check` fails."""

PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "epoch": epoch.measure,
    "encode": encode.measure,
    "service": service.measure,
    "load": service.measure_load,
    "scaling": scaling.measure,
    "confirmed": confirmed.measure,
    "studies": studies.measure,
    "worth": worth.measure,
}
LONG = ("studies", "worth")
"""Measured only if they are named: 40 minutes, and hours."""

TARGETS: dict[str, tuple[str, str]] = {
    "epoch.vs_reference": ("an epoch of all folds: times faster than a straightforward implementation", "≥ 10"),
    "epoch.vs_matmul": ("an epoch: time relative to its bare matrix products", "≤ 3.5"),
    "epoch.vs_matmul_10x": ("the same with ten times the posts", "≤ 3.5"),
    "encode.vs_sentence_transformers": ("embedding: times faster than SentenceTransformer.encode", "≥ 1.0"),
    "encode.bfloat16_vs_sentence_transformers": ("the same in bfloat16, on a CPU that has it", "≥ 1.5"),
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
    "service.server_ms_128": ("the server's CPU milliseconds for each of these trials", ""),
    "service.claim_p95_128": ("95th percentile of a claim's seconds, 128 workers", "< 1"),
    "service.running_1000_ms": ("a claim beside 1,000 running trials, milliseconds", "≤ 60"),
    "service.claims_16_at_5ms": ("trials without work a second, 16 workers, 5 ms from the database", "≥ 60"),
    "scaling.workers_2": ("throughput of two workers relative to one", "≥ 1.7"),
    "scaling.simulated_1000_loss": ("throughput lost by 1,000 simulated workers with 60 s trials, pgbouncer", "≤ 0.05"),
    "scaling.sleeping_64_loss": ("throughput lost by 64 workers with 2 s trials", "< 0.10"),
    "memory.worker_gib": ("peak resident memory of a worker, GiB", "< 1.5"),
    "confirmed.demo_seconds": ("the quickstart to a confirmed, fitted model, embeddings known, seconds", "≤ 60"),
    "confirmed.home_seconds": ("the same at the size of ReDSM5, IRIS as published, seconds", "≤ 240"),
    "confirmed.demo_confirm_vs_search": ("confirming relative to the search that it follows, quickstart", "≤ 0.5"),
    "confirmed.home_confirm_vs_search": ("the same at the size of ReDSM5", "≤ 0.5"),
    "confirmed.bag_of_5_published": ("five seeds of every fold relative to one, IRIS as published", "≤ 2.5"),
    "confirmed.bag_of_5_default": ("the same, IRIS", "≤ 2.5"),
    "confirmed.retrieval_seconds": ("a trial of `retrieval` at the size of ReDSM5, seconds", "≤ 1"),
    "startup.help_seconds": ("`hpo --help`, seconds", "< 0.3"),
    "startup.first_trial_seconds": ("from `hpo run` on a known study of that size to its next trial, seconds", "≤ 3"),
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

RATIOS = (
    "epoch.vs_reference", "epoch.vs_matmul", "epoch.vs_matmul_10x", "encode.vs_sentence_transformers",
    "encode.bfloat16_vs_sentence_transformers",
    "service.vs_optuna_100", "service.vs_optuna_1000", "service.vs_optuna_5000", "scaling.workers_2",
    "confirmed.demo_confirm_vs_search", "confirmed.home_confirm_vs_search", "confirmed.bag_of_5_published",
    "confirmed.bag_of_5_default",
    "study.home_vs_script", "study.editorials_vs_script",
)  # fmt: skip
"""Of two things that are measured in the same run: a busy machine slows both down."""
HIGHER_IS_BETTER = {key for key in RATIOS if TARGETS[key][1].startswith("≥")}


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


def much_worse(before: Mapping[str, Any], after: Mapping[str, float]) -> list[str]:
    """The ratios that got worse by more than the factor `WORSE`, a sentence each.

    Args:
        before: stored figures.
        after: figures measured now.
    """
    found = []
    for key in RATIOS:
        if key not in before or key not in after:
            continue
        higher_is_better = key in HIGHER_IS_BETTER
        factor = before[key] / after[key] if higher_is_better else after[key] / before[key]
        if factor > WORSE:
            found.append(f"{key} was {before[key]:.3g} and is {after[key]:.3g}, {factor:.2f} times worse")
    return found


def measured_before(part: str, history: Iterable[str], this: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a part when it was measured last on such a machine; empty if it never was.

    How fast memory is, and whether products of matrices have instructions of their own, changes ratios by a half.

    Args:
        part: its name.
        history: the lines of `HISTORY`.
        this: from `machine()`.
    """
    entries = [json.loads(line) for line in history]
    found = [
        entry["figures"]
        for entry in entries
        if entry["part"] == part and all(entry["machine"][key] == this[key] for key in ("cpu", "cores"))
    ]
    return dict(found[-1]) if found else {}


def _commit() -> str:
    """The commit that is measured; with a `+` if files differ from it, other than those that are written here."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=False
        ).stdout.strip()

    changed = git("status", "--porcelain", "--", ":/", f":!{RESULTS.name}", f":!{HISTORY.name}")
    return f"{git('rev-parse', '--short=12', 'HEAD') or 'unknown'}{'+' if changed else ''}"


def _store(stored: dict[str, Any], part: str, measured: Mapping[str, float]) -> None:
    """Add the figures of a part to those stored. Called after each one, because together they take long."""
    this = machine()
    stored.update(measured)
    stored["machines"] = {**stored.get("machines", {}), part: this}
    RESULTS.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
    line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "commit": _commit(), "part": part,
            "machine": this, "figures": measured}  # fmt: skip
    with HISTORY.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure speed and worth.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; or table")
    parser.add_argument("--check", action="store_true", help="compare with what was measured before, write nothing")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.parts if name not in PARTS and name != "table"]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if "table" in chosen.parts and chosen.parts != ["table"]:
        parser.error("table goes with no other part")
    chosen.parts = chosen.parts or [name for name in PARTS if name not in LONG]
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the requested parts, and store the figures and print the table, or compare them."""
    chosen = _arguments(arguments)
    if chosen.check:
        check(chosen.parts)
        return
    stored: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in chosen.parts if chosen.parts != ["table"] else []:
        _store(stored, name, _measure(name))
    print(*table(stored), sep="\n")


def check(parts: Sequence[str]) -> None:
    """Compare parts with the last time that they were measured on such a machine; exit 1 if a ratio is much worse.

    A part that looks worse is measured once more: these may be machines with other work.
    """
    history = HISTORY.read_text().splitlines() if HISTORY.exists() else []
    worse, compared = [], []
    for name in parts:
        before = measured_before(name, history, machine())
        if not before:
            print(f"{name} has not been measured on such a machine: there is nothing to compare with")
            continue
        compared.append(name)
        if much_worse(before, _measure(name)):
            worse += much_worse(before, _measure(name))
    if compared:
        print(*(worse or [f"no ratio of {', '.join(compared)} is much worse than before"]), sep="\n")
    sys.exit(1 if worse else 0)


def _measure(part: str) -> dict[str, float]:
    print(f"measuring {part} …", file=sys.stderr, flush=True)
    began = time.monotonic()
    figures = {key: round(value, 4) for key, value in PARTS[part]().items()}
    print(f"{part} took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return figures


if __name__ == "__main__":
    main()
