"""A worker tells its supervisor where it is, and never waits for that."""

from __future__ import annotations

import os

from sparse_evidence.hpo.running.position import VARIABLE, Position, PositionFile, position_writer


def test_the_last_position_is_read(monkeypatch):
    file = PositionFile()
    try:
        for name, value in file.environment().items():
            monkeypatch.setenv(name, value)
        write = position_writer()
        assert VARIABLE not in os.environ, "processes that a worker starts do not have the file"
        assert file.read() is None
        for epoch in range(1, 100_000):  # more than a pipe holds
            write(7, 1, epoch)
        assert file.read() == Position(7, 1, 99_999)
    finally:
        file.close()
    assert file.read() is None
    write(7, 1, 3)  # the file is gone: nothing happens


def test_a_process_without_a_supervisor_writes_nothing(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    position_writer()(7, 1, 3)
