"""The dashboard of a study in work, as a person sees it and changes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import Browser, installed
from dashboard_pages import look_at
from study_in_work import PRUNED_AT_THE_END_OF_A_STAGE, make_study

from sparse_evidence.hpo.database.connection import engine_of
from sparse_evidence.hpo.results.best import best_result


@pytest.mark.slow
def test_the_pages_of_a_study_in_work(start, call, database: str, tmp_path: Path) -> None:
    study = make_study(tmp_path, database)
    best = best_result(study)
    explained = call("why", tmp_path / "tiny.toml", "2", HPO_STORAGE=database)
    assert "asked for at least 0.250004" in " ".join(explained.stdout.split())
    as_json = json.loads(call("why", tmp_path / "tiny.toml", best["trial"], "--json", HPO_STORAGE=database).stdout)
    assert (as_json["rank"], as_json["value"], as_json["folds"]) == (1, best["value"], best["cv"]["folds"])
    unknown = call("why", tmp_path / "tiny.toml", "6", HPO_STORAGE=database)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == "hpo: the study 'tiny' has no trial 6; its trials are 0 to 5\n"
    server = start("dashboard", "--port", "0", HPO_STORAGE=database)
    assert server.stdout is not None
    page = server.stdout.readline().strip()
    look_at(
        page, tmp_path, study=1, facts=["The best of 2 complete trials", f"trial {best['trial']}: {best['value']:.4f}"],
        trials={
            best["trial"]: [str(best["value"]), f"decision threshold {round(best['cv']['threshold'], 4)}"],
            PRUNED_AT_THE_END_OF_A_STAGE: ["asked for at least 0.250004", "mean of these folds 0.25"],
        },
    )  # fmt: skip
    executable = installed()
    assert executable is not None
    with Browser(executable, tmp_path / "second-profile") as browser:  # who edits a note is told why that fails
        browser.open(f"{page}studies/1/note", width=1400)
        browser.until("!!document.querySelector('[data-testid=EditIcon]')")
        browser.run("document.querySelector('[data-testid=EditIcon]').closest('button').click()")
        browser.until("!!document.querySelector('textarea')")
        browser.run("document.querySelector('textarea').focus()")
        browser.press("x")
        browser.until("[...document.querySelectorAll('button')].some(b => b.innerText === 'SAVE' && !b.disabled)")
        browser.run("[...document.querySelectorAll('button')].find(b => b.innerText === 'SAVE').click()")
        browser.until("document.body.innerText.includes('read-only; start with --allow-changes to edit')")
    engine_of(study).dispose()
