"""The README is true: its script runs, its commands and files are there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks

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
    """`python -m benchmarks` writes the file; what the pages say of it is copied by hand."""
    found = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    performance = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for line in benchmarks.table(found):
        assert line in performance.splitlines()
    told = re.findall(r"\(`([a-z]+\.\w+)`\) \| ([\d.-]+) \|", README)
    assert len(told) > 5
    assert told == [(key, f"{found[key]:.3g}") for key, _ in told]


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
