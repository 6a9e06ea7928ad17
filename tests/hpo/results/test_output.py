"""Where a result is written: what is replaced, what is written through, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.results.output import Output

VALUES = {"study": "mine", "value": 0.5}
TEXT = '{\n  "study": "mine",\n  "value": 0.5\n}\n'


def output(path: Path, *, force: bool = False) -> Output:
    return Output.named(path, "mine", force=force)


def write(path: Path) -> None:
    output(path).check()
    output(path).write(VALUES)


def test_the_default_is_named_after_the_study():
    assert Output.named(None, "mine").path == Path("mine.best.json")


def test_writing_leaves_nothing_else_behind(tmp_path):
    path = tmp_path / "best.json"
    output(path).check()
    assert list(tmp_path.iterdir()) == []
    output(path).write({"b": "é", "a": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "a": 1,\n  "b": "é"\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "best.json"
    write(path)
    with pytest.raises(ValueError, match="JSON"):
        output(path).write({"study": "mine", "value": float("nan")})
    assert path.read_text() == TEXT
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_of_the_old_file_sees_all_of_it(tmp_path):
    path = tmp_path / "best.json"
    write(path)
    with path.open() as reader:
        output(path).write({"study": "mine"})
        assert reader.read() == TEXT


# --- what belongs to something else -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"study": "other"}', "is the result of the study 'other', and would be overwritten"),
        (b'{"study": 1}', "is no result of a study"),
        (b'["mine"]', "is no result of a study"),
        (b'{"study": "mine"', "is no result of a study"),
        (b"\xff\x00", "is no result of a study"),
        (b"[" * 100_000, "is no result of a study"),
    ],
)
def test_another_file_is_overwritten_only_with_force(tmp_path, content, expected):
    path = tmp_path / "best.json"
    path.write_bytes(content)
    link = tmp_path / "link"
    link.symlink_to("best.json")
    for named in (path, link):
        for refused in (output(named).check, lambda named=named: output(named).write(VALUES)):
            with pytest.raises(UserError, match=expected) as error:
                refused()
            assert "name another file with --out, or add --force" in str(error.value)
            assert path.read_bytes() == content
    output(path, force=True).check()
    output(path, force=True).write(VALUES)
    assert path.read_text() == TEXT


def test_a_file_that_appears_during_the_search_is_not_overwritten(tmp_path):
    path = tmp_path / "best.json"
    output(path).check()
    path.write_text('{"study": "other"}')
    with pytest.raises(UserError, match="study 'other'"):
        output(path).write(VALUES)


def test_an_empty_file_holds_nothing(tmp_path):
    path = tmp_path / "best.json"
    path.touch()
    write(path)
    assert path.read_text() == TEXT


# --- links, pipes and devices -----------------------------------------------------------------------------------------


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "results").mkdir()
    link = tmp_path / "best.json"
    link.symlink_to(Path("results") / "mine.json")  # which does not exist yet
    for _ in range(2):
        write(link)
        assert link.is_symlink()
        assert (tmp_path / "results" / "mine.json").read_text() == TEXT
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["best.json", "mine.json", "results"]


def test_a_link_to_nowhere_and_a_circle_of_links_are_refused(tmp_path):
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "best.json")
    (tmp_path / "circle").symlink_to("circle")
    for name, reason in (("nowhere", "No such file or directory"), ("circle", "Too many levels of symbolic links")):
        with pytest.raises(UserError, match=reason):
            output(tmp_path / name).check()
        assert (tmp_path / name).is_symlink()


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    output(pipe).check()  # does not wait for a reader
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    output(pipe).write(VALUES)
    reader.join(30)
    assert received == [TEXT]
    assert pipe.is_fifo()


def test_a_device_is_written_to():
    write(Path("/dev/null"))
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "link"])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_standard_output(tmp_path, name, kind):
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = (
        "import sys; from pathlib import Path; from sparse_evidence.hpo.results.output import Output\n"
        f"output = Output.named(Path({name!r}), 'mine')\n"
        "output.check()\n"
        "print('before', output.is_stdout, output)\n"
        "output.write({'study': 'mine', 'value': 0.5})\n"
        "print('after')"
    )
    file = tmp_path / "stdout"
    with file.open("w") as opened:
        stdout = opened if kind == "file" else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stdout=stdout, text=True, check=True)
    text = file.read_text() if kind == "file" else done.stdout
    assert text == f"before True standard output\n{TEXT}after\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "stdout"]


def test_a_file_that_the_shell_has_opened_is_not_replaced(tmp_path):
    path = tmp_path / "opened"
    with path.open("w") as opened:
        before = path.stat().st_ino
        write(Path(f"/dev/fd/{opened.fileno()}"))
    assert json.loads(path.read_text()) == VALUES
    assert path.stat().st_ino == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (".", "is a folder"),
        ("missing/best.json", r"\(No such file or directory\); create its folder, or name another file with --out"),
        ("file/best.json", r"\(Not a directory\)"),
        ("/dev/fd/99", r"\(No such file or directory\)"),
    ],
)
def test_a_place_that_cannot_be_written_to(tmp_path, name, expected):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=expected):
        output(tmp_path / name).check()
