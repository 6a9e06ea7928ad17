"""The command line: one verb, one function. Heavy modules are imported by the verb that needs them."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from sparse_evidence.core.errors import UserError

from ..errors import Exit, RefusedError, StorageError, exit_code_of
from ..running import process
from . import init

if TYPE_CHECKING:
    from optuna import Study
    from rich.console import Console

    from ..running.slots import Slot
    from ..running.task import StudyTask
    from ..study.definition import StudyDefinition

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or a wrong file, 3 storage out of reach, "
    "4 refused (this is not what the study was started with), 75 out of memory and 76 stood still (start the worker "
    "again, as --slots does), 130 interrupted."
)

app = typer.Typer(
    name="hpo",
    help="Hyperparameter search for classifiers that must find sparse evidence in long, imbalanced text.",
    epilog=EXIT_CODES,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(name="init")(init.command)

StudyFile = Annotated[
    Path, typer.Argument(metavar="STUDY", help="The study file, for example studies/quickstart.toml.")
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="postgresql://USER@HOST:PORT/DATABASE; left out, an embedded Postgres under .hpo/ (env: HPO_STORAGE, "
        "password: PGPASSWORD or HPO_STORAGE_PASSWORD_FILE).",
        show_default=False,
    ),
]
Trials = Annotated[
    int | None, typer.Option(min=1, help="Trials to finish in all; left out, what the file says.", show_default=False)
]
Artifacts = Annotated[
    str | None,
    typer.Option(
        help="Where unfinished trials are saved: a folder that all workers share, or s3://BUCKET/PREFIX; left out, "
        ".hpo/artifacts (env: HPO_ARTIFACTS).",
        show_default=False,
    ),
]
REFRESH_SECONDS = 0.5


def main() -> NoReturn:
    """Run a verb; a mistake ends as one sentence on standard error and its exit code."""
    process.disable_gc()
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    # Threads that spin while they wait take the cores from other workers (an epoch was 3 times slower beside others).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was opened is closed
    try:
        # A KeyboardInterrupt comes back as typer's exit code for it, which is ours, too.
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False) or Exit.DONE
        if code == Exit.INTERRUPTED:
            _complain("interrupted; nothing that was finished is lost, the same command goes on from there")
    except typer.TyperException as error:
        _complain(f"{error.format_message().rstrip('.')}; `{_called(error)} --help` shows what there is")
        code = Exit.USAGE
    except (UserError, StorageError, RefusedError) as error:
        _complain(str(error))
        code = exit_code_of(error)
    except BrokenPipeError:
        with suppress(OSError):
            sys.stdout = open("/dev/null", "w")  # noqa: PTH123, SIM115 (so that the exit flushes nowhere)
        code = Exit.FAILED
    process.skip_final_gc()
    sys.exit(code)


def _complain(words: str) -> None:
    print(f"hpo: {' '.join(words.split())}", file=sys.stderr)


def _called(error: typer.TyperException) -> str:
    """The verb that was used wrongly, as it was typed."""
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context is not None else "hpo"


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _define(study: Path) -> StudyDefinition:
    from ..study.definition import load

    return load(study)


@app.command()
def validate(study: StudyFile) -> None:
    """Check the file, the data and the folds, and show what the study would cost."""
    from ..results import live, tables
    from ..results.plan import make_plan

    definition = _define(study)
    console = _console()
    progress = live.EmbeddingProgress(console)
    try:
        values = make_plan(definition, progress)
    finally:
        progress.close()
    console.print(tables.plan_table(values))


@app.command()
def run(
    study: StudyFile,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; left out, one per core, at most 4.")
    ] = None,
    trials: Trials = None,
    out: Annotated[Path, typer.Option(help="Where the best parameters go.")] = Path("best.json"),
    storage: Storage = None,
) -> None:
    """Create or continue the study on this machine, watch it, and export the best parameters."""
    from ..database.address import storage_url
    from ..database.connection import engine_of, open_storage
    from ..results import best, tables

    definition = _define(study)
    best.check_writable(out)
    console = _console()
    with storage_url(storage) as url:
        engine_of(open_storage(url)).dispose()  # a wrong URL is found before minutes of embedding
        budget = trials or definition.search.trials
        joined, task = _join(definition, url, budget, console)
        code = _drive(console, definition, url, joined, task, budget, workers)
        if code == Exit.DONE or best.best_trial(joined) is not None:
            result = best.best_result(joined)
            best.write_json(result, out)
            console.print(tables.result_table(result, str(out)))
    if code != Exit.DONE:
        raise typer.Exit(code)


def _join(definition: StudyDefinition, url: str, budget: int, console: Console) -> tuple[Study, StudyTask]:
    """Prepare the study's data and create or join it."""
    from ..results import live
    from ..running.joining import join_study
    from ..running.task import load_task

    progress = live.EmbeddingProgress(console)
    try:
        task = load_task(definition, progress=progress)
    finally:
        progress.close()
    console.print(f"{definition.name}: {len(task.corpus)} posts; {task.embedding_summary}")
    return join_study(definition, task, url, trials=budget), task


