"""Studies as runs of a real MLflow server."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import optuna
import processes
import pytest
import sqlalchemy as sa
from safetensors.numpy import load_file
from tiny import task
from waiting import until

from sparse_evidence.core.config import (
    DEFAULT_ENCODER,
    BCEConfig,
    CandidateConfig,
    ChunksConfig,
    LinearConfig,
    TrainingConfig,
)
from sparse_evidence.core.corpus.synthetic import SyntheticSource
from sparse_evidence.core.errors import UserError
from sparse_evidence.core.features.chunks import chunk
from sparse_evidence.core.features.encoders import locate
from sparse_evidence.core.features.views import embed_corpus
from sparse_evidence.core.fitted import Recipe, fit, load_model, save_model
from sparse_evidence.core.fitted.fitting import Ground
from sparse_evidence.core.splits import kfold
from sparse_evidence.hpo.cli import app
from sparse_evidence.hpo.database import predictions, record
from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.database.locks import try_export_lock
from sparse_evidence.hpo.database.optuna_storage import study_id
from sparse_evidence.hpo.database.studies import load_study
from sparse_evidence.hpo.errors import StorageError
from sparse_evidence.hpo.results import tracked, tracking
from sparse_evidence.hpo.results.best import FINGERPRINTS, BestResult, best_result
from sparse_evidence.hpo.running import conclusions, objective
from sparse_evidence.hpo.running.artifacts import Checkpoints, open_store
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.joining import join_study, measure_baselines

mlflow = pytest.importorskip("mlflow.tracking", reason="the extra mlflow is not installed")

ROOT = Path(__file__).parents[3]
METRIC = "average_precision"


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow server` with its default store, a SQLite file in a folder of its own."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **settings}, stdout=log, stderr=log, start_new_session=True
        )

    def is_up() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        until(is_up, 180, "the MLflow server")
        assert (folder / "mlflow.db").exists()
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def trained(database_of_module: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database with a study of three trials and its conclusions."""
    folder = tmp_path_factory.mktemp("study")
    data = task(folder)
    study = join_study(data.definition, data, database_of_module, trials=3)
    measure_baselines(study, data)
    claims = Claims(engine_of(study), study, budget=3, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)
    checkpoints = Checkpoints(open_store(str(folder / "artifacts")), every_seconds=5)
    for _ in range(3):
        claim = claims.claim()
        assert isinstance(claim, Claim)
        with claim:
            objective.run(claim, data, checkpoints, device="cpu", stop=lambda: False)
    assert conclusions.conclude_search(study, data)
    engine_of(study).dispose()
    return database_of_module


