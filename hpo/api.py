"""The Python API: open a study, run it, read its result, fit a model to it, and compute its value again.

`import sparse_evidence.hpo as hpo` gives `hpo.open`, `hpo.run`, `hpo.fit` and `hpo.rebuild`; `docs/python.md` describes
them.
Heavy packages are imported when they are needed.
"""

from __future__ import annotations

import os
import tempfile
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sparse_evidence.core.errors import UserError

from .errors import RunError
from .study.definition import StudyDefinition, from_document, load
from .study.document import to_toml

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from sparse_evidence.core.fitted import FittedModel

    from .results.best import BestResult
    from .running.task import StudyTask

StudyLike = str | os.PathLike[str] | Mapping[str, Any]
"""A study file, or its content as a dict."""
ResultLike = str | os.PathLike[str] | Mapping[str, Any]
"""The file that `hpo run` or `hpo export` wrote, or its content."""


def define(study: StudyLike) -> StudyDefinition:
    """Check a study file, or a study given as a dict.

    A dict has the tables of a study file as keys, and `name`. Relative paths in a file start at its folder, in a dict
    at the current one.

    Raises:
        UserError: the file cannot be read, or the study has mistakes, all of which are listed.
    """
    return load(Path(study)) if isinstance(study, (str, os.PathLike)) else from_document(study)


def open(study: StudyLike, *, storage: str | None = None) -> Study:  # noqa: A001 (people write hpo.open)
    """Open a study that was started, for reading.

    Args:
        study: its file, or its content as a dict.
        storage: the database; default: `HPO_STORAGE`, or the embedded Postgres under `.hpo/` of the current folder.

    Raises:
        UserError: the study has mistakes, or was not started in this database.
        StorageError: the database is unreachable.
    """
    return Study(study, storage)


