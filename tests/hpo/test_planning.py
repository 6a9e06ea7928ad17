"""What `hpo validate` finds out before anything starts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tiny import task

from sparse_evidence.hpo.results import plan
from sparse_evidence.hpo.running import task as preparation


def test_a_plan(tmp_path, monkeypatch):
    data = task(tmp_path)
    monkeypatch.setattr(plan, "load_task", lambda _definition, progress=None: data)
    found = plan.make_plan(data.definition)
    facts = found["facts"]
    assert facts["posts"] == f"60 in {len(set(data.corpus.groups))} groups; 0 of them held out"
    assert facts["folds"].startswith("3, in stages of 1, 1, 1; validation posts ")
    assert facts["embedding"].endswith(" texts (all embeddings cached)")
    assert facts["short posts"].endswith("% at k = 4")
    assert facts["floors"].startswith("average_precision: linear floor 0.")
    assert facts["probe"].endswith("s for an epoch of all 3 folds, default configuration")
    assert "for 4 trials and one worker" in facts["projected"]
    assert list(found["parameters"]) == ["training.learning_rate"]
    assert found["holdout"] is False
    for row, positives, prevalence in zip(
        found["criteria"], data.corpus.positives, data.corpus.prevalence, strict=True
    ):
        assert (row["positives"], row["prevalence"]) == (positives, prevalence)
        assert sum(row["folds"]) / 3 == pytest.approx(prevalence, abs=0.02)
        assert row["holdout"] is None


def test_the_probe_is_the_fastest_of_a_few_epochs(tmp_path, monkeypatch):
    data = task(tmp_path)
    ticks = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0, 30.0])  # epochs of 5, 2 and 3 seconds
    monkeypatch.setattr(plan, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(
        preparation, "CrossValidation", lambda *_, **__: type("Cv", (), {"epochs": lambda _: iter("abc")})()
    )
    assert plan.probe_epoch(data) == 2.0