@pytest.fixture
def study(trained: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[optuna.Study]:
    """The study, opened for reading; every test has an experiment of its own."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    opened = load_study(open_storage(trained), "tiny")
    conclusion = opened.user_attrs[record.ENSEMBLE]
    yield opened
    opened.set_user_attr(record.ENSEMBLE, conclusion)
    opened.set_user_attr(record.CONFIRMED, None)
    engine_of(opened).dispose()


@pytest.fixture(scope="module")
def fitted(trained: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that is fitted to other posts, but says that it is of the study."""
    corpus = SyntheticSource(posts=60, criteria=2, sentences_mean=3).load(tmp_path_factory.mktemp("data"))
    encoder, chunks = locate(DEFAULT_ENCODER), ChunksConfig()
    view = embed_corpus(corpus, chunk(corpus.posts, chunks), encoder)[0]
    folds = kfold(corpus.groups, corpus.labels, 2, 0, criteria=[criterion.name for criterion in corpus.criteria])
    ground = Ground(corpus, folds, chunks, lambda _: view, {DEFAULT_ENCODER: encoder}, METRIC)
    recipe = Recipe(CandidateConfig(LinearConfig(), TrainingConfig(), BCEConfig()), 7, 1, 1.0, trial=0)
    folder = tmp_path_factory.mktemp("fitted") / "model"
    opened = load_study(open_storage(trained), "tiny")
    best = best_result(opened)
    engine_of(opened).dispose()
    info = {"study": best["study"], **{key: best["provenance"][key] for key in FINGERPRINTS}}
    save_model(fit([recipe], ground).model.with_info(info), folder, "# A card\n")
    return folder


def runs(tracker: str, experiment: str, *, nested: bool = False) -> list[Any]:
    """The runs that are not deleted: those of studies, or those nested in them."""
    client = mlflow.MlflowClient(tracking_uri=tracker)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return [run for run in found if (tracking.PARENT_TAG in run.data.tags) == nested]


def artifacts(tracker: str, run: str, folder: Path) -> Path:
    folder.mkdir()
    return Path(mlflow.MlflowClient(tracking_uri=tracker).download_artifacts(run, "", str(folder)))


def confirmed(best: BestResult, value: float = 0.5) -> dict[str, Any]:
    """The study as if it had been confirmed, won by the trial that is exported."""
    names = (str(best["trial"]), "ensemble", "linear")
    scores = {name: {"mean": value, "interval": [0.4, 0.6], "splits": [value]} for name in names}
    return {"study": "tiny/confirm", "finished": 3, "splits": 1, "members": [best["trial"]], "scores": scores,
            "winner": str(best["trial"]), "reason": "why", "over_default": None,
            "over_baseline": {"name": "linear", "value": 0.1, "interval": [-0.1, 0.3]}}  # fmt: skip


# ---- what is written -------------------------------------------------------------------------------------------------


def test_a_study_is_one_run_with_its_value_baselines_gains_and_curves(tracker, study, request):
    best = best_result(study)
    written = tracking.export(study, best, tracker)
    (run,) = runs(tracker, request.node.name)
    assert (run.info.run_id, run.info.run_name, run.info.status) == (written.run, "tiny", "FINISHED")
    assert written.url.endswith(f"/runs/{run.info.run_id}")
    trial, ensemble = study.trials[best["trial"]], best["ensemble"]
    assert ensemble is not None
    assert run.data.params["training.learning_rate"] == str(trial.params["training.learning_rate"])
    assert (run.data.params["model.name"], run.data.params["winner"]) == ("iris", str(best["winner"]))
    metrics = run.data.metrics
    assert metrics["corrected/ensemble"] == ensemble["corrected"]["value"]
    assert [metrics[f"corrected/ensemble.{end}"] for end in ("low", "high")] == ensemble["corrected"]["interval"]
    assert metrics["search/trial"] == best["value"]
    assert metrics["search/linear"] == best["cv"]["floors"]["linear"]
    assert metrics[f"gain/{ensemble['over_baseline']['name']}"] == ensemble["over_baseline"]["value"]
    winner = best["winner"]
    assert winner is not None
    assert metrics[METRIC] == (metrics["corrected/ensemble"] if winner == "ensemble" else metrics[f"search/{winner}"])
    assert run.data.tags["hpo.claim"] == best["claim"]
    assert best["claim"] in run.data.tags["mlflow.note.content"]
    history = mlflow.MlflowClient(tracking_uri=tracker).get_metric_history(run.info.run_id, f"curve/{METRIC}")
    curves = np.array(trial.user_attrs[record.CURVES]["scores"])
    assert [point.step for point in history] == list(range(1, curves.shape[1] + 1))
    assert [point.value for point in history] == pytest.approx(curves.mean(0))


def test_best_json_predictions_and_the_model_are_artifacts(tracker, study, fitted, tmp_path):
    best = best_result(study)
    found = artifacts(tracker, tracking.export(study, best, tracker, model=fitted).run, tmp_path / "down")
    files = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    expected = {"best.json", "predictions.safetensors", *(f"model/{path.name}" for path in fitted.iterdir())}
    assert files == expected
    content = json.loads((found / "best.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(json.loads((ROOT / "studies" / "best.schema.json").read_text())).validate(content)
    assert content == json.loads(json.dumps(best))
    assert load_model(found / "model").threshold == load_model(fitted).threshold
    arrays, stored = load_file(found / "predictions.safetensors"), predictions.load(study)
    np.testing.assert_array_equal(arrays["trial"], stored[best["trial"]])
    assert best["ensemble"] is not None
    mean = sum(member["weight"] * stored[member["trial"]] for member in best["ensemble"]["members"])
    np.testing.assert_allclose(arrays["ensemble"], mean, rtol=1e-5)


def test_ended_trials_are_nested_runs(tracker, study, request):
    written = tracking.export(study, best_result(study), tracker, trials=True)
    nested = {int(run.data.tags[tracking.TRIAL_TAG]): run for run in runs(tracker, request.node.name, nested=True)}
    assert written.trials == len(nested) == 3
    for trial in study.trials:
        run = nested[trial.number]
        assert run.data.tags[tracking.PARENT_TAG] == written.run
        assert run.data.tags[tracking.STATE_TAG] == trial.state.name.lower()
        assert run.data.params["training.learning_rate"] == str(trial.params["training.learning_rate"])
        value = {METRIC: trial.value} if trial.value is not None else {}
        assert {key: number for key, number in run.data.metrics.items() if key == METRIC} == value
        assert f"curve/{METRIC}" in run.data.metrics


# ---- exporting again -------------------------------------------------------------------------------------------------


def everything(tracker: str, experiment: str) -> list[Any]:
    """All runs of an experiment with their parameters, tags and every point of every metric."""
    client = mlflow.MlflowClient(tracking_uri=tracker)
    return sorted(
        [run.info.run_id, sorted(run.data.params.items()), sorted(run.data.tags.items()),
         [[(point.step, point.value, point.timestamp) for point in client.get_metric_history(run.info.run_id, key)]
          for key in sorted(run.data.metrics)]]
        for nested in (False, True)
        for run in runs(tracker, experiment, nested=nested)
    )  # fmt: skip


def test_exporting_again_changes_nothing(tracker, study, request):
    first = tracking.export(study, best_result(study), tracker, trials=True)
    before = everything(tracker, request.node.name)
    assert tracking.export(study, best_result(study), tracker, trials=True) == first
    assert tracking.export(study, best_result(study), tracker).trials == 3, "the trials stay"
    assert everything(tracker, request.node.name) == before


def test_new_values_go_to_the_same_run(tracker, study, request):
    study.set_user_attr(record.CONFIRMED, confirmed(best_result(study)))
    first = tracking.export(study, best_result(study), tracker)
    study.set_user_attr(record.CONFIRMED, confirmed(best_result(study), value=0.45))
    assert tracking.export(study, best_result(study), tracker).run == first.run
    (run,) = runs(tracker, request.node.name)
    assert (run.data.metrics[METRIC], run.data.metrics[f"{METRIC}.low"]) == (0.45, 0.4)
    assert run.data.tags["hpo.estimate"] == "confirmed on 1 fresh split"


def test_what_mlflow_cannot_change_replaces_the_run(tracker, study, request):
    best = best_result(study)
    first = tracking.export(study, best, tracker, trials=True)
    study.set_user_attr(record.CONFIRMED, confirmed(best))  # corrected values are no longer exported
    second = tracking.export(study, best_result(study), tracker)
    (run,) = runs(tracker, request.node.name)
    assert run.info.run_id == second.run != first.run
    assert not [key for key in run.data.metrics if key.startswith("corrected/")]
    assert {nested.data.tags[tracking.PARENT_TAG] for nested in runs(tracker, request.node.name, nested=True)} == {
        second.run
    }


def test_what_else_is_in_the_model_folder_stays_here(tracker, study, fitted, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(fitted, model)
    (model / "predictions.csv").write_text("post\nA secret.\n")
    (model / "plots").mkdir()
    (model / "plots" / "page.html").write_text("A secret.")
    found = artifacts(tracker, tracking.export(study, best_result(study), tracker, model=model).run, tmp_path / "down")
    assert {path.name for path in (found / "model").iterdir()} == {path.name for path in fitted.iterdir()}


def test_files_of_an_earlier_export_that_are_no_part_of_the_model_are_removed(tracker, study, fitted, tmp_path):
    first = tracking.export(study, best_result(study), tracker, model=fitted).run
    (tmp_path / "predictions.csv").write_text("post\nA secret.\n")
    client = mlflow.MlflowClient(tracking_uri=tracker)
    client.log_artifact(first, str(tmp_path / "predictions.csv"), tracking.MODEL_FOLDER)
    second = tracking.export(study, best_result(study), tracker, model=fitted).run
    assert second != first
    found = artifacts(tracker, second, tmp_path / "down")
    assert {path.name for path in (found / "model").iterdir()} == {path.name for path in fitted.iterdir()}


def test_two_processes_do_not_export_at_once(tracker, study, trained):
    other = load_study(open_storage(trained), "tiny")
    with try_export_lock(engine_of(other), study_id(other)) as ours:
        assert ours
        with pytest.raises(UserError, match="another process is writing"):
            tracking.export(study, best_result(study), tracker)
    engine_of(other).dispose()


def test_a_database_that_goes_away_meanwhile_is_a_storage_error(study, trained):
    other = sa.create_engine(trained, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    holders = "state = 'idle in transaction' AND datname = current_database()"
    ended = sa.text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {holders}")
    with pytest.raises(StorageError), tracking._alone(study), other.connect() as connection:
        assert connection.execute(ended).all() == [(True,)]


# ---- the command line, and mistakes ----------------------------------------------------------------------------------


@contextmanager
def answering(status: int, body: bytes = b"no") -> Iterator[str]:
    """The address of a server that answers everything alike, with a user and a password in it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://someone:s3cret@127.0.0.1:{listening.server_port}/at"
        listening.shutdown()


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, UserError, "refuses these credentials"),
        (403, UserError, "refuses these credentials"),
        (404, UserError, "is it MLflow 3 or newer"),
        (200, UserError, "is it MLflow 3 or newer"),
        (503, StorageError, "cannot be reached"),
    ],
)
def test_a_server_that_refuses_is_a_sentence_without_the_password(study, caplog, status, error, message):
    before = dict(os.environ)
    with answering(status) as address, pytest.raises(error, match=message) as raised:
        tracking.export(study, best_result(study), address)
    assert "127.0.0.1" in str(raised.value)
    assert "s3cret" not in str(raised.value) + caplog.text
    assert dict(os.environ) == before


def test_a_server_that_is_not_there_cannot_be_reached(study, caplog):
    with pytest.raises(StorageError, match=r"the MLflow server at http://127\.0\.0\.1:1 cannot be reached"):
        tracking.export(study, best_result(study), "http://someone:s3cret@127.0.0.1:1")
    assert caplog.text == ""


@pytest.mark.parametrize("address", ["./mlruns", "file:///tmp/mlruns", "sqlite:///x", "http://", "http://u:s3cret@h:x"])
def test_an_address_that_is_no_server_is_refused_and_not_shown(address):
    with pytest.raises(UserError, match="must be http://HOST:PORT") as raised:
        tracking.check(address)
    assert "s3cret" not in str(raised.value)


def test_an_altered_model_is_refused(fitted, tmp_path):
    with pytest.raises(UserError, match="is no fitted model"):
        tracking.check("http://127.0.0.1:5000", tmp_path)
    altered = tmp_path / "altered"
    shutil.copytree(fitted, altered)
    (altered / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="was altered"):
        tracking.check("http://127.0.0.1:5000", altered)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"study": "another"}, r"is of the study 'another', not of the study 'tiny' that is exported"),
        ({"data_sha256": "0"}, r"was fitted with other posts, labels or groups than the study 'tiny'"),
        ({"folds_sha256": "0", "definition_sha256": "0"}, r"was fitted with other folds, other study file than"),
        (None, r"is of no study, not of the study 'tiny'"),
    ],
)
def test_a_model_of_another_study_is_refused(study, fitted, tmp_path, changed, message):
    model = load_model(fitted)
    info = {} if changed is None else {**model.info, **changed}
    save_model(model.with_info(info), tmp_path / "other", "# A card\n")
    with pytest.raises(UserError, match=message) as raised:  # before the server is asked: nobody listens there
        tracking.export(study, best_result(study), "http://127.0.0.1:1", model=tmp_path / "other")
    assert "\n" not in str(raised.value)


def test_without_an_address_it_is_asked_for(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
        tracking.check("")


def hpo(folder: Path, url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT / "src"), "HPO_STORAGE": url, **environment}
    return processes.call("export", *arguments, "-o", folder / "out.json", cwd=ROOT, env=environment)


def test_the_command_line_writes_the_file_and_the_run(tracker, study, trained, tmp_path, request):
    task(tmp_path)  # the study file
    file = str(tmp_path / "tiny.toml")
    by_variable = hpo(tmp_path, trained, "--mlflow", file, MLFLOW_TRACKING_URI=tracker)
    assert by_variable.returncode == 0, by_variable.stderr
    assert by_variable.stderr == ""
    named = hpo(tmp_path, trained, file, f"--mlflow={tracker}", "--mlflow-trials")
    assert named.returncode == 0, named.stderr
    (run,) = runs(tracker, request.node.name)
    for done in (by_variable, named):
        assert done.stdout.splitlines()[-1].endswith(f"/runs/{run.info.run_id}")
    assert len(runs(tracker, request.node.name, nested=True)) == 3
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["study"] == "tiny"


def test_exit_codes_of_the_command_line(study, trained, tmp_path):
    task(tmp_path)
    file = str(tmp_path / "tiny.toml")
    for code, arguments in (
        (3, ["--mlflow", "http://someone:s3cret@127.0.0.1:1"]),
        (2, ["--mlflow", "--mlflow-trials"]),
        (2, ["--mlflow-trials"]),
    ):
        done = hpo(tmp_path, trained, file, *arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
        assert "s3cret" not in done.stdout + done.stderr
    assert "MLflow server" in app.EXIT_CODES


def test_an_export_to_a_file_does_not_load_what_an_export_to_mlflow_needs(study, trained, tmp_path):
    task(tmp_path)
    arguments = ["export", str(tmp_path / "tiny.toml"), "-o", str(tmp_path / "out.json"), "--storage", trained]
    code = (
        "import sys\n"
        "from sparse_evidence.hpo.cli import app\n"
        f"sys.argv = ['hpo', *{arguments!r}]\n"
        "try:\n    app.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "names = ('sparse_evidence.hpo.results.tracking', 'sparse_evidence.core.fitted', 'mlflow', 'torch')\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr
    assert (tmp_path / "out.json").exists()


def test_without_mlflow_it_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['mlflow'] = None\n"  # as Python marks a package that cannot be imported
        "from sparse_evidence.hpo.results import tracking\n"
        "tracking.check('http://127.0.0.1:5000')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (
        "UserError: MLflow is not installed; install it with pip install 'sparse-evidence-hpo[mlflow]'" in done.stderr
    )


# ---- values ----------------------------------------------------------------------------------------------------------


def test_names_that_mlflow_refuses_are_replaced():
    assert tracked._finite({"curve/é#1": 1, "a b": 2.5, "nan": float("nan"), "none": None}) == {
        "curve/__1": 1.0, "a b": 2.5,
    }  # fmt: skip


def test_a_pruned_trial_has_no_value_to_compare():
    pruned = optuna.create_trial(state=optuna.trial.TrialState.PRUNED, intermediate_values={1: 0.2, 2: 0.4})
    assert tracked.trial_metrics(pruned, METRIC) == {f"pruned/{METRIC}": 0.4}


def test_curves_of_folds_of_different_length():
    trial = optuna.create_trial(
        value=0.5, user_attrs={record.CURVES: {"scores": [[0.1, 0.2, 0.6], [0.3]], "train_loss": []}}
    )
    assert tracked.trial_curves(trial, METRIC) == {
        f"curve/{METRIC}": [0.2, 0.2, 0.6],
        f"curve/fold_0/{METRIC}": [0.1, 0.2, 0.6],
        f"curve/fold_1/{METRIC}": [0.3],
    }