def run(
    study: StudyLike,
    *,
    workers: int | None = None,
    trials: int | None = None,
    storage: str | None = None,
    start_from: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Study:
    """Create or resume a study on this machine, and run it until its trials are finished and its result is confirmed.

    Call it in the main thread; Ctrl-C (in a notebook: stop) ends it, and calling it again resumes it.

    Args:
        study: a study file, or its content as a dict.
        workers: worker processes; default: one per GPU, without a GPU one per core, at most 4.
        trials: trials to finish in total; default: the study's.
        storage: the database; default: `HPO_STORAGE`, or an embedded Postgres under `.hpo/` of the current folder.
        start_from: another study's result or file, whose best parameters are tried first.
        progress: show the progress and, at the end, the result.

    Returns:
        The study, open for reading.

    Raises:
        UserError: the study, its data or its encoder cannot be used.
        RefusedError: the study was started with other data, folds, configuration or code.
        RunError: all workers failed; the message says how.
        StorageError: the database is unreachable.
        KeyboardInterrupt: it was stopped; no finished trial is lost.
    """
    _import_tqdm()
    from .database.address import storage_url
    from .results import live, tables
    from .results.console import make_console, show
    from .running import launcher, warm_start

    if threading.current_thread() is not threading.main_thread():
        raise UserError("hpo.run works in the main thread only, because that receives Ctrl-C; call it there")
    definition = define(study)
    console = make_console(quiet=not progress)
    with ExitStack() as stack:
        url = stack.enter_context(storage_url(storage))
        definition = replace(definition, path=stack.enter_context(_file_for_workers(study, definition)))
        pool = stack.enter_context(launcher.early_workers(definition, url, workers=workers, trials=trials))
        warm = None if start_from is None else warm_start.read_warm_start(Path(start_from), definition, url)
        with live.EmbeddingProgress(console) as embedding:
            started = launcher.start_study(
                definition,
                url,
                trials=trials,
                try_first=() if warm is None else warm.parameters,
                progress=embedding,
                pool=pool,
            )
        stack.callback(_disconnect, started.study)
        if warm is not None:
            console.print(f"note: {warm.sentence}")
        outcome = live.watch(started, console, workers)
        if outcome.code:
            raise RunError(f"{live.failure_text(outcome)}; run the study again to resume it")
        opened = Study(study, storage)
        show(console, tables.result_table(opened.best(), None))
    return opened


class Study(AbstractContextManager["Study"]):
    """A study in the database, open for reading. The embedded database runs until the study is closed.

    It is closed by `close`, at the end of a `with` block, and when Python ends.

    Args:
        study: its file, or its content as a dict.
        storage: the database, as in `open`.
    """

    def __init__(self, study: StudyLike, storage: str | None = None) -> None:
        from .database.address import storage_url
        from .database.connection import open_storage
        from .database.studies import load_study

        self.definition = definition = define(study)
        self._file = None if isinstance(study, Mapping) else definition.path
        self._task: StudyTask | None = None
        with ExitStack() as stack:
            self._url = stack.enter_context(storage_url(storage, create=False))
            self._study = load_study(open_storage(self._url, create=False), definition.name)
            stack.callback(_disconnect, self._study)
            self._close = weakref.finalize(self, stack.pop_all().close)

    @property
    def name(self) -> str:
        """Its name."""
        return self.definition.name

    def __repr__(self) -> str:
        return f"<Study {self.name!r}{'' if self._close.alive else ', closed'}>"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; the last process that uses an embedded database stops it."""
        self._close()

    def optuna(self) -> optuna.Study:
        """The Optuna study, for its plots and importances. Read it only: `hpo.run` does the trials."""
        if not self._close.alive:
            raise UserError(f"the study {self.name!r} is closed; open it again with hpo.open")
        return self._study

    def best(self) -> BestResult:
        """The result, as `hpo export` writes it.

        Raises:
            UserError: no trial is complete yet.
        """
        from .results.best import best_result

        return best_result(self.optuna(), self._file)

    def export(self, path: str | os.PathLike[str] | None = None, *, force: bool = False) -> Path:
        """Write the result to a file, as `hpo export`, and return the file.

        Args:
            path: where; default: `NAME.best.json` in the current folder.
            force: overwrite a file that is not this study's result.

        Raises:
            UserError: no trial is complete yet, or the file cannot be written or is not this study's result.
        """
        from .results.best import best_result
        from .results.output import Output

        output = Output.named(None if path is None else Path(path), self.name, force=force)
        output.check()
        output.write(best_result(self.optuna(), self._file, output.file))
        return output.path

    def report(self, path: str | os.PathLike[str] | None = None, *, force: bool = False) -> Path:
        """Write a page on the study, finished or running, as `hpo report`, and return the file.

        Args:
            path: where; default: `NAME.report.html` in the current folder.
            force: overwrite a file that is no such page.

        Raises:
            UserError: the file cannot be written or is no such page.
        """
        from .pages.report import report_page
        from .pages.writing import PageFile

        page = PageFile(Path(f"{self.name}.report.html" if path is None else path), "report", force=force)
        page.check()
        page.write(report_page(self.optuna(), self.definition))
        return page.path

    def trials(self) -> pd.DataFrame:
        """Every trial, a row each, by number; a parameter is a column `params.NAME`.

        Columns: `number`; `state` (complete, pruned, infeasible, failed, running, waiting); `value` of complete trials;
        `folds`, on how many it was scored; `reported`, its score on these (of a pruned trial, its last);
        `best_epoch`; `seconds`; `attempts`; `reason` if it is infeasible.
        """
        import pandas as pd

        from .results.leaderboard import trial_rows

        rows = trial_rows(self.optuna().get_trials(deepcopy=False))
        return pd.DataFrame(rows).set_index("number", drop=False).rename_axis(None)

    def leaderboard(self, top: int = 10) -> pd.DataFrame:
        """The best trials, the ensemble, the default and the baselines, a row each, as `hpo leaderboard --csv`.

        Args:
            top: how many trials to show at most.

        Raises:
            UserError: no trial is complete yet, or the study's data cannot be used.
            RefusedError: the data are not those that the study was started with.
        """
        import pandas as pd

        from .results.leaderboard import flat, leaderboard

        return pd.DataFrame(flat(leaderboard(self.optuna(), self._data(), top=top)))

    def rebuild(self) -> float:
        """Train the best single trial again on the study's folds; the result equals `best()["value"]` to the last bit.

        Raises:
            UserError: no trial is complete yet, or the study's data cannot be used.
            RefusedError: the data are not those that the study was started with.
        """
        return _cross_validated(self._data(), self.best())

    def fit(self, folder: str | os.PathLike[str], *, what: str = "winner", single: bool = False) -> FittedModel:
        """Train the winner on all posts of the search, and save it in a folder, as `hpo.fit`."""
        return _fitted(self._data(), self.best(), folder, what=what, single=single)

    def _data(self) -> StudyTask:
        """The study's data, which are checked and loaded once."""
        from .running.joining import load_joined

        if self._task is None:
            joined, self._task = load_joined(self.definition, self._url)
            _disconnect(joined)
        return self._task


def fit(
    best: ResultLike,
    folder: str | os.PathLike[str],
    *,
    study: StudyLike | None = None,
    what: str = "winner",
    single: bool = False,
) -> FittedModel:
    """Train the winner of a result on all posts of the search, and save it in a folder, as `hpo fit`.

    Args:
        best: a result.
        folder: where the model is saved: a new or empty folder, or one with a fitted model, which is replaced.
        study: the study; default: the file that the result names, from the folder of its own file (of a result given as
            a dict, from the current folder).
        what: `winner`, `ensemble`, `trial` (the best single one), `default`, `retrieval` or `linear`.
        single: one model on all posts instead of one for each fold: smaller, less exact.

    Returns:
        The model, as `hpo.load_model(folder)` returns it.

    Raises:
        UserError: a file or the folder cannot be used, or there is nothing to fit.
        RefusedError: study, data or folds are not those of the result.
    """
    content, task = _with_data(best, study)
    return _fitted(task, content, folder, what=what, single=single)


def rebuild(best: ResultLike, study: StudyLike | None = None) -> float:
    """Compute the `value` of a result again, from the data alone and without a database.

    The best single trial is cross-validated on the study's folds. The result equals `value` to the last bit, on the
    same version of torch and the same kind of device.

    Args:
        best: a result.
        study: the study; default: as in `fit`.

    Raises:
        UserError: a file cannot be used.
        RefusedError: study, data or folds are not those of the result.
    """
    from .fitting.fit import check_same

    content, task = _with_data(best, study)
    check_same(content, task)
    return _cross_validated(task, content)


def _fitted(
    task: StudyTask, best: Mapping[str, Any], folder: str | os.PathLike[str], *, what: str, single: bool
) -> FittedModel:
    from sparse_evidence.core.fitted.folder import check_free

    from .fitting.fit import fit_result
    from .fitting.recipes import CHOICES
    from .running.task import default_device

    if what not in CHOICES:
        raise UserError(f"what = {what!r} is unknown; it may be {', '.join(CHOICES)}")
    check_free(Path(folder))
    return fit_result(best, task, Path(folder), what=what, single=single, device=default_device())[0]


def _with_data(best: ResultLike, study: StudyLike | None) -> tuple[Mapping[str, Any], StudyTask]:
    """A result and the data of its study."""
    from .fitting.recipes import check_best, read_best
    from .results.best import named_study_file
    from .running.task import load_task

    if isinstance(best, Mapping):
        content, folder, what = check_best(best, "the result"), Path(), "the result"
    else:
        content, folder, what = read_best(Path(best)), Path(best).parent, str(best)
    if study is None:
        study = named_study_file(content["provenance"], folder, what, "give the study, too")
    return content, load_task(define(study))


def _cross_validated(task: StudyTask, best: Mapping[str, Any]) -> float:
    from .running.task import default_device
    from .study import space

    device = default_device()
    cv = task.cross_validation(space.from_dict(best["config"]), trial=best["trial"], device=device)
    for _ in cv.epochs():
        pass
    return cv.summary().value


@contextmanager
def _file_for_workers(study: StudyLike, definition: StudyDefinition) -> Iterator[Path]:
    """The study's file; for a dict, a temporary one in the folder at which its relative paths start."""
    if isinstance(study, (str, os.PathLike)):
        yield definition.path
        return
    folder = definition.path.parent
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{definition.name}.", suffix=".toml")
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be written to ({error.strerror}), where workers read the study; change to "
            "another folder, or write the study to a file"
        ) from error
    path = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(to_toml(study))
        yield path
    finally:
        path.unlink(missing_ok=True)


def _disconnect(study: optuna.Study) -> None:
    from .database.connection import engine_of

    engine_of(study).dispose()


def _import_tqdm() -> None:
    """Import what encoders show progress with, without its warning in notebooks that have no ipywidgets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tqdm.auto  # noqa: F401
