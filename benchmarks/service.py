"""Cost of database and sampler per trial: our loop compared with `study.optimize`, MedianPruner and 20 reports.

Both use the same eight parameters, an objective that computes nothing, and the same TPE sampler, on studies filled with
finished trials in the form in which each of them would have stored them.

`measure_load` is about many workers: how many trials without work they finish a second, all together, and how long a
claim takes. Workers are threads of a few processes, with connections of their own, on the machine of the server.
`python -m benchmarks.service` runs it alone.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import queue as queue_module
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import psutil
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState

from benchmarks import pooler
from benchmarks.timing import ratio, time_alternately
from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.database.optuna_storage import study_id
from sparse_evidence.hpo.database.record import CONFIG, CURVES, CV
from sparse_evidence.hpo.database.studies import open_study
from sparse_evidence.hpo.running import claims, pruning
from sparse_evidence.hpo.running.sampler import make_sampler
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.definition import StudyDefinition, load

EPOCHS, FOLDS, REPORTS = 20, 5, 20
MEASURED = 30
WARM_UP = 5.0
STORED = 1500
"""Finished trials beside 1,000 simulated workers."""
DEFINITION = Path(__file__).with_name("service.toml")


@dataclass(frozen=True)
class Filled:
    """A finished trial, to be stored in the database."""

    params: dict[str, Any]
    value: float
    curve: list[float]


def random_trials(count: int, distributions: dict[str, BaseDistribution]) -> list[Filled]:
    """Return random finished trials with plausible values."""
    rng = random.Random(0)
    sampler = optuna.samplers.RandomSampler(seed=0)
    trials = []
    for _ in range(count):
        params = {
            name: sampler.sample_independent(cast(Any, None), cast(Any, None), name, distribution)
            for name, distribution in distributions.items()
        }
        value = _score(params)
        curve = [value * (1 - math.exp(-epoch / 4)) + rng.gauss(0, 0.01) for epoch in range(1, 21)]
        trials.append(Filled(params, value, curve))
    return trials


def _score(params: dict[str, Any]) -> float:
    return 0.4 - 0.01 * math.log10(params["training.learning_rate"] / 3e-3) ** 2


def fill(engine: sa.Engine, study: int, trials: list[Filled], attributes: bool) -> None:
    """Insert finished trials directly, many rows at a time; `add_trial` would take longer than all that is measured."""
    distributions = space.distributions(load(DEFINITION))
    as_json = {name: distribution_to_json(distribution) for name, distribution in distributions.items()}
    started = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=1)
    finite = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
    values: list[dict[str, Any]] = []
    params: list[dict[str, Any]] = []
    reports: list[dict[str, Any]] = []
    attrs: list[dict[str, Any]] = []
    with sa.orm.Session(engine) as session, session.begin():
        keys = session.scalars(
            sa.insert(models.TrialModel).returning(models.TrialModel.trial_id, sort_by_parameter_order=True),
            [
                {"number": number, "study_id": study, "state": TrialState.COMPLETE, "datetime_start": started,
                 "datetime_complete": started} for number in range(len(trials))
            ],
        ).all()  # fmt: skip
        for key, trial in zip(keys, trials, strict=True):
            values.append({"trial_id": key, "objective": 0, "value": trial.value,
                           "value_type": models.TrialValueModel.TrialValueType.FINITE})  # fmt: skip
            params += (
                {"trial_id": key, "param_name": name, "param_value": distributions[name].to_internal_repr(value),
                 "distribution_json": as_json[name]} for name, value in trial.params.items()
            )  # fmt: skip
            steps = {2: trial.curve[-1], FOLDS: trial.value} if attributes else dict(enumerate(trial.curve))
            reports += (
                {"trial_id": key, "step": step, "intermediate_value": value, "intermediate_value_type": finite}
                for step, value in steps.items()
            )
            stored = _attributes(trial) if attributes else {}
            attrs += ({"trial_id": key, "key": name, "value_json": json.dumps(value)} for name, value in stored.items())
        for model, rows in (
            (models.TrialValueModel, values), (models.TrialParamModel, params),
            (models.TrialIntermediateValueModel, reports), (models.TrialUserAttributeModel, attrs),
        ):  # fmt: skip
            if rows:
                session.execute(sa.insert(model), rows)
        session.execute(sa.text("ANALYZE"))  # as in a database that has grown over hours


def _attributes(trial: Filled) -> dict[str, Any]:
    curves = {name: [trial.curve] * FOLDS for name in ("scores", "train_loss", "validation_loss")}
    return {CONFIG: trial.params, CV: {"folds": [trial.value] * FOLDS}, CURVES: curves}


def ours(url: str, stored: int) -> Callable[[], None]:
    """Return a trial of our loop: claim, configuration, two stage reports, attributes, finish."""
    definition = load(DEFINITION)
    study = open_study(
        open_storage(url, without=(CURVES,)), "ours", direction="maximize", identity=_identity(definition),
        sampler=make_sampler("tpe", seed=0),
    )  # fmt: skip
    trials = random_trials(stored, space.distributions(definition))
    fill(engine_of(study), study._study_id, trials, attributes=True)
    queue = claims.Claims(
        engine_of(study), study, budget=10**9, heartbeat_seconds=20, grace_seconds=120, max_attempts=3
    )  # fmt: skip
    return lambda: _run_trial(queue, definition)


def _run_trial(queue: claims.Claims, definition: StudyDefinition) -> None:
    claim = queue.claim()
    assert isinstance(claim, claims.Claim)
    with claim:
        with claim.transaction():
            candidate = space.suggest(definition, claim.trial)
            claim.trial.set_user_attr(CONFIG, space.to_dict(candidate))
        value = _score(claim.trial.params)
        stored = _attributes(Filled({}, value, [value] * EPOCHS))
        rule = pruning.SameFoldsRule(definition, claim.trial, claim.trials_when_claimed)
        for folds in (2, FOLDS):
            for stage_ended in (False, True):
                # called as usual, but every trial runs to its end
                rule.should_prune(folds, value, stage_ended=stage_ended)
            claim.trial.report(value, folds)
        attributes = {CURVES: stored[CURVES], CV: stored[CV]}
        claim.finish(TrialState.COMPLETE, value, attributes=attributes)


def theirs(url: str, stored: int) -> Callable[[], None]:
    """Return a trial of `study.optimize` with one report per epoch and MedianPruner."""
    definition = load(DEFINITION)
    engine = {"pool_pre_ping": True}
    storage = optuna.storages.RDBStorage(url, engine_kwargs=engine)
    study = optuna.create_study(
        storage=storage, study_name="theirs", direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0), pruner=optuna.pruners.MedianPruner(),
    )  # fmt: skip
    distributions = space.distributions(definition)
    fill(storage.engine, study._study_id, random_trials(stored, distributions), attributes=False)

    def evaluate(trial: optuna.Trial) -> float:
        for name, distribution in distributions.items():
            trial._suggest(name, distribution)
        value = _score(trial.params)
        for step in range(REPORTS):
            trial.report(value, step)
            trial.should_prune()  # called as usual, but every trial runs to its end, so that all take the same time
        return value

    return lambda: study.optimize(evaluate, n_trials=1)


def _identity(definition: StudyDefinition) -> dict[str, Any]:
    return {"definition": definition.canonical(), "definition_sha256": definition.sha256(), "data_sha256": "",
            "folds_sha256": "", "code": ""}  # fmt: skip


@contextmanager
def databases(options: str = "") -> Iterator[Callable[[str], str]]:
    """A temporary Postgres server; yields a function that creates an empty database and returns its URL."""
    import tempfile

    from sparse_evidence.hpo.database import embedded

    with (
        tempfile.TemporaryDirectory() as folder,
        embedded.running(embedded.home(Path(folder) / embedded.FOLDER), options) as url,
    ):
        root = sa.create_engine(url, isolation_level="AUTOCOMMIT")

        def fresh(name: str) -> str:
            with root.connect() as connection:
                connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
            return sa.make_url(url).set(database=name).render_as_string(hide_password=False)

        try:
            yield fresh
        finally:
            root.dispose()


# --- many workers -----------------------------------------------------------------------------------------------------


def _queue(url: str, sampler: str = "random") -> claims.Claims:
    definition = load(DEFINITION)
    study = open_study(
        open_storage(url, without=(CURVES,)), "load", direction="maximize", identity=_identity(definition),
        sampler=make_sampler("tpe" if sampler == "tpe" else "random", seed=0),
    )  # fmt: skip
    return claims.Claims(
        engine_of(study), study, budget=10**9, heartbeat_seconds=20, grace_seconds=120, max_attempts=3
    )  # fmt: skip


def _loop(
    url: str,
    threads: int,
    ready: threading.Barrier,
    until: Synchronized[float],
    each: multiprocessing.Queue[list[tuple[float, float]]],
) -> None:
    """Run trials on several threads until the time `until`; put when each claim ended, and the seconds it took."""
    definition = load(DEFINITION)
    queues = [_queue(url) for _ in range(threads)]
    taken: list[tuple[float, float]] = []

    def work(queue: claims.Claims) -> None:
        queue.study.get_trials(deepcopy=False)
        ready.wait()
        while time.monotonic() < until.value:
            began = time.monotonic()
            claim = queue.claim()
            ended = time.monotonic()
            taken.append((ended, ended - began))
            assert isinstance(claim, claims.Claim)
            with claim.transaction():
                space.suggest(definition, claim.trial)
            claim.finish(TrialState.COMPLETE, 0.5)

    workers = [threading.Thread(target=work, args=(queue,)) for queue in queues]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    each.put(taken)


def server_of(url: str) -> psutil.Process:
    """The Postgres server at `url`, on this machine."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        server = psutil.Process(connection.scalar(sa.text("SELECT pg_backend_pid()"))).parent()
    engine.dispose()
    assert server is not None
    return server


