"""Processes for tests, forked from one that only imported modules: 32 start within seconds and share memory.

`Forked` is `hpo ...` in such a process. A new Python takes three seconds of a core until it has imported torch, and
eight until it has imported an encoder's library; most tests ask what a verb does then.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import reduction
from pathlib import Path
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")
# One list for all tests, because the first test that starts a process decides. Only modules of installed packages: the
# process that is forked does not know pytest's sys.path.
MODULES = (
    "core.corpus.sources", "core.fitted", "hpo.api", "hpo.cli.app", "hpo.fitting.nested", "hpo.results.plan",
    "hpo.results.live", "hpo.running.artifacts", "hpo.running.joining", "hpo.running.signals", "hpo.running.slots",
    "hpo.running.worker",
)  # fmt: skip
PROCESSES.set_forkserver_preload(
    [
        "psycopg2",
        "sqlalchemy.dialects.postgresql.psycopg2",
        "torch._dynamo",
        "sentence_transformers",
        *(f"sparse_evidence.{name}" for name in MODULES),
    ]
)
READ_AT_START = ("PYTHONUTF8", "PYTHONCOERCE", "LC_", "LD_", "HF_", "OMP_", "MKL_")
"""What starts like this is read when Python or a module starts, so a fork comes too late for it."""


def hpo(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str], new: bool = False, **options: Any
) -> subprocess.Popen[Any]:
    """Start `hpo ...` as `subprocess.Popen` does, with this process's variables and `env`.

    It is forked, unless a `new` Python is asked for or `env` has what only that reads.
    """
    new |= any(name.startswith(READ_AT_START) and os.environ.get(name) != value for name, value in env.items())
    command = [sys.executable, "-m", "sparse_evidence.hpo", *map(str, arguments)]
    return (subprocess.Popen if new else Forked)(command, cwd=cwd, env={**os.environ, **env}, **options)


def call(*arguments: str | Path, cwd: Path, env: Mapping[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `hpo ...` to its end, as `hpo` starts it."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = hpo(*arguments, cwd=cwd, env=env, **streams | options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


class Forked(subprocess.Popen[Any]):
    """`subprocess.Popen` of `python -m MODULE ...`, with a fork in place of a new Python.

    Only how the process is started and waited for differs: it is a child of the process that is forked.
    """

    def _execute_child(  # type: ignore[override]
        self, args: list[str], _executable: Any, _preexec: Any, _close: Any, _pass: Any, cwd: Any, env: Any,
        _startup: Any, _flags: Any, _shell: Any, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int,
        errread: int, errwrite: int, *_rest: Any,
    ) -> None:  # fmt: skip
        streams = [p2cread, c2pwrite, errwrite]
        assert min(streams) >= 0, "give stdin, stdout and stderr"
        self._process = PROCESSES.Process(
            target=_become, args=(args[2], args[3:], str(cwd), dict(env), [_Descriptor(number) for number in streams])
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._process.pid is not None:
            self.returncode = self._process.exitcode
        return self.returncode

    def _wait(self, timeout: float | None) -> int:  # type: ignore[override]
        self._process.join(timeout)
        if self._internal_poll() is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


class _Descriptor:
    """A file descriptor that goes to the new process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (reduction.DupFd(self.number),)


def _arrived(sent: Any) -> int:
    number: int = sent.detach()
    return number


def _become(module: str, arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> None:
    """Run a module in this process as a new Python would."""
    import runpy

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    encoding = environment.get("PYTHONIOENCODING")
    sys.stdin, sys.stdout = (
        open(number, mode, encoding=encoding, closefd=False)  # noqa: SIM115
        for number, mode in enumerate("rw")
    )
    sys.stderr = open(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    random.seed()  # all forks have the state of the process that they are forked from
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
