"""Inputs that once broke a study: data on another path, settings that train nothing, terminals without UTF-8."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from loop_tools import tiny
from test_mistakes import IRIS, PAIRS, SYNTHETIC, posts

SHORT = '[search]\ntrials = {trials}\nspace = "file"\n[split]\nfolds = 3\nstages = [3]\n[confirm]\nleaders = 0\n'
pytestmark = pytest.mark.slow
ASCII = {
    "PYTHONIOENCODING": {"PYTHONIOENCODING": "ascii"},
    "LC_ALL": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def test_what_the_data_are_decides_not_where_they_lie(call, database: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, path in ((here, "posts.csv"), (there, "data/copy.csv")):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(posts())
        study = PAIRS.replace("posts.csv", path) + '[model]\nname = "linear"\n' + SHORT.format(trials=2)
        (folder / "s.toml").write_text(study)
    first = call("run", here / "s.toml", "--workers", "1", HPO_STORAGE=database)
    assert first.returncode == 0, first.stderr
    more = call("run", there / "s.toml", "--workers", "1", "--trials", "4", "--force", HPO_STORAGE=database)
    assert more.returncode == 0, more.stderr
    assert json.loads((tmp_path / "s.best.json").read_text())["trials"]["complete"] == 4
    (there / "data/copy.csv").write_text(posts(label="1"))
    other = call("run", there / "s.toml", "--workers", "1", "--trials", "5", "--force", HPO_STORAGE=database)
    assert other.returncode == 4
    assert "posts" in other.stderr or "data" in other.stderr


def test_a_study_whose_trials_all_diverge_says_so_each_time(call, database: str, tmp_path: Path) -> None:
    study = tiny(tmp_path, trials=3)
    text = study.read_text().replace("low = 1e-3, high = 3e-2", "low = 1e3, high = 1e30")
    study.write_text(text.replace("[training]\n", "[training]\nclip_norm = 0\n"))
    for _ in range(2):
        ended = call("run", study, "--workers", "1", HPO_STORAGE=database)
        assert ended.returncode == 1, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        told = " ".join(ended.stderr.split())
        assert re.search(r"none of the 3 trials .* is complete, .*3 diverged.*another name", told), told


@pytest.mark.parametrize("environment", ASCII.values(), ids=ASCII)
def test_output_that_is_not_utf8(call, database: str, tmp_path: Path, environment: dict[str, str]) -> None:
    data = posts().replace("sad", "traurig – müde 悲")
    (tmp_path / "posts.csv").write_text(data, encoding="utf-8")
    (tmp_path / "s.toml").write_text(PAIRS + '[model]\nname = "linear"\n' + SHORT.format(trials=1))
    for verb in (
        ("validate", "s.toml"),
        ("run", "s.toml", "--workers", "1"),
        ("status", "s.toml"),
        ("why", "s.toml", "0"),
    ):
        ended = call(*verb, HPO_STORAGE=database, **environment)
        assert ended.returncode == 0, (verb, ended.stderr)
        assert "Traceback" not in ended.stderr
        assert ended.stdout.isascii()
    written = json.loads((tmp_path / "s.best.json").read_text(encoding="utf-8"))
    assert "traurig – müde 悲" in written["cv"]["per_criterion"]


OUT_OF_RANGE = {
    "learning rate": ("[training]\nlearning_rate = 1e39\n", "learning_rate"),
    "range of learning rates": (
        "[training]\nlearning_rate = { low = 1e-3, high = 1e39, log = true }\n",
        "learning_rate",
    ),
    "grace period": ("[service]\ngrace_seconds = 1e20\n", "grace_seconds"),
    "patience": (f"[training]\npatience = {{ low = 1, high = {10**309} }}\n", "patience"),
    "range beyond 2**53": (f"[training]\npatience = {{ low = 1, high = {2**60} }}\n", "patience"),
    "integer beyond 2**53": (f"[training]\nwarmup_steps = {2**60}\n", "warmup_steps"),
}


def test_a_run_says_what_it_noticed_in_the_data(call, database: str, tmp_path: Path) -> None:
    without_group = "".join(line.rpartition(",")[0] + "\n" for line in posts().splitlines())
    long = without_group.replace("post 3. It was a day.", "我今天去了学校" * 100).replace("post 5.", "post 4.")
    (tmp_path / "posts.csv").write_text(long, encoding="utf-8")
    (tmp_path / "s.toml").write_text(PAIRS + '[model]\nname = "linear"\n' + SHORT.format(trials=1))
    for verb, *more in (("validate",), ("run", "--workers", "1")):
        ended = call(verb, "s.toml", *more, HPO_STORAGE=database)
        said = " ".join((ended.stdout + ended.stderr).split())
        assert ended.returncode == 0, said
        assert "there is no column group" in said
        assert "longer than the 256 tokens" in said
        assert "2 posts share their text" in said


@pytest.mark.parametrize(("tables", "named"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_a_number_that_nothing_could_use(call, tmp_path: Path, tables: str, named: str) -> None:
    (tmp_path / "s.toml").write_text(SYNTHETIC + IRIS + tables)
    ended = call("validate", "s.toml")
    assert ended.returncode == 2, ended.stdout
    assert "Traceback" not in ended.stderr
    assert named in ended.stderr
    assert "unknown" not in ended.stderr
    assert len(ended.stderr) < 400


MANY = {
    "wrong": f"choices = {['x'] * 3000}",
    "repeated": f"choices = {[*range(1, 3001), *range(1, 3001)]}",
    "without the default": f"choices = {[*range(1, 3001)]}, default = 5000",
}


@pytest.mark.parametrize("choices", MANY.values(), ids=MANY)
def test_a_long_list_of_mistakes_is_told_shortly(call, tmp_path: Path, choices: str) -> None:
    (tmp_path / "s.toml").write_text(SYNTHETIC + IRIS + f"[training]\npatience = {{ {choices} }}\n")
    ended = call("validate", "s.toml")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert 1 <= len(ended.stderr.splitlines()) <= 22
    assert len(ended.stderr) < 4000


@pytest.mark.parametrize("criterion", ["[/bold]", "[red]", "[link=file:///etc/passwd]x[/link]"])
def test_names_in_the_data_are_no_markup(call, database: str, tmp_path: Path, criterion: str) -> None:
    (tmp_path / "posts.csv").write_text(posts().replace("sad", criterion))
    (tmp_path / "s.toml").write_text(PAIRS + '[model]\nname = "linear"\n')
    ended = call("validate", "s.toml")
    assert ended.returncode == 0, ended.stderr
    assert criterion[:20] in ended.stdout


@pytest.mark.parametrize(("kind", "large"), [("date32", 10**7), ("duration", 2**62)])
def test_dates_that_python_does_not_know(call, tmp_path: Path, kind: str, large: int) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    count = 30
    columns = {
        "post_id": pa.array(
            [large + n for n in range(count)], {"date32": pa.date32(), "duration": pa.duration("s")}[kind]
        ),
        "post": [f"post {n}. It was a day." for n in range(count)],
        "criterion": ["sad"] * count,
        "label": [n % 2 for n in range(count)],
    }
    pq.write_table(pa.table(columns), tmp_path / "posts.parquet")
    (tmp_path / "s.toml").write_text(PAIRS.replace("posts.csv", "posts.parquet") + IRIS)
    ended = call("validate", "s.toml")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert (
        "column 'post_id' holds values that cannot be read, such as dates outside the years 1 to 9999" in ended.stderr
    )