def seconds_of(server: psutil.Process) -> float:
    """The CPU seconds that a server has used with all its processes."""
    used = 0.0
    for process in server.children():
        with suppress(psutil.NoSuchProcess):  # one that ends here is counted with the server below
            used += sum(process.cpu_times()[:2])
    return float(used + sum(server.cpu_times()[:4]))


@dataclass(frozen=True)
class Together:
    """What many workers did in a while, without the time in which a session's first statements are slow."""

    claims: list[float]
    """The seconds that each claim took."""
    seconds: float
    """The while."""
    server_seconds: float
    """CPU seconds of the server."""

    @property
    def rate(self) -> float:
        """Claims a second."""
        return len(self.claims) / self.seconds


def together(url: str, workers: int, seconds: float, processes: int = 4) -> Together:
    """Let so many workers run trials without work for about so many seconds; the server is on this machine."""
    engine_of(_queue(url).study).dispose()
    server = server_of(url)
    context = multiprocessing.get_context("spawn")
    ready, until, taken = context.Barrier(workers + 1), context.Value("d", math.inf), context.Queue()
    started = [
        context.Process(target=_loop, args=(url, workers // processes, ready, until, taken)) for _ in range(processes)
    ]
    for process in started:
        process.start()
    ready.wait()
    time.sleep(WARM_UP)
    before, began = seconds_of(server), time.monotonic()
    time.sleep(seconds)
    used, ended = seconds_of(server) - before, time.monotonic()
    until.value = ended
    claimed = [took for _ in started for moment, took in taken.get() if began <= moment < ended]
    for process in started:
        process.join()
    return Together(claimed, ended - began, used)


def beside_running(url: str, running: int) -> float:
    """Median milliseconds of a claim beside so many trials that others run; 1,000 are finished."""
    queue = _queue(url, "tpe")
    trials = random_trials(1000 + running, space.distributions(load(DEFINITION)))
    fill(queue.engine, queue.study._study_id, trials, attributes=True)
    with queue.engine.begin() as connection:
        parameters = {"running": running}
        connection.execute(sa.text(
            "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE trial_id IN "
            "(SELECT trial_id FROM trials ORDER BY trial_id DESC LIMIT :running)"
        ), parameters)  # fmt: skip
        connection.execute(sa.text(
            "INSERT INTO hpo_claims (trial_id, study_id, owner, host, pid, slot, claimed_at, heartbeat, attempt, stage,"
            " epoch, released) SELECT trial_id, study_id, trial_id::text, 'h', 1, 0, now(), now() + interval '1 day',"
            " 1, 0, 0, false FROM trials WHERE state = 'RUNNING'"
        ))  # fmt: skip
    seconds = []
    for _ in range(MEASURED):
        began = time.monotonic()
        claim = queue.claim()
        seconds.append(time.monotonic() - began)
        assert isinstance(claim, claims.Claim)
        claim.finish(TrialState.COMPLETE, 0.5)
    return float(1000 * np.median(seconds))


def _simulate(url: str, workers: int, rest: float, ready: threading.Barrier, until: Synchronized[float],
              ends: multiprocessing.Queue[list[float]]) -> None:  # fmt: skip
    """Run trials that only sleep on several threads until the time `until`; put when each of them ended."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    definition, queue = load(DEFINITION), _queue(url)
    ended: list[float] = []

    def work(number: int) -> None:
        ready.wait()
        time.sleep(rest * number / workers)  # they do not start together
        while time.monotonic() < until.value:
            claim = queue.claim()
            assert isinstance(claim, claims.Claim)
            with claim:
                with claim.transaction():
                    space.suggest(definition, claim.trial)
                time.sleep(min(rest, max(0.0, until.value - time.monotonic())))
                if time.monotonic() >= until.value:
                    return  # its end would not be counted
                claim.finish(TrialState.COMPLETE, 0.5, reports={2: 0.5, FOLDS: 0.5})
            ended.append(time.monotonic())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends.put(ended)


def simulated(url: str, workers: int = 1000, rest: float = 60.0, rounds: int = 1, processes: int = 8) -> float:
    """The share of their time that so many workers lose to database and sampler if a trial takes `rest` seconds.

    They are at work for `rest` seconds before anything is counted, then for `rounds` times as long. In each round every
    worker ends a trial and claims the next, so a single one tells losses of a thousandth apart.

    They are threads of a few processes, and those of a process share what they have read, as they could not on machines
    of their own: the server does the work of all their claims, but sends a trial once to each process.
    """
    study = _queue(url).study
    stored = random_trials(STORED, space.distributions(load(DEFINITION)))
    fill(engine_of(study), study_id(study), stored, attributes=True)  # as after a while: what is read grows with it
    engine_of(study).dispose()
    context = multiprocessing.get_context("spawn")
    ready, until, ends = context.Barrier(workers + 1), context.Value("d", math.inf), context.Queue()
    started = [context.Process(target=_simulate, args=(url, workers // processes, rest, ready, until, ends))
               for _ in range(processes)]  # fmt: skip
    for process in started:
        process.start()
    ready.wait()
    first = time.monotonic() + rest  # every worker is at work, at its own time
    last = first + rounds * rest
    until.value = last
    ended: list[float] = [moment for _ in started for moment in ends.get()]
    for process in started:
        process.join()
    counted = sum(first <= moment < last for moment in ended)
    return 1.0 - counted / (workers * rounds)


@contextmanager
def far_away(url: str, seconds: float) -> Iterator[str]:
    """The URL of a database at a distance: a round trip to it takes `seconds`."""
    parsed = sa.make_url(url)
    target = str(Path(str(parsed.query["host"])) / f".s.PGSQL.{parsed.query.get('port', 5432)}")

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(seconds / 2)
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(target)
        with suppress(OSError):
            await asyncio.gather(forward(reader, back), forward(there, writer))

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port.put(server.sockets[0].getsockname()[1])
            await server.serve_forever()

    port: queue_module.Queue[int] = queue_module.Queue()
    loop = asyncio.new_event_loop()
    threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True).start()
    yield parsed.set(host="127.0.0.1", port=port.get(), query={}).render_as_string(hide_password=False)


def measure_load(seconds: float = 20.0) -> dict[str, float]:
    """Claims a second and how long they take, with many workers, with many running trials, and at a distance.

    What 1,000 workers lose is measured only where pgbouncer is installed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with databases("-N 400") as fresh:
        many = together(fresh("load_128"), 128, seconds)
        figures = {
            "service.server_ms_128": 1000 * many.server_seconds / len(many.claims),
            "service.claims_128": many.rate,
            "service.claim_p95_128": float(np.percentile(many.claims, 95)),
            "service.running_1000_ms": beside_running(fresh("load_running"), 1000),
            "service.running_0_ms": beside_running(fresh("load_idle"), 0),
        }
        with far_away(fresh("load_far"), 0.005) as url:
            figures["service.claims_16_at_5ms"] = together(url, 16, seconds).rate
        if pooler.installed() is not None:
            with pooler.pooled(fresh("load_simulated"), connections=20) as url:
                figures["scaling.simulated_1000_loss"] = simulated(url)
    return figures


def measure(sizes: tuple[int, ...] = (100, 1000, 5000)) -> dict[str, float]:
    """Our seconds per trial relative to plain Optuna's, by number of stored trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with databases() as fresh:
        figures: dict[str, float] = {}
        for size in sizes:
            runs = [theirs(fresh(f"theirs_{size}"), size), ours(fresh(f"ours_{size}"), size)]
            seconds = time_alternately(runs, MEASURED)
            figures[f"service.vs_optuna_{size}"] = ratio(seconds)
            figures[f"service.optuna_seconds_{size}"], figures[f"service.seconds_{size}"] = np.median(seconds, axis=1)
    return figures


if __name__ == "__main__":
    print(json.dumps(measure_load(), indent=2))
