"""The documentation is true: its scripts run, and its commands, files, modules and figures exist."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import optuna
import pytest
import typer
from browser import Browser, installed
from loop_tools import tiny

from sparse_evidence.core.corpus.recognise import recognise
from sparse_evidence.core.corpus.sources import SOURCES
from sparse_evidence.hpo.cli.app import app
from sparse_evidence.hpo.database import embedded

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
HALVES = ("core", "hpo")
TRIALS = 12
"""Enough for pruned trials and for an ensemble; the search that the pages show has 40."""
VERBS = sorted(typer.main.get_command(app).commands)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def docs(name: str) -> str:
    """The text of a page in docs/."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def code_block(page: str, language: str, containing: str) -> str:
    """The only code block of that language which contains a text."""
    fenced = page.split("```")[1::2]
    (block,) = (block for block in fenced if block.startswith(f"{language}\n") and containing in block)
    return block.removeprefix(f"{language}\n")


def run_python(code: str, folder: Path, **environment: str) -> str:
    """Run a script as a user would, with warnings as errors; returns what it prints."""
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_by_hand_runs_and_finds_the_planted_evidence(tmp_path):
    printed = run_python(code_block(docs("by-hand.md"), "python", "Trainer("), tmp_path)
    value, low, high = map(float, re.findall(r"[\d.]+", printed.splitlines()[-1]))
    assert low < value < high
    assert value > 0.5, "the planted evidence is not found"


def commands(page: str) -> list[str]:
    """The `hpo` commands of the only block of a page that fits a model, without comments."""
    lines = code_block(page, "console", "hpo fit").split("\n")
    without_comments = [line.partition("  #")[0].removeprefix("$ ") for line in lines]
    return [line.rstrip() for line in without_comments if line.startswith("hpo ")]


@pytest.mark.slow(seconds=90)
@pytest.mark.parametrize(("page", "study"), [("demo.md", "quickstart"), ("tutorial.md", "pairs")])
def test_the_path_from_data_to_predictions(page, study, tmp_path):
    """The commands of the pages as they are written, on studies with fewer trials."""
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    lines = commands(docs(page))
    verbs = [line.split()[1] for line in lines]
    begin = ["init"] if study == "pairs" else []
    assert verbs == [*begin, "validate", "run", "fit", "evaluate", "predict", "explain"]
    if study == "quickstart":  # the slowest line, the same on both pages, and the only one that is about no study
        assert lines.pop() == commands(docs("tutorial.md"))[-1]
    file = "pairs.toml" if study == "pairs" else "studies/quickstart.toml"
    lines.insert(len(begin), f"grep -q '^trials = 40 *' {file} && sed -i 's/^trials = 40/trials = {TRIALS}/' {file}")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"HPO_CONFIRM_LEADERS": "2", "HPO_CONFIRM_SPLITS": "2"}
    try:
        call = ["bash", "-euc", "\n".join(lines)]
        done = subprocess.run(
            call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
    finally:
        remove_database(tmp_path)
    assert "look 1 at the hold-out" in done.stdout
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["post_id"] for row in rows] == ["market", "library", "budget"]
    if study == "quickstart":
        assert [row["very_negative.decision"] for row in rows] == ["1", "0", "0"]
        assert [row["positive.decision"] for row in rows] == ["0", "1", "0"]
        assert rows[0]["negative.evidence"].startswith("Forty people were killed")
    if study == "pairs":
        assert "<html" in (tmp_path / "model.html").read_text(encoding="utf-8")
    best = json.loads((tmp_path / f"{study}.best.json").read_text())
    assert (best["trials"]["requested"], best["confirmed"]["splits"]) == (TRIALS, 2)


def test_the_readme_has_the_commands_of_the_tutorial():
    """It names other files, so it need not be run a second time."""
    names = {"studies/pairs.csv": "posts.csv", "studies/new_posts.csv": "new_posts.csv", "pairs.": "posts."}
    expected = "\n".join(commands(docs("tutorial.md")))
    for theirs, ours in names.items():
        expected = expected.replace(theirs, ours)
    assert "\n".join(commands(README)) == expected


@pytest.mark.slow(seconds=30)
def test_the_python_api_works_as_described(tmp_path):
    """All blocks of docs/python.md in order, in one process and on one study."""
    tiny(tmp_path, name="study", leaders=2).rename(tmp_path / "study.toml")
    blocks = [
        block.removeprefix("python\n") for block in docs("python.md").split("```")[1::2] if block.startswith("python\n")
    ]
    assert len(blocks) == 5
    try:
        printed = run_python("\n".join(blocks), tmp_path)
    finally:
        remove_database(tmp_path)
    assert "NaN" in printed, "the leaderboard: a baseline is not compared with itself"
    assert "params.model.C" in printed
    assert "probability" in printed
    assert "'training.learning_rate': 1.0" in printed, "the importances of plain Optuna"
    assert {path.name for path in tmp_path.iterdir()} == {
        ".hpo", "study.toml", "script.py", "study.best.json", "model"
    }  # fmt: skip


