"""Claims on a study without a study file, for the tests of claims, reaper and sampler."""

from __future__ import annotations

from typing import Any

import optuna
import sqlalchemy as sa
from waiting import until

from sparse_evidence.hpo.database import connection, studies
from sparse_evidence.hpo.database.claims_sql import Worker
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.sampler import make_sampler

IDENTITY = {"definition": {}, "definition_sha256": "d", "data_sha256": "a", "folds_sha256": "f", "code": "1"}


def join_study(url: str, *, sampler: optuna.samplers.BaseSampler | None = None, **changes: Any) -> Claims:
    """Open the study `s`, with terms that suit tests."""
    terms = {"budget": 40, "heartbeat_seconds": 0.2, "grace_seconds": 2.0, "max_attempts": 3} | changes
    storage = connection.open_storage(url, retry_seconds=20, grace_seconds=terms["grace_seconds"])
    study = studies.open_study(
        storage, "s", direction="maximize", identity=IDENTITY, sampler=sampler or make_sampler("random", 0)
    )
    return Claims(connection.engine_of(study), study, worker=Worker(), **terms)


def claimed(claims: Claims) -> Claim:
    """Claim a trial, which must be possible immediately."""
    claim = claims.claim()
    assert isinstance(claim, Claim)
    return claim


def claimed_soon(claims: Claims) -> Claim:
    """Claim a trial as soon as that is possible."""
    claim: Claim = until(lambda: isinstance(claim := claims.claim(), Claim) and claim, what="a claim")
    return claim


def artifact_rows(claims: Claims) -> list[Any]:
    """Checkpoint and pending artifact of every claim in the table."""
    with claims.engine.connect() as session:
        return list(session.execute(sa.text("SELECT checkpoint, pending FROM hpo_claims ORDER BY trial_id")))
