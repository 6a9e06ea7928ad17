"""A thread in every worker that cleans up after killed workers, even while the worker itself is busy.

It takes no trial over: a worker that was cut off for longer than the grace period keeps its trial, unless another
worker has taken it over or its attempts are exhausted.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import Self

from ..database import claims_sql
from ..database.locks import lock_study
from ..database.optuna_storage import study_id, unwrap
from ..database.retry import retry
from .claims import Claims

logger = logging.getLogger(__name__)


class Reaper:
    """Calls `reap` on a timer inside its context, for the study and with the terms of `claims`."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=1)

    def reap(self) -> None:
        """Fail the trials whose attempts are exhausted, and remove artifacts and claims of finished ones.

        Raises:
            StorageError: the database is unreachable.
        """
        retry(self._reap, unwrap(self._claims.study).retry_seconds)

    def _reap(self) -> None:
        self._fail_exhausted()
        self._remove_orphaned()

    def _fail_exhausted(self) -> None:
        study, terms = study_id(self._claims.study), self._claims.terms
        with self._claims.engine.begin() as connection:
            lock_study(connection, study)
            for trial in claims_sql.exhausted_claims(connection, study, terms.grace_seconds, terms.max_attempts):
                claims_sql.fail_exhausted(connection, trial)

    def _remove_orphaned(self) -> None:
        with self._claims.engine.connect() as connection:
            orphaned = claims_sql.orphaned_claims(
                connection, study_id(self._claims.study), self._claims.terms.grace_seconds
            )
        for row in orphaned:
            artifacts = [artifact for artifact in (row["checkpoint"], row["pending"]) if artifact]
            if all(self._claims.discard(artifact) for artifact in artifacts):
                with self._claims.engine.begin() as connection:
                    claims_sql.delete_claim(connection, row["trial"], row["owner"])

    def _run(self) -> None:
        while not self._stop.wait(self._claims.terms.grace_seconds * random.uniform(0.3, 0.6)):
            try:
                self._reap()
            except Exception as error:  # noqa: BLE001 (retried on the next timer)
                logger.warning(
                    "Reaping failed (%s); retrying.", type(error).__name__, extra={"action": "reaper_failed"}
                )
