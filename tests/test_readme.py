"""The README is accurate: its script runs, its commands and files exist, its figures are the measured ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_script_by_hand_runs(tmp_path):
    script = tmp_path / "by_hand.py"
    script.write_text(re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1), encoding="utf-8")
    command = [sys.executable, "-W", "error", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    value, low, high = map(float, re.findall(r"[\d.]+", done.stdout.splitlines()[-1]))
    assert low < value < high
    assert value > 0.5, "the planted evidence is not found"


def test_every_file_that_is_linked_is_there():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_measured_figures_are_those_of_the_last_measurement():
    """`python -m benchmarks` writes the file; the tables in the documentation are copied by hand."""
    command = [sys.executable, "-m", "benchmarks", "table"]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    performance = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").splitlines()
    assert len(table) > 10
    assert set(table) <= set(performance)
    measured = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    quoted = re.findall(r"\(`([a-z]+\.\w+)`\) \| ([\d.-]+) \|", README)
    assert len(quoted) > 5
    assert quoted == [(key, f"{measured[key]:.3g}") for key, _ in quoted]


def test_every_verb_and_target_is_named():
    verbs = subprocess.run(
        [sys.executable, "-m", "sparse_evidence.hpo", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for verb in ("validate", "run", "worker", "status", "export", "dashboard"):
        assert re.search(rf"\b{verb}\b", verbs)
        assert f"hpo {verb}" in README
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", README):
        assert f"\n{target}:" in makefile or target == "are", target
