"""A study as a run of an MLflow server: what `hpo export --mlflow` does.

A study has one run, found again by a tag with the study's key, so that exporting twice updates it. MLflow lets nobody
change a parameter or remove a metric or an artifact. Where that would be needed, because another trial is exported now
for example, the old run goes to MLflow's trash and a new one takes its place: there is never more than one.

Only this module imports MLflow, and only when it is used. No credentials appear in messages: those in the address are
handed to MLflow as its own environment variables.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from sparse_evidence.core.errors import UserError
from sparse_evidence.core.fitted import load_model
from sparse_evidence.core.fitted.folder import FILES

from ..database import record
from ..database.connection import engine_of
from ..database.locks import try_export_lock
from ..database.optuna_storage import study_id
from ..database.retry import is_transient
from ..distribution import DISTRIBUTION
from ..errors import StorageError
from . import tracked
from .best import FINGERPRINTS
from .tracked import milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient
    from optuna import Study
    from optuna.trial import FrozenTrial

    from .best import BestResult

URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
STUDY_TAG = "hpo.study"
"""On the run of a study: the study's key."""
TRIALS_STUDY_TAG = "hpo.trial_of"
"""On the run of a trial: the study's key."""
TRIAL_TAG = "hpo.trial"
STATE_TAG = "hpo.state"
PARENT_TAG = "mlflow.parentRunId"
MODEL_FOLDER = "model"
"""Where the files of a fitted model are among a run's artifacts."""

_MOST_METRICS, _MOST_PARAMETERS = 1000, 100
"""What MLflow accepts in one request."""

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # MLflow would report its use to its makers
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its default keeps a person waiting for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",  # no warning where git is not installed
}
"""How MLflow behaves here unless the user's environment says otherwise."""


@dataclass(frozen=True)
class Exported:
    """The run that a study was written to."""

    run: str
    """Its id."""
    url: str
    """Its page, without credentials."""
    trials: int
    """How many of the study's trials have runs of their own, nested in it."""


@dataclass(frozen=True)
class _Experiment:
    client: MlflowClient
    id: str
    key: str
    """Of the study."""


def export(
    study: Study, best: BestResult, uri: str | None = None, *, trials: bool = False, model: Path | None = None
) -> Exported:
    """Write a study to an MLflow server, or update what an earlier export wrote.

    The experiment is that of `MLFLOW_EXPERIMENT_NAME`, by default `sparse-evidence-hpo`.

    Args:
        study: opened for reading.
        best: from `best_result`.
        uri: `http(s)://[USER:PASSWORD@]HOST[:PORT]`; default: `MLFLOW_TRACKING_URI`.
        trials: also write every ended trial, as a nested run.
        model: a folder with a fitted model of this result, to be stored with the run.

    Raises:
        UserError: MLflow is not installed, the address or the folder is wrong, the model is one of another study or of
            other inputs, or the server refuses.
        StorageError: the server cannot be reached, or the database.
    """
    address = check(uri, model)
    if model is not None:
        _check_same(model, best)
    with _environment(address), _explained(address), _alone(study):
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=_shown(address))
        here = _Experiment(client, _experiment(client), tracked.study_key(study))
        run = _write_study(here, study, best, model)
        written = _write_trials(here, study, run) if trials else _adopt(here, run)
        ended = max(
            (milliseconds(trial.datetime_complete) or 0 for trial in study.get_trials(deepcopy=False)), default=0
        )
        client.set_terminated(run, "FINISHED", end_time=ended)
    return Exported(run, f"{_shown(address)}/#/experiments/{here.id}/runs/{run}", written)


@contextmanager
def _alone(study: Study) -> Iterator[None]:
    """Let no other process export the study meanwhile: two could each create a run."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with try_export_lock(engine_of(study), study_id(study)) as ours:
            if not ours:
                raise UserError(
                    f"another process is writing the study {study.study_name!r} to MLflow; try again when it ends"
                )
            yield
    except SQLAlchemyError as error:  # at the end, if the database went away meanwhile
        if not is_transient(error):
            raise
        raise StorageError from error


# --- the address ------------------------------------------------------------------------------------------------------


def check(uri: str | None, model: Path | None = None) -> SplitResult:
    """The address of the server, after checking all that can be known before talking to it. Raises a `UserError`."""
    try:
        import mlflow  # noqa: F401 (is it there?)
    except ImportError:
        raise UserError(f"MLflow is not installed; install it with pip install '{DISTRIBUTION}[mlflow]'") from None
    text = uri or os.environ.get(URI_VARIABLE)
    if not text:
        raise UserError(
            f"--mlflow needs the address of an MLflow server: --mlflow http://HOST:5000, or set {URI_VARIABLE}"
        )
    try:
        address = urlsplit(text)
        known = address.scheme in {"http", "https"} and bool(address.hostname) and (address.port or 1) > 0
    except ValueError:
        known = False
    if not known:  # the text may hold a password, so it is not shown
        raise UserError(
            "the address of the MLflow server must be http://HOST:PORT or https://HOST:PORT; for files of your own, "
            "start `mlflow server` and name http://127.0.0.1:5000"
        )
    if model is not None:
        load_model(model)
    return address


def _check_same(model: Path, best: BestResult) -> None:
    """Refuse a model that was not fitted from the study, or whose data, folds or definition are not the study's."""
    info, provenance = load_model(model).info, best["provenance"]
    if info.get("study") != best["study"]:
        raise UserError(
            f"the model {model} is of {_study_of(info)}, not of the study {best['study']!r} that is exported; give a "
            "folder that `hpo fit` wrote from its result"
        )
    differing = [text for key, text in FINGERPRINTS.items() if info.get(key) != provenance.get(key)]
    if differing:
        raise UserError(
            f"the model {model} was fitted with other {', other '.join(differing)} than the study {best['study']!r} "
            "that is exported; fit it again from its result"
        )


