"""The documentation site: it is built without a warning, knows what the code knows, and needs no network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
import typer
from browser import Browser, installed

from sparse_evidence.core.config import LOSSES, MODELS, ChunksConfig, SplitConfig, TrainingConfig
from sparse_evidence.core.corpus.sources import SOURCES
from sparse_evidence.hpo.cli.app import app
from sparse_evidence.hpo.errors import Exit
from sparse_evidence.hpo.study.config import ConfirmConfig, PrunerConfig, SearchConfig, ServiceConfig
from sparse_evidence.hpo.study.fields import fields_of

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once; every warning is an error: broken links and anchors, names that do not exist."""
    folder = tmp_path_factory.mktemp("site")
    call = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(folder),
    ]  # quiet, it warns of nothing
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "index.html").is_file()
    return folder


def text(site: Path, page: str) -> str:
    """What a page says, without its tags."""
    html = (site / f"{page}.html").read_text(encoding="utf-8")
    return unescape(re.sub(r"<[^>]+>", "", html))


def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    """The site's own configuration, on one page."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A page\n\n[to nowhere](nowhere.md)\n", encoding="utf-8")
    lines = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[0].splitlines()
    kept = [line for line in lines if not line.startswith(("hooks:", "watch:"))]
    (tmp_path / "mkdocs.yml").write_text("\n".join(kept), encoding="utf-8")
    call = [sys.executable, "-m", "mkdocs", "build"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr


def test_every_setting_is_there(site: Path) -> None:
    page = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    tables = {
        **{f"data-{name}": cls for name, cls in SOURCES.items()},
        **{f"model-{name}": cls for name, cls in MODELS.items()},
        **{f"loss-{name}": cls for name, cls in LOSSES.items()},
        "chunks": ChunksConfig,
        "split": SplitConfig,
        "search": SearchConfig,
        "pruner": PrunerConfig,
        "training": TrainingConfig,
        "confirm": ConfirmConfig,
        "service": ServiceConfig,
    }
    for table, cls in tables.items():
        assert f'id="{table}"' in page
        kinds = {"data": "source", "model": "name", "loss": "name"}
        settings = [key for key in fields_of(cls) if key != kinds.get(table.partition("-")[0])]
        missing = [key for key in settings if f'id="{table}.{key}"' not in page]
        assert missing == [], table
    words = text(site, "reference/settings")
    assert re.search(r"folds\s+a whole number from 2 to 50; default 5", words)
    rate = r"learning_rate\s+a number above 0[^;]*; default 0.003; searched by default: 0.0003 to 0.003"
    assert re.search(rate, words)


def test_every_verb_is_there_with_its_options(site: Path) -> None:
    page = " ".join(text(site, "reference/verbs").split())
    for verb, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"hpo {verb}" in page, verb
        for parameter in command.params:
            beginning = " ".join((parameter.help or "").replace("`", "").split()[:6])
            assert beginning in page, (verb, parameter.name)
            if parameter.param_type_name == "option":
                assert all(option in page for option in parameter.opts), (verb, parameter.name)


def test_every_exit_code_and_variable_is_there(site: Path) -> None:
    page = text(site, "reference/environment")
    for code in Exit:
        assert re.search(rf"^{int(code)}$\n+^{code.name}$", page, re.MULTILINE), code
    sources = [path.read_text(encoding="utf-8") for half in ("core", "hpo") for path in (ROOT / half).rglob("*.py")]
    variables = {name for source in sources for name in re.findall(r"\bHPO_[A-Z_]+", source)}
    internal = {"HPO_POSITION_FILE", "HPO_STOP_ON_EOF", "HPO_STUDY_NOTE"}  # from a supervisor to its workers
    assert {name for name in variables - internal if name not in page} == set()


def test_every_key_of_the_result_is_there(site: Path) -> None:
    page = (site / "reference" / "result.html").read_text(encoding="utf-8")
    schema = json.loads((ROOT / "studies" / "best.schema.json").read_text(encoding="utf-8"))
    for part in [schema, *schema["$defs"].values()]:
        for key in part.get("properties", {}):
            assert f"<code>{key}</code>" in page, key


def test_linked_files_of_the_repository_are_copied(site: Path) -> None:
    assert (site / "files/deploy/slurm-postgres.sh").read_bytes() == (ROOT / "deploy/slurm-postgres.sh").read_bytes()
    assert 'href="files/deploy/slurm-postgres.sh"' in (site / "recipes.html").read_text(encoding="utf-8")
    assert "0.2.0" in text(site, "changelog")


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = installed()
    if executable is None:
        pytest.skip("no browser is installed, so nobody has looked at the site")
    with Browser(executable, tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


def test_the_pages_fit_a_desktop_and_a_phone_and_ask_no_network(site: Path, browser: Browser, tmp_path: Path) -> None:
    for page in PAGES:
        for width in (1280, 390):
            browser.open(
                (site / f"{page}.html").as_uri(), width=width, height=900, dark=width == 390, mobile=width == 390
            )
            assert browser.run("document.documentElement.scrollWidth") <= width, page
            assert browser.run("getComputedStyle(document.body).fontFamily.includes('system-ui')")
    assert [url for url in browser.requests if not url.startswith(("file:", "data:", "about:"))] == []
    assert browser.console == []
    for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
        for page in ("index", "how-it-works"):
            browser.open((site / f"{page}.html").as_uri(), width=width, height=900, dark=dark, mobile=width == 390)
            picture = tmp_path / f"{page}-{width}-{'dark' if dark else 'light'}.png"
            browser.picture(picture)
            print(picture)
    smallest = (
        "Math.min(...[...document.querySelectorAll('svg.drawing text')].map(e => e.getBoundingClientRect().height))"
    )
    assert browser.run("document.querySelectorAll('svg.drawing').length") == 4
    assert browser.run(smallest) >= 11, "the text of drawings can be read on a phone"


def test_the_search_works_from_a_disk(site: Path, browser: Browser) -> None:
    browser.open((site / "index.html").as_uri(), width=1280, height=900)
    browser.click("input.md-search__input")
    browser.until("document.querySelector('input.md-search__input') === document.activeElement")
    for letter in "grace_seconds":
        browser.press(letter)
    browser.until("document.querySelectorAll('.md-search-result__link').length > 0")
    found = browser.run("[...document.querySelectorAll('.md-search-result__link')].map(link => link.href)")
    assert any("reference/settings.html" in link for link in found)
