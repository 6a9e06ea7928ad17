"""Fixtures of the contract tests: a study's claims on the test's database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from claim_tools import join_study

from sparse_evidence.hpo.running.claims import Claims


@pytest.fixture
def claims(database: str) -> Iterator[Callable[..., Claims]]:
    """Call it for one more worker's claims; `url` leads it through a proxy."""
    joined: list[Claims] = []

    def join(url: str = database, **changes: Any) -> Claims:
        joined.append(join_study(url, **changes))
        return joined[-1]

    yield join
    for worker in joined:
        worker.engine.dispose()
