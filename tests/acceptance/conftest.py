"""Real `hpo` processes, started as from a shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import hpo

from sparse_evidence.hpo.database import embedded

ROOT = Path(__file__).parents[2]
Start = Callable[..., "subprocess.Popen[str]"]
Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all test processes: the encoder is loaded once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache-of-all"


@pytest.fixture
def start(tmp_path: Path, cache: Path) -> Iterator[Start]:
    """Start `hpo ...` in the test's folder; processes that are still running at the end are killed.

    With `new` it is a new Python: each verb is called like that at least once, so that one that misses an import fails.
    """
    running: list[subprocess.Popen[str]] = []

    def start_process(*arguments: str | Path, new: bool = False, **environment: str) -> subprocess.Popen[str]:
        process = hpo(
            *arguments,
            new=new,
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT / "src"), "HPO_CACHE": str(cache), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start_process
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()
    if (tmp_path / ".hpo").is_dir():  # as root the database lies elsewhere
        shutil.rmtree(embedded.home(tmp_path / ".hpo"), ignore_errors=True)


@pytest.fixture
def call(start: Start) -> Call:
    """Run `hpo ...` to its end, as `start` does."""

    def run(*arguments: str | Path, new: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        process = start(*arguments, new=new, **environment)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
