"""Mistakes of users: a message on standard error, the documented exit code, no traceback, nothing lost."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import in_process
import pytest

ROOT = Path(__file__).parents[2]
Call = Callable[..., tuple[int, str]]

PAIRS = '[data]\nsource = "pairs"\npath = "posts.csv"\n'
SYNTHETIC = '[data]\nsource = "synthetic"\nposts = 40\ncriteria = 2\n'
IRIS = '[model]\nname = "iris"\n'


@pytest.fixture
def hpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call a verb in an empty folder; returns the exit code and the content of standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "best.json").write_text("precious")

    def call(*arguments: str) -> tuple[int, str]:
        ended = in_process.hpo(*arguments)
        assert (tmp_path / "best.json").read_text() == "precious"
        return ended.code, ended.err

    return call


def one_sentence(err: str) -> str:
    """Standard error, after checking that it is one line."""
    assert re.fullmatch(r"hpo: [^\n]+\n", err), err
    assert "Traceback" not in err
    return err


def a_list(err: str, count: int) -> str:
    """Standard error, after checking that it is a headline with one line for each of `count` mistakes."""
    assert re.fullmatch(rf"hpo: [^\n]+ {count} mistakes:\n(  [^\n]+\n){{{count}}}", err), err
    return err


def table(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def posts(
    count: int = 40,
    positives: int = 20,
    *,
    group: Callable[[int], str] = str,
    post: str = "it was a day",
    label: str = "0",
) -> str:
    """A table of pairs with one criterion; `post` and `label` are those of the last row."""
    rows = [[f"p{n}", f"post {n}. It was a day.", "sad", str(int(n < positives)), group(n)] for n in range(count)]
    rows[-1][1], rows[-1][3] = post, label
    return table([["post_id", "post", "criterion", "label", "group"], *rows])


def wrong(folder: Path, study: str, data: str | None = None) -> Path:
    if data is not None:
        (folder / "posts.csv").write_text(data)
    path = folder / "study.toml"
    path.write_text(study)
    return path


DATA_MISTAKES = {
    "missing file": (PAIRS + IRIS, None, ["posts.csv", "does not exist"]),
    "wrong column": (PAIRS + IRIS, posts().replace("label", "lable", 1), ["posts.csv", "label", "lable"]),
    'label "maybe"': (PAIRS + IRIS, posts(label="maybe"), ["posts.csv", "row 41", "'maybe'", "0 and 1"]),
    "empty post": (PAIRS + IRIS, posts(post="  "), ["posts.csv", "row 41", "empty"]),
    "one group only": (PAIRS + IRIS, posts(group=lambda _: "me"), ["in one group"]),
    "more folds than groups": (
        PAIRS + IRIS + "[split]\nfolds = 7\nholdout = 0.0\n",
        posts(group=lambda n: f"g{n % 4}"),
        ["7 folds", "4 groups"],
    ),
    "2 positives and 5 folds": (PAIRS + IRIS, posts(positives=2), ["'sad'", "2 positive", "5 folds"]),
    "unknown encoder folder": (SYNTHETIC + IRIS + 'encoder = "./nowhere"\n', None, ["nowhere", "does not exist"]),
}


@pytest.mark.parametrize(("study", "data", "expected"), DATA_MISTAKES.values(), ids=DATA_MISTAKES)
def test_a_mistake_in_the_data(hpo, tmp_path, study, data, expected):
    code, err = hpo("validate", str(wrong(tmp_path, study, data)))
    assert code == 2
    assert all(fragment in one_sentence(err) for fragment in expected), err


FILE_MISTAKES = {
    "low > high": (IRIS + "k_retrieved = { low = 6, high = 2 }\n", ["[model] k_retrieved", "low 6", "high 2", "swap"]),
    "unknown key": (IRIS + "[training]\nlearning_rat = 0.1\n", ["learning_rat", "did you mean learning_rate?"]),
    "unknown model": ('[model]\nname = "irsi"\n', ["[model] name", '"irsi"', 'did you mean "iris"?', '"linear"']),
    "unknown loss": (IRIS + '[[loss]]\nname = "focl"\n', ["[[loss]]", '"focl"', 'did you mean "focal"?']),
    "unknown metric": (IRIS + '[search]\nmetric = "aurok"\n', ["[search] metric", '"aurok"', '"auroc"']),
    "TOML syntax": (IRIS + "[training\n", ["not valid TOML", "line"]),
}


@pytest.mark.parametrize(("tables", "expected"), FILE_MISTAKES.values(), ids=FILE_MISTAKES)
@pytest.mark.parametrize("verb", ["validate", "run", "worker", "status", "export", "dashboard"])
def test_a_mistake_in_the_study_file(hpo, tmp_path, verb, tables, expected):
    code, err = hpo(verb, str(wrong(tmp_path, SYNTHETIC + tables)))
    assert code == 2
    assert all(fragment in one_sentence(err) for fragment in ["study.toml", *expected]), err
    assert not (tmp_path / ".hpo").exists()


@pytest.mark.parametrize("verb", ["validate", "run", "worker", "status", "export", "dashboard"])
def test_every_mistake_in_the_study_file_is_on_its_own_line(hpo, tmp_path, verb):
    code, err = hpo(verb, str(wrong(tmp_path, '[model]\nname = "irsi"\n[split]\nfolds = 1\n[trainin]\n')))
    assert code == 2
    assert all(fragment in a_list(err, 4) for fragment in ["study.toml", "irsi", "[split] folds", "trainin", "[data]"])


@pytest.mark.parametrize("post", ["I cried today", "hopeless!", "Help me", "我想死"])
def test_a_table_without_a_header_shows_no_post(hpo, tmp_path, post):
    """Its first row is taken for the header, and is in messages about columns."""
    rows = [[f"p{row}", post if row % 2 else f"Good {row}", "sad", str(row % 2)] for row in range(20)]
    (tmp_path / "posts.csv").write_text(table(rows[1:]), encoding="utf-8")
    (tmp_path / "renamed.toml").write_text(f'{PAIRS}columns = {{ post = "p1" }}\n{IRIS}')
    study = wrong(tmp_path, PAIRS + IRIS)
    for arguments in (["validate", str(study)], ["validate", "renamed.toml"], ["init", "posts.csv"]):
        code, err = hpo(*arguments)
        assert code == 2
        assert f"'p1', a text of {len(post)} characters, 'sad', '1'" in err
        assert post not in err


@pytest.mark.parametrize("name", ["\0", "\x1b[2Jposts", "\x9b2Jposts", "\x7f"], ids=ascii)
def test_a_message_controls_no_terminal(hpo, tmp_path, name):
    """A path in a study file may hold any character; a message shows it, and does nothing else."""
    data = PAIRS.replace('"posts.csv"', json.dumps(name).replace("\x7f", "\\u007f"))
    code, err = hpo("validate", str(wrong(tmp_path, data + IRIS)))
    assert code == 2
    assert one_sentence(err)[:-1].isprintable()


def test_a_study_file_that_does_not_exist(hpo, tmp_path):
    wrong(tmp_path, SYNTHETIC + IRIS)
    code, err = hpo("run", "studdy.toml")
    assert (code, "studdy.toml does not exist; did you mean study.toml?" in one_sentence(err)) == (2, True), err


USAGE = {
    "no study": (["run"], "STUDY"),
    "unknown verb": (["frobnicate"], "frobnicate"),
    "unknown option": (["run", "study.toml", "--wrokers", "2"], "--workers"),
    "no workers": (["run", "study.toml", "--workers", "0"], "--workers"),
    "no number": (["run", "study.toml", "--trials", "many"], "--trials"),
}


@pytest.mark.parametrize(("arguments", "expected"), USAGE.values(), ids=USAGE)
def test_wrong_usage(hpo, arguments, expected):
    code, err = hpo(*arguments)
    assert code == 2
    assert expected in one_sentence(err)
    assert f"See `hpo{' run' if arguments[0] == 'run' else ''} --help`" in err


def test_of_many_mistakes_the_first_twenty_are_listed(hpo, tmp_path):
    unknown = "".join(f"unknown_{n} = 1\n" for n in range(30))
    code, err = hpo("validate", str(wrong(tmp_path, f"{SYNTHETIC}{IRIS}\n[split]\n{unknown}")))
    assert code == 2
    _, *listed = err.splitlines()
    assert (len(listed), listed[-1]) == (21, "  and 10 more")


# --- the database -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["run", "status", "why", "export", "dashboard"])
def test_an_unreachable_database(hpo, tmp_path, verb, monkeypatch):
    monkeypatch.setenv("HPO_STORAGE", "postgresql://someone:sesame@127.0.0.1:1/trials")
    out = ["--out", "new.json"] if verb in {"run", "export"} else ["0"] if verb == "why" else []
    code, err = hpo(verb, str(wrong(tmp_path, SYNTHETIC + IRIS)), *out)
    assert code == 3
    assert "someone:***@127.0.0.1:1/trials is unreachable" in one_sentence(err)
    assert "sesame" not in err
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize(
    ("url", "expected"),
    [("mysql://someone:sesame@host/trials", "is not Postgres"), ("sesame@@://", "cannot be read")],
)
def test_a_storage_that_is_not_postgres(hpo, tmp_path, url, expected):
    code, err = hpo("status", str(wrong(tmp_path, SYNTHETIC + IRIS)), "--storage", url)
    assert code == 2
    assert expected in one_sentence(err)
    assert "sesame" not in err


def test_a_study_that_was_not_started(hpo, tmp_path, database):
    for verb in ("status", "leaderboard", "why", "export", "dashboard"):
        out = {"export": ["--out", "new.json"], "why": ["0"]}.get(verb, [])
        code, err = hpo(verb, str(wrong(tmp_path, SYNTHETIC + IRIS)), "--storage", database, *out)
        assert (code, "There is no study 'study'" in one_sentence(err)) == (2, True), err


def test_a_leaderboard_in_two_formats(hpo, tmp_path):
    code, err = hpo("leaderboard", str(wrong(tmp_path, SYNTHETIC + IRIS)), "--csv", "--json")
    assert (code, "--csv and --json cannot be combined" in one_sentence(err)) == (2, True)


# --- folders that cannot be written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["run", "export"])
@pytest.mark.parametrize(
    ("out", "expected"),
    [("best.json/best.json", "Not a directory"), ("no/where/best.json", "No such file"), (".", "is a folder")],
)
def test_a_result_that_cannot_be_written(hpo, tmp_path, verb, out, expected):
    code, err = hpo(verb, str(wrong(tmp_path, SYNTHETIC + IRIS)), "--out", out)
    assert code == 2
    assert expected in one_sentence(err)
    assert "--out" in err


@pytest.mark.parametrize("verb", ["run", "export"])
def test_a_result_that_would_overwrite_another_study(hpo, tmp_path, verb):
    study = str(wrong(tmp_path, SYNTHETIC + IRIS))
    code, err = hpo(verb, study, "-o", "best.json")
    assert (code, "best.json is no result of a study" in one_sentence(err)) == (2, True)
    other = tmp_path / "study.best.json"  # the default
    other.write_text('{"study": "theirs"}')
    code, err = hpo(verb, study)
    assert (code, "study.best.json is the result of the study 'theirs'" in one_sentence(err)) == (2, True)
    assert other.read_text() == '{"study": "theirs"}'
    assert not (tmp_path / ".hpo").exists(), "it is said before anything is started"


def test_a_cache_that_cannot_be_written(hpo, tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "best.json" / "cache"))
    code, err = hpo("validate", str(wrong(tmp_path, SYNTHETIC + IRIS)))
    assert code == 2
    assert "Not a directory" in one_sentence(err)
    assert "HPO_CACHE" in err


def test_a_database_folder_that_cannot_be_written(hpo, tmp_path):
    (tmp_path / ".hpo").write_text("something of the user's")
    code, err = hpo("run", str(wrong(tmp_path, SYNTHETIC + IRIS)), "--out", "new.json")
    assert code == 2
    assert ".hpo cannot be written" in err.splitlines()[-1]
    assert (tmp_path / ".hpo").read_text() == "something of the user's"


# --- the dashboard ----------------------------------------------------------------------------------------------------


def test_a_password_file_of_the_dashboard_that_cannot_be_read(hpo, tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_DASHBOARD_PASSWORD_FILE", str(tmp_path / "missing"))
    code, err = hpo("dashboard")
    assert (code, "missing (HPO_DASHBOARD_PASSWORD_FILE) cannot be read" in one_sentence(err)) == (2, True)


def test_a_dashboard_beyond_loopback_requires_a_password(hpo, tmp_path):
    code, err = hpo("dashboard", "--host", "0.0.0.0")
    assert code == 2
    assert "HPO_DASHBOARD_PASSWORD" in one_sentence(err)
    assert not (tmp_path / ".hpo").exists()


# --- real processes ---------------------------------------------------------------------------------------------------


def in_a_process(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sparse_evidence.hpo", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HPO_CACHE": str(folder / "cache"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_mistake_in_a_real_process(tmp_path):
    done = in_a_process(tmp_path, "run", str(wrong(tmp_path, SYNTHETIC + '[model]\nname = "irsi"\n')))
    assert (done.returncode, done.stdout) == (2, "")
    assert "irsi" in one_sentence(done.stderr)


@pytest.mark.parametrize("network", ["refuses", "is silent"])
def test_an_encoder_of_a_hub_that_cannot_be_reached(tmp_path, network):
    study = wrong(tmp_path, SYNTHETIC + IRIS + 'encoder = "nobody/no-such-encoder"\n')
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts and never answers, unlike a closed port
        port = silent.getsockname()[1] if network == "is silent" else 9
        proxies = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"), f"http://127.0.0.1:{port}")
        started = time.monotonic()
        done = in_a_process(
            tmp_path, "validate", str(study), HF_HOME=str(tmp_path), NO_PROXY="", no_proxy="", **proxies
        )
    assert time.monotonic() - started < 40  # eight for the timeout, the others for a slow machine
    assert done.returncode == 2
    assert 'encoder "nobody/no-such-encoder"' in one_sentence(done.stderr)
    assert "use all-MiniLM-L6-v2" in done.stderr


@pytest.mark.parametrize("verb", ["status", "leaderboard", "export", "dashboard"])
def test_reading_in_the_wrong_folder_leaves_nothing_behind(hpo: Call, tmp_path: Path, verb: str) -> None:
    code, err = hpo(verb, str(ROOT / "studies" / "smoke.toml"))
    assert code == 2
    assert "There is no database in" in one_sentence(err)
    assert [path.name for path in tmp_path.iterdir()] == ["best.json"]
