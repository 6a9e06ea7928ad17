"""The command line: one verb, one function. Heavy modules are imported by the verb that needs them."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from core.errors import UserError
from hpo.errors import Exit, Refused, StorageError, exit_code_of

if TYPE_CHECKING:
    from rich.console import Console

    from hpo.definition import StudyDefinition

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or a wrong file, 3 storage out of reach, "
    "4 refused (this is not what the study was started with), 130 interrupted."
)

app = typer.Typer(
    name="hpo",
    help="Hyperparameter search for classifiers that must find sparse evidence in long, imbalanced text.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Study = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file, for example studies/quickstart.toml.")]
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
REFRESH_SECONDS = 0.5


def main() -> NoReturn:
    """Run a verb; a mistake ends as one sentence on standard error and its exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        app(standalone_mode=True)
        code = Exit.DONE
    except (UserError, StorageError, Refused) as error:
        print(f"hpo: {' '.join(str(error).split())}", file=sys.stderr)
        code = exit_code_of(error)
    except KeyboardInterrupt:
        print("hpo: interrupted", file=sys.stderr)
        code = Exit.INTERRUPTED
    except BrokenPipeError:
        with suppress(OSError):
            sys.stdout = open("/dev/null", "w")  # noqa: PTH123, SIM115 (so that the exit flushes nowhere)
        code = Exit.FAILED
    sys.exit(code)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _define(study: Path) -> StudyDefinition:
    from hpo.definition import load

    return load(study)


@app.command()
def validate(study: Study) -> None:
    """Check the file, the data and the folds, and show what the study would cost."""
    from hpo import report
    from hpo.planning import plan

    definition = _define(study)
    console = _console()
    console.print(report.plan(plan(definition, report.EmbeddingProgress(console))))


@app.command()
def run(
    study: Study,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; left out, one per core, at most 4.")
    ] = None,
    trials: Trials = None,
    out: Annotated[Path, typer.Option(help="Where the best parameters go.")] = Path("best.json"),
    storage: Storage = None,
) -> None:
    """Create or continue the study on this machine, watch it, and export the best parameters."""
    from hpo import export, report, supervisor
    from hpo.preparation import prepare
    from hpo.storage import open_storage, resolve
    from hpo.worker import join

    definition = _define(study)
    export.check_writable(out)
    budget = trials or definition.search.trials
    console = _console()
    with resolve(storage) as url:
        open_storage(url)  # a wrong URL is found before minutes of embedding
        prepared = prepare(definition, progress=report.EmbeddingProgress(console))
        reused = prepared.texts - prepared.computed
        console.print(
            f"{definition.name}: {len(prepared.corpus)} posts, {prepared.texts} texts, {prepared.computed} embedded "
            f"now, {reused} from the cache"
        )
        joined = join(definition, prepared, url, trials=budget)
        floors = report.floors_in_words(definition.search.metric, joined.user_attrs.get(export.FLOORS))
        console.print(f"{definition.search.metric} to beat on these folds: {floors}")
        count = min(workers or min(supervisor.usable_cores(), 4), budget)
        code = _drive(console, definition, url, joined, budget, count)
        best = export.best(joined)
        export.write_json(best, out)
    console.print(report.result(best, str(out)))
    if code:
        raise typer.Exit(code)


def _drive(console: Console, definition: StudyDefinition, url: str, joined: Any, budget: int, count: int) -> int:  # noqa: ANN401
    """Start the workers and watch until the budget is spent; returns the exit code."""
    from hpo import claims, report, supervisor

    if claims.count(joined).finished >= budget:
        console.print(f"nothing to do: {budget} trials were asked for and as many are finished")
        return Exit.DONE
    view = report.LiveView(console, joined, trials=budget, metric=definition.search.metric)
    with view:
        crew = supervisor.Workers(definition.path, url, trials=budget, count=count, say=view.say)
        try:
            while crew.alive():
                view.update()
                time.sleep(REFRESH_SECONDS)
            view.update()
        except BaseException:
            view.say("stopping: the workers finish their epoch and hand their trials back")
            raise
        finally:
            crew.stop()
    if claims.count(joined).finished >= budget:
        return Exit.DONE
    print(f"hpo: every worker ended before the {budget} trials were finished; their words are above, and "
          "the same command goes on where they stopped", file=sys.stderr)  # fmt: skip
    return max((code for code in crew.exit_codes() if code > 0), default=Exit.FAILED)


@app.command()
def worker(
    study: Study,
    trials: Trials = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; left out, what torch takes.")] = None,
    slot: Annotated[int, typer.Option(min=0, help="Number of this worker on its machine, for `hpo status`.")] = 0,
    storage: Storage = None,
) -> None:
    """Join the study from any machine, and work until its trials are finished."""
    from hpo import report
    from hpo.storage import resolve
    from hpo.worker import stopped_by_signals, work

    definition = _define(study)
    stop = threading.Event()
    with stopped_by_signals(stop), resolve(storage) as url:
        budget = trials or definition.search.trials
        progress = report.EmbeddingProgress(_console())
        work(definition, url, trials=budget, slot=slot, threads=threads, stop=stop, progress=progress)


@app.command()
def status(
    study: Study,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Show trials by state, the best so far, and who works on what."""
    from hpo import export, report
    from hpo.storage import load_existing, open_storage, resolve

    definition = _define(study)
    with resolve(storage) as url:
        state = export.status(load_existing(open_storage(url), definition.name))
    if as_json:
        print(json.dumps(state, indent=2, sort_keys=True, allow_nan=False))
    else:
        _console().print(report.status(state))


@app.command(name="export")
def export_(
    study: Study,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the best parameters go.")] = Path("best.json"),
    storage: Storage = None,
) -> None:
    """Write the best parameters as JSON."""
    from hpo import export, report
    from hpo.storage import load_existing, open_storage, resolve

    definition = _define(study)
    export.check_writable(out)
    with resolve(storage) as url:
        best = export.best(load_existing(open_storage(url), definition.name))
    export.write_json(best, out)
    _console().print(report.result(best, str(out)))


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
    from hpo import dashboard as pages
    from hpo.storage import load_existing, open_storage, resolve

    definition = _define(study) if study is not None else None
    with resolve(storage) as url:
        opened = open_storage(url)
        if definition is not None:
            load_existing(opened, definition.name)
        pages.serve(opened, host=host, port=port, changes=allow_changes, ready=lambda at: print(at, flush=True))