@pytest.mark.slow(seconds=60)
def test_the_notebook_runs(tmp_path):
    notebook = tmp_path / "search.ipynb"
    shutil.copy(ROOT / "docs" / "search.ipynb", notebook)
    assert not any(cell.get("outputs") for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"])
    code = (
        "import nbclient, nbformat\n"
        "notebook = nbformat.read('search.ipynb', 4)\n"
        "nbclient.NotebookClient(notebook, timeout=240, kernel_name='python3').execute()\n"
        "nbformat.write(notebook, 'search.ipynb')"
    )
    try:
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=300, check=True)
        assert embedded.Server(embedded.home(tmp_path / ".hpo")).pid() is None, "closing it stops its database"
    finally:
        remove_database(tmp_path)
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    shown = ["".join(map(text_of, cell.get("outputs", []))) for cell in cells]
    run, leaderboard, predictions = shown[3], shown[7], shown[14]
    assert re.search(r"\d complete · \d pruned · 0 running", run), run
    assert "notebook: average precision" in run
    assert run.count("running") == 1, "the progress is redrawn in place"
    assert {"ensemble", "default", "retrieval", "confirmed"} <= set(re.findall(r"\w+", leaderboard))
    assert "probability" in predictions
    assert "Then we walked home." in predictions or "We met at the station." in predictions
    look_at(notebook, tmp_path)


def look_at(notebook: Path, folder: Path) -> None:
    """Draw a notebook that was run in a real browser, in both widths and colour schemes; skipped without a browser."""
    import nbconvert

    executable = installed()
    if executable is None:
        pytest.skip("no browser is installed, so nobody has looked at the notebook")
    with Browser(executable, folder / "profile") as browser:
        for theme in ("light", "dark"):
            html, _ = nbconvert.HTMLExporter(theme=theme, require_js_url="", mathjax_url="").from_filename(
                str(notebook)
            )
            page = folder / f"{theme}.html"
            page.write_text(html, encoding="utf-8")
            for width in (1280, 390):
                browser.open(page.as_uri(), width=width, height=900, dark=theme == "dark", mobile=width < 500)
                picture = folder / f"notebook-{width}-{theme}.png"
                browser.picture(picture)
                print(picture)
                assert browser.run("document.querySelectorAll('table.dataframe').length") >= 2, "data frames are tables"
                assert browser.run("[...document.querySelectorAll('.jp-RenderedHTMLCommon, pre')].length") > 10
                assert picture.stat().st_size > 10_000


def text_of(output: dict[str, Any]) -> str:
    """What a notebook's output shows as text."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain") or ())


def remove_database(folder: Path) -> None:
    if (folder / ".hpo").is_dir():  # as root the database lies elsewhere
        shutil.rmtree(embedded.home(folder / ".hpo"), ignore_errors=True)


def test_plain_optuna_opens_a_study(database, tmp_path):
    study = optuna.create_study(storage=database, study_name="study", direction="maximize")
    study.enqueue_trial({"x": 0.25})
    study.optimize(lambda trial: trial.suggest_float("x", 0.0, 0.25), n_trials=4)
    printed = run_python(code_block(docs("python.md"), "python", "storage_url"), tmp_path, HPO_STORAGE=database)
    assert printed == "0.25 {'x': 1.0}\n"


def test_the_example_table_loads(tmp_path):
    rows = code_block(docs("data.md"), "csv", "post_id,")
    assert rows == code_block(README, "csv", "post_id,")
    (tmp_path / "posts.csv").write_text(rows, encoding="utf-8")
    corpus = SOURCES["pairs"](path="posts.csv").load(tmp_path)
    assert (len(corpus), len(corpus.criteria)) == (2, 2)
    assert (corpus.labels == 1).sum() == 1


def test_the_wide_example_is_read_as_the_text_says(tmp_path):
    (tmp_path / "posts.csv").write_text(code_block(docs("data.md"), "csv", "author_id"), encoding="utf-8")
    found = recognise(tmp_path / "posts.csv").source
    settings = tomllib.loads(code_block(docs("data.md"), "toml", "[data.criteria]"))["data"]
    assert settings["columns"] == found.columns
    assert settings["criteria"].keys() == found.criteria.keys()
    corpus = SOURCES["pairs"](**{**settings, "path": str(tmp_path / "posts.csv")}).load(Path())
    assert corpus.post_ids == ("17", "18", "19")
    assert corpus.groups == ("u4", "u9", "u4")
    assert corpus.labels.tolist() == [[1, 0], [0, -1], [-1, 1]]


# ---- names -----------------------------------------------------------------------------------------------------------


@each_page
def test_linked_files_exist(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@each_page
def test_python_names_exist(page):
    """`sparse_evidence.core.explain`, `sparse_evidence.core.seeding.stable_seed`, and every imported name."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\bsparse_evidence(?:\.\w+)+", text):
        pkgutil.resolve_name(name)
    for module, names in re.findall(r"^from (sparse_evidence[\w.]*) import (\([^)]*\)|.+)$", text, re.MULTILINE):
        for name in re.findall(r"\w+", names):
            pkgutil.resolve_name(f"{module}:{name}")


