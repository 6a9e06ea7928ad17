"""The Python API: a study is opened, run and read from Python, and its value computed again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from loop_tools import at_work, tiny

import sparse_evidence.hpo as hpo
from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database.claims_sql import list_claims
from sparse_evidence.hpo.database.connection import engine_of
from sparse_evidence.hpo.errors import RefusedError, RunError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def document(folder: Path) -> dict[str, Any]:
    """A study as a dict."""
    return tomllib.loads(tiny(folder, leaders=2).read_text())


@pytest.fixture(scope="module")
def study(document: dict[str, Any], database_of_module: str, folder: Path) -> Any:
    """The study, run to its end from a dict."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        with hpo.run(document, workers=1, storage=database_of_module, progress=False) as opened:
            assert [path.name for path in folder.iterdir() if "tiny" in path.name] == ["tiny.toml"], "nothing is left"
            yield opened


# --- what is imported -------------------------------------------------------------------------------------------------


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, sparse_evidence.hpo as hpo; assert 'run' in dir(hpo)\n"
        "from sparse_evidence.hpo import open, run, rebuild, Study\n"
        "names = ('torch', 'optuna', 'sqlalchemy', 'numpy', 'pandas', 'transformers')\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_a_model_knows_nothing_of_studies():
    code = (
        "import sys; from sparse_evidence.hpo import load_model\n"
        "print([name for name in ('optuna', 'sqlalchemy', 'sparse_evidence.hpo.api') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'opne'"):
        hpo.opne  # type: ignore[attr-defined] # noqa: B018


# --- a study that is run ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_result_and_its_value_computed_again(study, document, folder, monkeypatch):
    monkeypatch.chdir(folder)
    best = study.best()
    assert (best["study"], best["trials"]["complete"], best["confirmed"]["splits"]) == ("tiny", 3, 2)
    assert study.rebuild() == best["value"]
    # and from the exported file alone, without a database
    path = study.export(folder / "best.json")
    assert study.export() == Path("tiny.best.json")
    assert {**json.loads(path.read_text()), "provenance": 0} == {**best, "provenance": 0}
    with pytest.raises(UserError, match=r"tiny\.toml is no result of a study"):
        study.export("tiny.toml")
    assert best["claim"] in study.report().read_text().replace("\u00a0", " ")
    assert (folder / "tiny.report.html").is_file()
    for named in (folder / "tiny.toml", str(folder / "tiny.toml"), document):
        assert hpo.rebuild(path, named) == best["value"]
    other = document | {"split": document["split"] | {"seed": 1}}
    with pytest.raises(RefusedError, match=r"is not of .* as it is now"):
        hpo.rebuild(best, other)
    with pytest.raises(UserError, match=r"tiny\.toml is not JSON"):
        hpo.rebuild(folder / "tiny.toml", document)
    with pytest.raises(UserError, match="the result is not the result of a study"):
        hpo.rebuild({"study": "x"}, document)
    with pytest.raises(UserError, match="does not name its study file; give the study, too"):
        hpo.rebuild(best)
    with pytest.raises(UserError, match="cannot be read"):
        hpo.rebuild("nowhere.json", document)


@pytest.mark.slow
def test_a_model_is_fitted_to_the_result(study, folder, database_of_module, monkeypatch):
    monkeypatch.chdir(folder)
    model = study.fit("model", what="trial")
    posts = ["The first post. It has two sentences."]
    expected = model.probabilities(posts)
    assert expected.shape == (1, 2)
    with hpo.open("tiny.toml", storage=database_of_module) as opened:
        best = opened.best()
    assert best["provenance"]["study_file"] == "tiny.toml"
    hpo.fit(best, folder / "again", what="trial", single=False)
    for name in ("model", "again"):
        assert (hpo.load_model(name).probabilities(posts) == expected).all()
    with pytest.raises(UserError, match="what = 'best' is unknown; it may be winner, ensemble"):
        study.fit("other", what="best")
    with pytest.raises(UserError, match="is a file; name a new folder"):
        study.fit("tiny.toml")


@pytest.mark.slow
def test_trials_and_leaderboard_are_data_frames(study):
    trials = study.trials()
    assert isinstance(trials, pd.DataFrame)
    assert list(trials["state"]) == ["complete"] * 3
    assert list(trials["value"]) == [trial.value for trial in study.optuna().trials]
    assert list(trials["params.training.learning_rate"]) == [
        trial.params["training.learning_rate"] for trial in study.optuna().trials
    ]
    assert set(trials["folds"]) == {3}
    assert (trials["seconds"] > 0).all()
    board = study.leaderboard(top=2)
    assert isinstance(board, pd.DataFrame)
    assert {"ensemble", "default", "linear", "chance"} < set(board["name"])
    best = study.best()["confirmed"]["scores"]["ensemble"]["mean"]
    assert board.set_index("name").loc["ensemble", "confirmed"] == best