def _study_of(info: Mapping[str, Any]) -> str:
    return f"the study {info['study']!r}" if "study" in info else "no study"


def _shown(address: SplitResult) -> str:
    """The address without credentials."""
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path.rstrip('/')}"


@contextmanager
def _environment(address: SplitResult) -> Iterator[None]:
    """MLflow's settings for the time of an export; credentials in the address are among them."""
    settings = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    if address.username is not None:
        settings["MLFLOW_TRACKING_USERNAME"] = unquote(address.username)
        settings["MLFLOW_TRACKING_PASSWORD"] = unquote(address.password or "")
    before = {name: os.environ.get(name) for name in settings}
    retries = logging.getLogger("urllib3.connectionpool")  # warns of every attempt
    level = retries.level
    os.environ.update(settings)
    retries.setLevel(logging.ERROR)
    try:
        yield
    finally:
        retries.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _explained(address: SplitResult) -> Iterator[None]:
    """Turn what goes wrong at the server into a sentence; MLflow's own messages may quote its answers at length."""
    import requests
    from mlflow.exceptions import MlflowException

    server = f"the MLflow server at {_shown(address)}"
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        reason = _reason(error)
        if reason in {"UNAUTHENTICATED", "PERMISSION_DENIED", "401", "403"}:
            raise UserError(
                f"{server} refuses these credentials ({reason}); set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            ) from None
        if reason == "unreachable":
            raise StorageError(f"{server} cannot be reached; check its address and that it is running") from None
        raise UserError(f"{server} does not accept the export ({reason}); is it MLflow 3 or newer?") from None
    except ImportError as error:
        raise UserError(
            f"{server} stores artifacts where this machine cannot write without the package {error.name}; install it, "
            "or start the server with --serve-artifacts"
        ) from None


def _reason(error: Exception) -> str:
    """An error in a word: `unreachable`, an HTTP status, or MLflow's code."""
    import requests

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, requests.RequestException):
            return "unreachable" if cause.response is None else str(cause.response.status_code)
    return str(getattr(error, "error_code", type(error).__name__))


# --- the study's run --------------------------------------------------------------------------------------------------


def _experiment(client: MlflowClient) -> str:
    """The id of the experiment, which is created if it does not exist."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get(EXPERIMENT_VARIABLE) or DISTRIBUTION
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another process was faster
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {name!r} is deleted; restore it (`mlflow experiments restore`), or name another "
            f"one with {EXPERIMENT_VARIABLE}"
        )
    return str(found.experiment_id)


def _write_study(here: _Experiment, study: Study, best: BestResult, model: Path | None) -> str:
    """Write the study's own run and return its id."""
    parameters, metrics = tracked.study_parameters(best), tracked.study_metrics(best)
    trial = study.get_trials(deepcopy=False)[best["trial"]]
    curves = tracked.trial_curves(trial, best["metric"])
    current = next(iter(_runs(here, STUDY_TAG)), None)
    if current is not None and not _can_become(here, current, parameters, {*metrics, *curves}, model):
        here.client.delete_run(current.info.run_id)
        current = None
    if current is None:
        started = milliseconds(study.get_trials(deepcopy=False)[0].datetime_start)
        tags = {STUDY_TAG: here.key}
        current = here.client.create_run(here.id, start_time=started, tags=tags, run_name=study.study_name)
    _log(here, current, parameters, metrics, curves)
    for key, value in tracked.study_tags(best).items():
        here.client.set_tag(current.info.run_id, key, value)
    _write_artifacts(here, current.info.run_id, study, best, model)
    return str(current.info.run_id)


def _can_become(
    here: _Experiment, run: Run, parameters: Mapping[str, str], metrics: set[str], model: Path | None
) -> bool:
    """Whether a run can be updated: nothing that it has would have to be changed or removed that MLflow keeps."""
    if run.data.params.items() - parameters.items() or set(run.data.metrics) - metrics:
        return False
    return model is None or _files_of(here, run.info.run_id, MODEL_FOLDER) <= _files_in(model)


