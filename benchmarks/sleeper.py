"""Workers whose trials only sleep: `python -m benchmarks.sleeper URL WORKERS TRIALS SECONDS`.

They are processes, forked from one that has imported what they need: 64 that import it themselves take a minute.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from optuna.trial import TrialState

from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.database.studies import load_study
from sparse_evidence.hpo.running import claims, process
from sparse_evidence.hpo.running.sampler import make_sampler
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.definition import load


def main() -> None:
    """Start the workers and wait for them; exit 1 if one failed."""
    url, workers, trials, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(workers)
    process.disable_gc()
    make_sampler("tpe", seed=0)
    engine_of(load_study(open_storage(url), "sleepers")).dispose()  # imports what 64 processes would import themselves
    started = [
        context.Process(target=work, args=(url, trials, seconds, ready, seconds * number / workers))
        for number in range(workers)
    ]
    for worker in started:
        worker.start()
    for worker in started:
        worker.join()
    sys.exit(any(worker.exitcode for worker in started))


def work(url: str, trials: int, seconds: float, ready: Barrier, pause: float) -> None:
    """Claim, configure, sleep, report twice and finish trials until the study is finished.

    Args:
        url: the database.
        trials: of all workers together.
        seconds: how long a trial sleeps.
        ready: waited for before the first trial, so that all begin together.
        pause: after that, so that they do not claim all at once.
    """
    definition = load(Path(__file__).with_name("service.toml"))
    study = load_study(open_storage(url), "sleepers")
    study.sampler = make_sampler("tpe", seed=0)
    queue = claims.Claims(
        engine_of(study), study, budget=trials, heartbeat_seconds=20, grace_seconds=120, max_attempts=3
    )  # fmt: skip
    process.freeze_gc()  # as a worker does
    ready.wait()
    time.sleep(pause)
    while not isinstance(answer := queue.claim(), claims.Finished):
        if isinstance(answer, claims.Wait):
            time.sleep(0.5)
            continue
        with answer as claim:
            with claim.transaction():
                space.suggest(definition, claim.trial)
            time.sleep(seconds)
            claim.trial.report(0.5, 2)
            claim.trial.report(0.5, 5)
            claim.finish(TrialState.COMPLETE, 0.5)


if __name__ == "__main__":
    main()