@pytest.mark.slow
def test_it_is_an_optuna_study(study, database_of_module):
    opened = study.optuna()
    assert isinstance(opened, optuna.Study)
    assert len(opened.trials_dataframe()) == 3
    assert optuna.load_study(study_name="tiny", storage=database_of_module).best_value == opened.best_value


@pytest.mark.slow
def test_running_it_again_does_nothing_and_a_file_is_the_same_study(study, folder, database_of_module, capsys):
    before = study.trials()
    with hpo.run(folder / "tiny.toml", workers=1, storage=database_of_module) as again:
        pd.testing.assert_frame_equal(again.trials(), before)
        assert repr(again) == "<Study 'tiny'>"
    assert repr(again) == "<Study 'tiny', closed>"
    printed = capsys.readouterr().out
    assert "nothing to do: 3 trials were requested and 3 are finished" in printed
    assert "tiny: average precision" in printed
    with pytest.raises(UserError, match="is closed; open it again"):
        again.best()
    with hpo.open(str(folder / "tiny.toml"), storage=database_of_module) as opened:
        assert opened.best()["value"] == study.best()["value"]


@pytest.mark.slow
def test_a_warm_start(study, document, folder, database_of_module, monkeypatch):
    monkeypatch.chdir(folder)
    best = study.best()
    path = folder / "other.best.json"
    path.write_text(json.dumps(best))
    rates = {"low": 1e-3, "high": 3e-2, "log": True, "default": 2e-3}
    training = document["training"] | {"learning_rate": rates, "epochs": 1, "patience": 1}
    other = document | {"name": "warm", "training": training, "confirm": {"leaders": 0}}
    with hpo.run(other, workers=1, trials=2, storage=database_of_module, start_from=path, progress=False) as warm:
        trials = warm.trials()
    assert list(trials["state"]) == ["complete", "complete", "waiting", "waiting"], "two were asked for"
    rates = list(trials["params.training.learning_rate"])[:2]
    assert rates == [2e-3, best["params"]["training.learning_rate"]]


@pytest.mark.slow
def test_workers_that_fail_are_an_error(document, folder, database, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HPO_ARTIFACTS", str(folder / "tiny.toml"))  # a file where a folder must be
    with pytest.raises(RunError, match=r"^no worker is left, and 0 of 3 trials are finished: a worker ended with exit"):
        hpo.run(document, workers=1, storage=database, progress=False)
    assert not list(folder.glob(".tiny*"))


@pytest.mark.slow
def test_an_interrupt_hands_the_trials_back(document, tmp_path, database):
    long = document | {"training": document["training"] | {"epochs": 10_000, "patience": 10_000}}
    code = (
        "import json, sys, sparse_evidence.hpo as hpo\n"
        "try: hpo.run(json.loads(sys.argv[1]), workers=1, storage=sys.argv[2])\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(long), database], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        running = at_work(database, lambda claims: len(claims) == 1)
        assert len(list(tmp_path.glob(".tiny.*.toml"))) == 1
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert out.splitlines()[-1] == "interrupted"
    assert "0 of 3 trials finished" in out
    assert [claim["released"] for claim in list_claims(engine_of(running), running)] == [True]
    assert not list(tmp_path.glob(".tiny*"))
    engine_of(running).dispose()


# --- what cannot be opened --------------------------------------------------------------------------------------------


def test_a_dict_is_checked_as_a_file_is(document, database):
    with pytest.raises(
        UserError, match=r"the study has 2 mistakes:\n  modle: unknown key, did you mean model\?.*\n.*missing"
    ):
        hpo.open({"modle" if key == "model" else key: value for key, value in document.items()}, storage=database)
    with pytest.raises(UserError, match="name: missing"):
        hpo.open({key: value for key, value in document.items() if key != "name"}, storage=database)
    with pytest.raises(UserError, match="a study is a file or a dict, not a int"):
        hpo.open(3, storage=database)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="There is no study 'tiny'"):
        hpo.open(document, storage=database)


def test_nothing_is_opened_where_no_study_was_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"There is no database in .*\.hpo, so no study was run here"):
        hpo.open(document)
    assert list(tmp_path.iterdir()) == []


def test_running_outside_the_main_thread_is_refused(document, database):
    errors: list[BaseException] = []

    def run() -> None:
        try:
            hpo.run(document, storage=database)
        except UserError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "works in the main thread only" in str(errors[0])