def _drive(
    console: Console,
    definition: StudyDefinition,
    url: str,
    joined: Study,
    task: StudyTask,
    budget: int,
    workers: int | None,
) -> int:
    """Start the workers, say what there is to beat, and watch until the budget is spent; returns the exit code."""
    from ..database import record
    from ..database.claims_sql import count_trials
    from ..results import live, tables
    from ..running import supervisor
    from ..running.joining import measure_baselines
    from ..running.signals import graceful_shutdown
    from ..running.slots import plan_slots

    def print_baselines() -> None:
        measure_baselines(joined, task)
        metric = definition.search.metric
        console.print(f"to beat: {metric} {tables.baselines_text(metric, record.baselines(joined))}")

    left = budget - (done := count_trials(joined).finished)
    if left <= 0:
        print_baselines()
        console.print(f"nothing to do: {budget} trials were asked for and {done} are finished")
        return Exit.DONE
    slots = plan_slots(min(workers or len(plan_slots(None)), left), per_gpu=workers or 1)
    stop = threading.Event()
    view = live.LiveView(console, joined, trials=budget, metric=definition.search.metric)
    process.freeze_gc()
    with graceful_shutdown(stop, again=signal.default_int_handler), supervisor.WorkerPool(
        definition.path, url, trials=budget, slots=slots, print_line=view.say
    ) as pool, view:  # fmt: skip
        print_baselines()  # takes about as long as the workers take to start
        while pool.poll() and not stop.wait(REFRESH_SECONDS):
            if view.update().finished >= budget:
                break  # not waiting for a worker that has only just started
        view.update()
        if stop.is_set():
            view.say("stopping: the workers finish their epoch and hand their trials back; once more ends them at once")
    done = count_trials(joined).finished
    if stop.is_set() and done < budget:
        raise KeyboardInterrupt
    if done >= budget:
        return Exit.DONE
    code, words = pool.failure()
    _complain(
        f"no worker is left, and {done} of {budget} trials are finished: {words}; the same command goes on from there"
    )
    return code


@app.command()
def worker(
    study: StudyFile,
    trials: Trials = None,
    slots: Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            help="One process for each of N slots, restarted when it crashes; auto: one per GPU, without any GPU one "
            "per core, at most 4. Left out, this process is the worker.",
            show_default=False,
        ),
    ] = None,
    per_gpu: Annotated[int, typer.Option(min=1, help="With --slots: workers that share a GPU.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; left out, what torch takes.")] = None,
    slot: Annotated[int, typer.Option(min=0, help="Number of this worker on its machine, for `hpo status`.")] = 0,
    storage: Storage = None,
    artifacts: Artifacts = None,
) -> None:
    """Join the study from any machine, and work until its trials are finished."""
    from ..database.address import storage_url
    from ..running.signals import graceful_shutdown, stop_with_parent

    stop = threading.Event()
    stop_with_parent(stop)
    definition = _define(study)
    budget = trials or definition.search.trials
    if slots is not None:
        plan = _plan(slots, per_gpu, threads)
        with graceful_shutdown(stop, again=signal.default_int_handler), storage_url(storage) as url:
            code = _supervise(definition, url, budget, plan, artifacts, stop)
    else:
        with graceful_shutdown(stop), storage_url(storage) as url:
            code = _work(definition, url, budget, slot, threads, artifacts, stop)
    if code:
        raise typer.Exit(code)


