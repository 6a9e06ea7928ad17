"""All studies of a database, and the end of one: nothing of it is left, and nothing else is touched."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from claim_tools import IDENTITY, claimed
from optuna.trial import TrialState

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import connection, predictions, record, studies
from sparse_evidence.hpo.database.catalog import list_studies
from sparse_evidence.hpo.errors import RefusedError
from sparse_evidence.hpo.results.listing import listed_studies
from sparse_evidence.hpo.running import deleting
from sparse_evidence.hpo.running.claims import Claims
from sparse_evidence.hpo.running.confirming import Plan

DEFINITION = {"search": {"metric": "average_precision"}}
GRACE = 60.0


@pytest.fixture
def storage(database):
    opened = connection.open_storage(database)
    yield opened
    connection.engine_of(opened).dispose()


def study_of(storage, name: str, **attributes: object) -> optuna.Study:
    return studies.open_study(
        storage,
        name,
        direction="maximize",
        identity={**IDENTITY, "definition": DEFINITION},
        sampler=optuna.samplers.RandomSampler(seed=0),
        attributes=attributes,
    )


def claims_on(study: optuna.Study, budget: int = 9) -> Claims:
    return Claims(
        connection.engine_of(study), study, budget=budget, heartbeat_seconds=20, grace_seconds=GRACE, max_attempts=3
    )


def run_trials(study: optuna.Study, *values: float) -> None:
    for value in values:
        with claimed(claims_on(study)) as claim:
            claim.trial.suggest_float("x", 0, 1)
            claim.trial.report(value, 1)
            claim.finish(TrialState.COMPLETE, value, attributes={"a": 1}, logits=np.zeros((3, 2), np.float32))


def store_baselines(study: optuna.Study) -> None:
    with connection.engine_of(study).begin() as session:
        predictions.insert_baselines(session, study._study_id, {"linear": np.zeros((3, 2), np.float32)}, ["linear"])


def listed(storage):
    entries, _ = list_studies(storage, grace_seconds=GRACE)
    return listed_studies(entries)


def rows(storage) -> dict[str, int]:
    """Rows by table, without Optuna's and alembic's versions."""
    engine = connection.engine_of(storage)
    tables = [name for name in sa.inspect(engine).get_table_names() if "version" not in name]
    with engine.connect() as session:
        return {name: session.scalar(sa.text(f"SELECT count(*) FROM {name}")) for name in tables}


def test_a_database_without_studies(storage):
    assert listed(storage) == []


def test_studies_are_listed_with_their_state_and_their_child_studies(storage):
    study_of(storage, "never")
    stopped = study_of(storage, "stopped", **{record.REQUESTED: 3})
    run_trials(stopped, 0.25, 0.5)
    claimed(claims_on(stopped)).release()
    done = study_of(storage, "done", **{record.REQUESTED: 1})
    run_trials(done, 0.75)
    plan = asdict(Plan(1, (0,), (0,), 0, 2, {"0": 1}))
    child = study_of(storage, "done/confirm/1-trials-1-leaders-2-splits", **{record.PLAN: plan})
    run_trials(child, 0.7, 0.6)
    optuna.create_study(storage=storage, study_name="another's/study").add_trial(optuna.create_trial(value=1.0))
    found = {study["study"]: study for study in listed(storage)}
    assert json.loads(json.dumps(found)) == found
    assert {name: study["state"] for name, study in found.items()} == {
        "another's/study": "not by hpo", "done": "finished", "never": "not started", "stopped": "stopped",
    }  # fmt: skip
    assert (found["stopped"]["finished"], found["stopped"]["requested"], found["stopped"]["best"]) == (2, 3, 0.5)
    assert found["done"]["metric"] == "average_precision"
    assert found["done"]["children"] == [
        {"study": child.study_name, "kind": "confirm", "finished": 2, "trials": 2, "workers": 0}
    ]
    assert found["never"]["changed"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["done"]["changed"])
    done.set_user_attr(record.CONFIRMED, {"finished": 1})
    claim = claimed(claims_on(child))
    states = {study["study"]: (study["state"], study["workers"]) for study in listed(storage)}
    assert states["done"] == ("running", 1), "a worker of a child study counts"
    claim.release()
    assert {study["study"]: study["state"] for study in listed(storage)}["done"] == "confirmed"


def test_nothing_of_a_deleted_study_is_left(storage, tmp_path):
    kept = study_of(storage, "kept")
    run_trials(kept, 0.1)
    store_baselines(kept)
    before = rows(storage)
    run_trials(study_of(storage, "kept/confirm/other", **{record.PLAN: {}}), 0.2)
    with_child = rows(storage)
    doomed = study_of(storage, "doomed", **{record.REQUESTED: 3})
    run_trials(doomed, 0.3, 0.4)
    store_baselines(doomed)
    child = study_of(storage, "doomed/nested/5/1")
    run_trials(child, 0.5)
    store_baselines(child)
    here, gone = (f"trial-2-{digit * 32}.safetensors" for digit in "ab")
    claim = claimed(claims_on(doomed))
    claim.mark_pending(gone)
    claim.commit_checkpoint(gone, "0" * 64)
    claim.mark_pending(here)
    claim.release()
    (tmp_path / here).write_bytes(b"state")
    (tmp_path / "trial-9.txt").write_bytes(b"not ours")
    deleted = deleting.delete_study(storage, "doomed", grace_seconds=GRACE, artifacts=str(tmp_path))
    assert (deleted.trials, deleted.children, deleted.checkpoints, deleted.missing) == (3, 1, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["trial-9.txt"]
    assert rows(storage) == with_child
    assert deleting.delete_study(storage, "kept", grace_seconds=GRACE).children == 1
    assert before["hpo_predictions"] == before["hpo_baselines"] == 1
    assert set(rows(storage).values()) == {0}


def test_a_study_that_is_worked_on_is_not_deleted(storage):
    study_of(storage, "s")
    child = study_of(storage, "s/nested/5/1")
    claim = claimed(claims_on(child))
    before = rows(storage)
    for attempt in (deleting.find_doomed, deleting.delete_study):
        with pytest.raises(RefusedError, match=r"'s' .* is being worked on \(1 running, .* stop its workers first"):
            attempt(storage, "s", grace_seconds=GRACE)
    assert rows(storage) == before
    deleting.delete_study(storage, "s", grace_seconds=0)  # its worker is silent for longer than that
    assert listed(storage) == []
    claim.release()


def test_what_cannot_be_deleted(storage):
    study_of(storage, "quickstart/nested/5/1")
    optuna.create_study(storage=storage, study_name="theirs").add_trial(optuna.create_trial(value=1.0))
    for name, message in [
        ("theirz", r"no study 'theirz' in .*: did you mean 'theirs'\?"),
        ("x", "`hpo list` shows what there is"),
        ("quickstart/nested/5/1", "belongs to 'quickstart': delete that"),
        ("theirs", "was not created by hpo"),
    ]:
        with pytest.raises(UserError, match=message):
            deleting.delete_study(storage, name, grace_seconds=GRACE)
    assert [study["state"] for study in listed(storage)] == ["deleted", "not by hpo"]
    deleting.delete_study(storage, "quickstart", grace_seconds=GRACE)  # what a deletion elsewhere has left
    assert [study["study"] for study in listed(storage)] == ["theirs"]


def test_a_checkpoint_that_cannot_be_removed_stops_the_deletion(storage, tmp_path):
    study = study_of(storage, "s")
    name = f"trial-0-{'c' * 32}.safetensors"
    claim = claimed(claims_on(study))
    claim.mark_pending(name)
    claim.release()
    (tmp_path / name).mkdir()  # a folder is no file, not even for root
    before = rows(storage)
    with pytest.raises(UserError, match=f"{name} cannot be removed .*, so the study is not deleted"):
        deleting.delete_study(storage, "s", grace_seconds=GRACE, artifacts=str(tmp_path))
    assert rows(storage) == before
    (tmp_path / name).rmdir()
    assert deleting.delete_study(storage, "s", grace_seconds=GRACE, artifacts=str(tmp_path)).missing == 1