def _files_in(folder: Path) -> set[str]:
    """The files of a fitted model, as artifacts; others that are kept there, such as predictions, may hold posts."""
    return {f"{MODEL_FOLDER}/{name}" for name in FILES if (folder / name).is_file()}


def _files_of(here: _Experiment, run: str, path: str) -> set[str]:
    """The files in a folder of a run's artifacts."""
    entries = here.client.list_artifacts(run, path)
    inner = [_files_of(here, run, entry.path) for entry in entries if entry.is_dir]
    return {entry.path for entry in entries if not entry.is_dir}.union(*inner)


def _write_artifacts(here: _Experiment, run: str, study: Study, best: BestResult, model: Path | None) -> None:
    with TemporaryDirectory() as folder:
        text = json.dumps(best, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
        (Path(folder) / "best.json").write_text(text + "\n", encoding="utf-8")
        packed = tracked.pack_predictions(study, best)
        if packed is not None:
            (Path(folder) / "predictions.safetensors").write_bytes(packed)
        here.client.log_artifacts(run, folder)
    if model is not None:
        for file in sorted(_files_in(model)):
            here.client.log_artifact(run, str(model / Path(file).name), MODEL_FOLDER)


# --- its trials -------------------------------------------------------------------------------------------------------


def _write_trials(here: _Experiment, study: Study, parent: str) -> int:
    """Write every ended trial as a run nested in `parent`; one that was written before only gets its parent."""
    known = {run.data.tags[TRIAL_TAG]: run for run in _runs(here, TRIALS_STUDY_TAG)}
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    for trial in ended:
        run = known.get(str(trial.number)) or _create_trial(here, trial, parent)
        if run.data.tags.get(PARENT_TAG) != parent:
            here.client.set_tag(run.info.run_id, PARENT_TAG, parent)
        if run.info.status == "RUNNING":
            _write_trial(here, run, trial, record.metric(study))
    return len(ended)


def _create_trial(here: _Experiment, trial: FrozenTrial, parent: str) -> Run:
    tags = {TRIALS_STUDY_TAG: here.key, TRIAL_TAG: str(trial.number), PARENT_TAG: parent}
    tags[STATE_TAG] = trial.state.name.lower()
    started = milliseconds(trial.datetime_start)
    return here.client.create_run(here.id, start_time=started, tags=tags, run_name=f"trial {trial.number}")


def _write_trial(here: _Experiment, run: Run, trial: FrozenTrial, metric: str) -> None:
    from optuna.trial import TrialState

    _log(here, run, tracked.trial_parameters(trial), tracked.trial_metrics(trial, metric),
         tracked.trial_curves(trial, metric))  # fmt: skip
    status = "FAILED" if trial.state == TrialState.FAIL else "FINISHED"
    here.client.set_terminated(run.info.run_id, status, end_time=milliseconds(trial.datetime_complete))


def _adopt(here: _Experiment, parent: str) -> int:
    """Nest the trials of an earlier export in the study's run, which may be a new one; returns how many there are."""
    runs = _runs(here, TRIALS_STUDY_TAG)
    for run in runs:
        if run.data.tags.get(PARENT_TAG) != parent:
            here.client.set_tag(run.info.run_id, PARENT_TAG, parent)
    return len(runs)


# --- runs -------------------------------------------------------------------------------------------------------------


def _runs(here: _Experiment, tag: str) -> list[Run]:
    """All runs that are not deleted and have the study's key as this tag."""
    found: list[Run] = []
    token: str | None = None
    while True:
        page = here.client.search_runs([here.id], f"tags.`{tag}` = '{here.key}'", page_token=token)
        found += page
        token = page.token
        if not token:
            break
    return found


def _log(
    here: _Experiment, run: Run, parameters: Mapping[str, str], metrics: Mapping[str, float], curves: tracked.Curves
) -> None:
    """Send what the run does not have yet: parameters, values at step 0, and curves with an epoch a step, from 1."""
    from mlflow.entities import Metric, Param

    new = [Param(key, value) for key, value in parameters.items() if key not in run.data.params]
    for start in range(0, len(new), _MOST_PARAMETERS):
        here.client.log_batch(run.info.run_id, params=new[start : start + _MOST_PARAMETERS])
    now = int(time.time() * 1000)
    points = [Metric(key, value, now, 0) for key, value in metrics.items() if run.data.metrics.get(key) != value]
    for key, curve in curves.items():
        points += _new_points(here, run, key, curve, now)
    for start in range(0, len(points), _MOST_METRICS):
        here.client.log_batch(run.info.run_id, metrics=points[start : start + _MOST_METRICS])


def _new_points(here: _Experiment, run: Run, key: str, curve: list[float], now: int) -> list[Metric]:
    from mlflow.entities import Metric

    known: set[Any] = set()
    if key in run.data.metrics:
        known = {point.step for point in here.client.get_metric_history(run.info.run_id, key)}
    return [Metric(key, value, now, epoch) for epoch, value in enumerate(curve, 1) if epoch not in known]