@each_page
def test_source_files_exist(page):
    """`core/config.py`, `hpo/cli/`, `tests/acceptance/test_loop_*.py`, `studies/smoke.toml`."""
    paths = re.findall(
        r"(?<![\w./-])(?:core|hpo|benchmarks|tests|studies|deploy|docs)/[\w./*-]*", page.read_text(encoding="utf-8")
    )
    missing = [path for path in paths if not list(ROOT.glob(path.rstrip(".")))]
    assert missing == []


@each_page
def test_benchmark_commands_exist(page):
    for module in re.findall(r"python -m\s+(benchmarks[.\w]*)", page.read_text(encoding="utf-8")):
        assert importlib.util.find_spec(module), module


def test_contributing_lists_every_module():
    tree = code_block((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "", "core/\n")
    paths = tree_paths(tree)
    sources = [path for half in HALVES for path in (ROOT / half).rglob("*.py")]
    modules = {path.relative_to(ROOT).as_posix() for path in sources if path.name != "__init__.py"}
    assert {path for path in paths if path.endswith(".py")} == modules
    packages = {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in sources if path.name == "__init__.py"}
    assert {path for path in paths if path.endswith("/")} == packages


def tree_paths(tree: str) -> list[str]:
    """Full paths of an indented tree, two spaces a level; folders end with a slash."""
    paths: list[str] = []
    above: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        above[depth:] = [name]
        paths.append("".join(above))
    return paths


def test_every_verb_and_target_is_named():
    printed = subprocess.run(
        [sys.executable, "-m", "sparse_evidence.hpo", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", printed), verb
        assert f"`hpo {verb}" in README, verb
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"[`$] ?make ([a-z-]+)", README)
    assert {"demo", "test", "lint", "bench", "docs"} <= {*targets}
    for page in PAGES:
        for target in re.findall(r"[`$] ?make ([a-z-]+)", page.read_text(encoding="utf-8")):
            assert f"\n{target}:" in makefile, target


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_measured_figures_are_those_of_the_last_measurement():
    """`python -m benchmarks` writes the file; the tables in the documentation are copied by hand."""
    command = [sys.executable, "-m", "benchmarks", "table"]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    performance = docs("performance.md").splitlines()
    assert len(table) > 10
    assert set(table) <= set(performance)
    measured = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    quoted = re.findall(r"\(`([a-z]+\.\w+)`\) \| ([\d.-]+) \|", docs("index.md"))
    assert len(quoted) > 5
    assert quoted == [(key, f"{measured[key]:.3g}") for key, _ in quoted]


# ---- commands --------------------------------------------------------------------------------------------------------


def shell_lines() -> list[tuple[str, str]]:
    """Every line of a `console` block that calls `hpo`, with its page, up to a pipe or a comment."""
    blocks = [(page.name, block) for page in PAGES for block in page.read_text(encoding="utf-8").split("```")[1::2]]
    lines = [(page, line) for page, block in blocks if block.startswith("console\n") for line in block.splitlines()]
    calls = [(page, re.search(r"(?:^\$ |&& )(?:[A-Z_]+=\S+ )*(hpo .*)", line)) for page, line in lines]
    return [(page, re.split(r"\s+[|&;#]", call[1])[0]) for page, call in calls if call]


def test_the_commands_of_every_page_are_found():
    assert {"README.md", "demo.md", "tutorial.md", "recipes.md", "operations.md"} <= {page for page, _ in shell_lines()}


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_commands_are_understood(page, line):
    """Verb, options and the number of arguments, as the command line parses them; nothing is run."""
    _, verb, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[verb]
    context = typer.Context(command, info_name=verb, allow_extra_args=False, ignore_unknown_options=False)
    command.parse_args(context, arguments)


@each_page
def test_options_exist(page):
    """`hpo run STUDY --workers N`, anywhere in the text: the verb has each option."""
    verbs = typer.main.get_command(app).commands
    for call in re.findall(r"`hpo (\w+[^`]*)`", page.read_text(encoding="utf-8")):
        verb, *words = call.split()
        if verb in verbs:
            known = {option for parameter in verbs[verb].params for option in parameter.opts} | {"--help"}
            assert set(re.findall(r"--[a-z-]+", " ".join(words))) <= known, call
        else:
            assert verb in {"command", "VERB"}, call
