"""Test processes are forks of one process that has only done the imports: 32 start within seconds and share memory."""

from __future__ import annotations

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
# One list for all tests: whoever starts the first process decides. Modules of installed packages only, because that
# process does not know pytest's sys.path.
PROCESSES.set_forkserver_preload(
    ["psycopg2", "sqlalchemy.dialects.postgresql.psycopg2", "torch._dynamo", "sparse_evidence.core.corpus.sources", "sparse_evidence.hpo.running.artifacts",
     "sparse_evidence.hpo.cli.app", "sparse_evidence.hpo.results.live", "sparse_evidence.hpo.running.signals", "sparse_evidence.hpo.running.slots", "sparse_evidence.hpo.running.worker"]
)  # fmt: skip