def _plan(slots: str, per_gpu: int, threads: int | None) -> list[Slot]:
    from dataclasses import replace

    from ..running.slots import plan_slots

    if slots != "auto" and not (slots.isdecimal() and int(slots) > 0):
        raise UserError(f"--slots {slots}: give auto or a number from 1")
    found = plan_slots(None if slots == "auto" else int(slots), per_gpu=per_gpu)
    return [replace(each, threads=threads) for each in found] if threads else found


def _work(
    definition: StudyDefinition,
    url: str,
    budget: int,
    slot: int,
    threads: int | None,
    artifacts: str | None,
    stop: threading.Event,
) -> int:
    from ..results import live
    from ..running.artifacts import open_store
    from ..running.worker import WorkerOptions, work

    store = open_store(artifacts)
    progress = live.EmbeddingProgress(_console())
    options = WorkerOptions(trials=budget, slot=slot, threads=threads)
    return work(definition, url, store, options, stop=stop, progress=progress)


def _supervise(
    definition: StudyDefinition, url: str, budget: int, slots: list[Slot], artifacts: str | None, stop: threading.Event
) -> int:
    from ..running.supervisor import WorkerPool

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    process.freeze_gc()
    for slot in slots:
        say(f"slot {slot.number}: {slot.gpu or 'no GPU'}, {slot.threads} CPU threads")
    with WorkerPool(definition.path, url, trials=budget, slots=slots, print_line=say, artifacts=artifacts) as pool:
        while pool.poll() and not stop.wait(REFRESH_SECONDS):
            pass
    done = stop.is_set() or Exit.DONE in pool.codes()  # one that found the budget spent speaks for all
    return Exit.DONE if done else pool.failure()[0]


@app.command()
def status(
    study: StudyFile,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Show trials by state, the best so far, and who works on what."""
    from ..database.address import storage_url
    from ..database.connection import open_storage
    from ..database.studies import load_study
    from ..results import tables
    from ..results.status import study_status

    definition = _define(study)
    with storage_url(storage, create=False) as url:
        state = study_status(load_study(open_storage(url), definition.name))
    if as_json:
        print(json.dumps(state, indent=2, sort_keys=True, allow_nan=False))
    else:
        _console().print(tables.status_table(state))


@app.command(name="export")
def export_(
    study: StudyFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the best parameters go.")] = Path("best.json"),
    storage: Storage = None,
) -> None:
    """Write the best parameters as JSON."""
    from ..database.address import storage_url
    from ..database.connection import open_storage
    from ..database.studies import load_study
    from ..results import best, tables

    definition = _define(study)
    best.check_writable(out)
    with storage_url(storage, create=False) as url:
        result = best.best_result(load_study(open_storage(url), definition.name))
    best.write_json(result, out)
    _console().print(tables.result_table(result, str(out)))


@app.command()
def dashboard(
    study: Annotated[Path | None, typer.Argument(metavar="[STUDY]", help="Checked to be there; all are shown.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; a password is needed beyond loopback.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    allow_changes: Annotated[bool, typer.Option("--allow-changes", help="Let the page edit and delete.")] = False,
    storage: Storage = None,
) -> None:
    """Serve optuna-dashboard over the same storage (env: HPO_DASHBOARD_PASSWORD)."""
    from ..database.address import storage_url
    from ..database.connection import open_storage
    from ..database.studies import load_study
    from ..results import dashboard as pages

    pages.check_exposure(host)
    definition = _define(study) if study is not None else None
    with storage_url(storage, create=False) as url:
        opened = open_storage(url)
        if definition is not None:
            load_study(opened, definition.name)
        process.freeze_gc()
        pages.serve(opened, host=host, port=port, changes=allow_changes, ready=lambda at: print(at, flush=True))
