"""Processes for tests, forked from one that only imported modules: 32 start within seconds and share memory."""

from __future__ import annotations

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
# One list for all tests, because the first test that starts a process decides. Only modules of installed packages: the
# process that is forked does not know pytest's sys.path.
MODULES = (
    "core.corpus.sources", "hpo.running.artifacts", "hpo.cli.app", "hpo.results.live", "hpo.running.signals",
    "hpo.running.slots", "hpo.running.worker",
)  # fmt: skip
PROCESSES.set_forkserver_preload(
    [
        "psycopg2",
        "sqlalchemy.dialects.postgresql.psycopg2",
        "torch._dynamo",
        *(f"sparse_evidence.{name}" for name in MODULES),
    ]
)
