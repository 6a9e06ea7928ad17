"""`hpo predict` as a user starts it: real processes, pipes, interruptions, and tables of many rows."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fitted_models import CRITERIA, linear_model, write_frame
from processes import hpo
from waiting import until

from sparse_evidence.core.fitted import load_model, save_model

ROOT = Path(__file__).parents[2]
HPO = [sys.executable, "-m", "sparse_evidence.hpo"]
ROW = '{number},"Row number one, which is a post. {filler}",x\n'

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "model"
    save_model(linear_model(), folder, "card")
    return folder


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return hpo("predict", *arguments, cwd=Path.cwd(), env={"HPO_CACHE": "/nowhere/cache"}, **options)


def test_a_table_through_pipes(folder, tmp_path):
    posts = ["I cannot sleep. Nothing is fun.", "Which laptop?"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(folder, "-", **pipes)
    out, err = process.communicate(b"post,other\n" + "".join(f'"{post}",ü\n' for post in posts).encode())
    assert (process.returncode, err) == (0, b"")
    found = pd.read_csv(io.BytesIO(out))
    assert found["other"].tolist() == ["ü", "ü"]
    probabilities = load_model(folder).probabilities(posts)
    assert found[[f"{name}.probability" for name in CRITERIA]].to_numpy() == pytest.approx(probabilities, abs=1e-6)

    # Parquet has its index at the end, and is read from a pipe all the same
    table = write_frame(pd.DataFrame({"post": posts}), tmp_path / "posts.parquet")
    process = start(folder, "-", "--format", "parquet", "--long", **pipes)
    out, err = process.communicate(table.read_bytes())
    assert (process.returncode, err) == (0, b"")
    assert pd.read_parquet(io.BytesIO(out))["criterion"].tolist() == CRITERIA * 2


def test_a_reader_sees_names_that_look_like_markup(tmp_path):
    model, name = linear_model(), "mood [/low]"
    criteria = (replace(model.criteria[0], name=name), *model.criteria[1:])
    save_model(replace(model, criteria=criteria), tmp_path / "m", "card")
    table = write_frame(pd.DataFrame({"post": ["I feel sad and empty. I cry every day."]}), tmp_path / "posts.csv")
    process = start(tmp_path / "m", table, "--show", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert name in out.decode()


def test_mistakes_are_one_sentence_and_nothing_is_written(folder, tmp_path):
    table = write_frame(pd.DataFrame({"post": ["A post."], "n": [1]}), tmp_path / "posts.csv")
    for arguments, sentence in (
        ((folder, table, "-o", table), "is the table that is read; name another file with -o"),
        ((folder, table, "-o", tmp_path / "out.xlsx"), "allowed are .csv, .tsv and .parquet"),
        ((folder, tmp_path / "post.csv"), "does not exist; did you mean posts.csv?"),
        ((tmp_path, table), "is no fitted model"),
        ((folder, table, "--column", "text"), "column text is missing"),
    ):
        process = start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate()
        assert (process.returncode, out, err.count(b"\n")) == (2, b"", 1), err
        assert sentence in err.decode()
    assert [path.name for path in tmp_path.iterdir()] == ["posts.csv"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_no_file(folder, tmp_path, number):
    process = start(folder, "-", "-o", tmp_path / "out.csv", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"id,post,x\n" + "".join(ROW.format(number=n, filler="") for n in range(5000)).encode())
    process.stdin.flush()  # and no end of the file

    def written() -> bool:
        return any(path.stat().st_size > 10_000 for path in tmp_path.iterdir())

    until(written, seconds=60)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == b"hpo: interrupted: the table is incomplete, and no file was written; run the same command again\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_memory_does_not_grow_with_the_rows(folder, tmp_path, suffix):
    """The larger table has 45 MB of different text more than the smaller one, in one row group."""
    peaks = []
    for rows in (10_000, 100_000):
        table, out = tmp_path / f"{rows}.{suffix}", tmp_path / f"out.{suffix}"
        frame = pd.DataFrame({"id": [f"{row:0500d}" for row in range(rows)], "post": ["A post."] * rows})
        if suffix == "parquet":
            frame.to_parquet(table, row_group_size=rows, compression=None, use_dictionary=False)
        else:
            frame.to_csv(table, index=False)
        del frame
        peaks.append(peak_memory(folder, table, "-o", out, "--no-evidence"))
        assert table.stat().st_size > rows * 500
    found = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    assert len(found) == 100_000
    assert peaks[1] - peaks[0] < 25e6, peaks


def peak_memory(*arguments: str | Path) -> int:
    """Bytes that a prediction took at most; asked for by a small process, because a child starts with its parent's."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    call = [sys.executable, "-c", code, *HPO, "predict", *map(str, arguments)]
    return int(subprocess.run(call, env=environment, check=True, capture_output=True).stdout) * 1024
