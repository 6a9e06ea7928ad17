"""A worker whose trials only sleep: `python -m benchmarks.sleeper URL TRIALS SECONDS`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from optuna.trial import TrialState

from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.database.studies import load_study
from sparse_evidence.hpo.running import claims, process
from sparse_evidence.hpo.running.sampler import make_sampler
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.definition import load


def main() -> None:
    """Claim, configure, sleep, report twice and finish trials until the study is finished."""
    url, trials, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    definition = load(Path(__file__).with_name("service.toml"))
    study = load_study(open_storage(url), "sleepers")
    study.sampler = make_sampler("tpe", seed=0)
    queue = claims.Claims(
        engine_of(study), study, budget=trials, heartbeat_seconds=20, grace_seconds=120, max_attempts=3
    )  # fmt: skip
    process.freeze_gc()  # as a worker does
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
