"""Signals in the first and in the last moments of a process: no traceback, and the exit code of the docs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import until

ROOT = Path(__file__).parents[2]
SIGNALS = [signal.SIGTERM, signal.SIGINT]
RUN = "\nimport runpy; runpy.run_module('sparse_evidence.hpo', run_name='__main__')"

MOMENTS = {
    "while typer is imported": """
class Finder:
    def find_spec(self, name, *rest):
        if name == "typer":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Finder())
""",
    "while the commands are built": """
import typer.main
build = typer.main.get_params_from_function
def interrupted(function):
    os.kill(os.getpid(), number)
    return build(function)
typer.main.get_params_from_function = interrupted
""",
    "while a verb imports, which turns it into another error": """
class Finder:
    def find_spec(self, name, *rest):
        if name == "sparse_evidence.hpo.study.definition":
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), number)
            except KeyboardInterrupt:
                raise ImportError("numpy could not be imported")
sys.meta_path.insert(0, Finder())
""",
}


def script(number: int, body: str) -> str:
    return f"import os, signal, sys\nnumber = {int(number)}\n{body}"


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("verb", "expected"), [("worker", 0), ("run", 130)])
def test_a_signal_in_the_first_moments(verb: str, expected: int, moment: str, number: int) -> None:
    process = start(script(number, MOMENTS[moment]) + RUN, verb, "absent.toml")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (expected, ""), err
    assert err in ("", "hpo: interrupted: no finished trial is lost; run the same command to resume\n")
    assert not (verb == "worker" and err)


IN_A_TEXT = """
class Finder:
    def find_spec(self, name, *rest):
        if name == module:
            sys.meta_path.remove(self)
            exec("os.kill(os.getpid(), number)\\nfor _ in range(1000): pass")
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("module", ["typer", "sparse_evidence.hpo.study.definition"])
@pytest.mark.parametrize(("verb", "expected"), [("worker", 0), ("run", 130)])
def test_a_signal_while_python_runs_a_text(verb: str, expected: int, module: str, number: int, tmp_path: Path) -> None:
    """As it does to make a dataclass: `python -m`, which starts every worker, then tends to end with SIGINT."""
    (tmp_path / "sitecustomize.py").write_text(script(number, f"module = {module!r}\n{IN_A_TEXT}"))
    done = subprocess.run(
        [sys.executable, "-m", "sparse_evidence.hpo", verb, "absent.toml"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_the_last_moments(number: int) -> None:
    """Python calls exit handlers when `main` has returned."""
    hook = "import atexit\natexit.register(lambda: (os.kill(os.getpid(), number), sum(range(10**5))))\n"
    process = start(script(number, hook) + RUN, "--version")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("sparse-evidence-hpo ")


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends_a_worker_at_once_even_in_a_driver_that_waits(number: int) -> None:
    """A locked mutex waits in C, as libpq does for a dead network: Python's own handlers do not run meanwhile."""
    waiting = """
import ctypes, threading
from sparse_evidence.hpo.running.signals import graceful_shutdown
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
with graceful_shutdown(threading.Event()):
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
"""
    process = start(script(number, waiting))
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        until(lambda: not pending(process.pid), what="the first signal to arrive")
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.communicate()


def pending(pid: int) -> bool:
    """Whether a signal was sent to a process that has not taken it yet."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return any(int(line.split()[1], 16) for line in lines if line.startswith(("ShdPnd:", "SigPnd:")))


@pytest.mark.parametrize("command", ["run", "--version"])
def test_windows_is_refused_in_one_sentence(command: str) -> None:
    code = "import sys; import encodings, runpy, signal, threading; sys.platform = 'win32'\n" + RUN
    process = start(code, command)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("hpo: this does not work on Windows, ")
    assert err.count("\n") == 1
