"""Predictions of trials: their stored form, and their table on a real Postgres."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from claim_tools import claimed, join_study
from optuna.trial import TrialState
from postgres_proxy import Proxy

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import predictions
from sparse_evidence.hpo.database.connection import engine_of
from sparse_evidence.hpo.errors import ClaimLostError, PredictionsError

NAN = np.nan


def some_logits(posts: int = 37, criteria: int = 3, missing: float = 0.4, seed: int = 0) -> predictions.Logits:
    """Logits of which a share of posts has none."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1, 2, (posts, criteria)).astype(np.float32)
    logits[generator.random(posts) < missing] = NAN
    return logits


def assert_close(loaded: predictions.Logits, logits: predictions.Logits) -> None:
    """Equal up to half a step: the range of each criterion has 65535 steps."""
    assert (loaded.dtype, loaded.shape) == (np.float32, logits.shape)
    np.testing.assert_array_equal(np.isnan(loaded), np.isnan(logits))
    rows = ~np.isnan(logits).any(1)
    if rows.any():
        half = np.ptp(logits[rows], axis=0) / 65535 / 2
        assert (np.abs(loaded[rows] - logits[rows]) <= half + 1e-6).all()


# ---- the format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0, 0.4, 1])
@pytest.mark.parametrize("shape", [(1, 1), (8, 2), (37, 3), (0, 2), (5, 0)])
def test_logits_come_back_in_65536_steps(shape: tuple[int, int], missing: float) -> None:
    logits = some_logits(*shape, missing)
    assert_close(predictions.unpack(predictions.pack(logits)), logits)


def test_logits_that_hardly_differ_keep_their_order() -> None:
    """In a trial that is pruned early: each fold's model has its own constant, and posts hardly differ from it."""
    constants = np.repeat([-2.03, -1.98], 150)
    logits = np.float32(constants + 1e-3 * np.random.default_rng(0).normal(size=300))[:, None]
    assert len(np.unique(np.float16(logits))) < 30, "float16 would lose it"
    back = predictions.unpack(predictions.pack(logits))
    assert_close(back, logits)
    assert len(np.unique(back)) > 280


def test_equal_logits_come_back_exactly() -> None:
    logits = np.full((4, 2), -1.7, dtype=np.float32)
    np.testing.assert_array_equal(predictions.unpack(predictions.pack(logits)), logits)


def test_logits_whose_probability_is_0_or_1_are_clipped() -> None:
    logits = np.array([[np.inf, -np.inf], [1e30, -70000], [NAN, NAN], [1, 0]], dtype=np.float32)
    expected = np.array([[104, -104], [104, -104], [NAN, NAN], [1, 0]], dtype=np.float32)
    assert_close(predictions.unpack(predictions.pack(logits)), expected)


def test_a_post_with_an_undefined_logit_has_no_predictions() -> None:
    logits = np.array([[1, 2], [NAN, 2]], dtype=np.float32)
    np.testing.assert_array_equal(predictions.unpack(predictions.pack(logits)), [[1, 2], [NAN, NAN]])


def test_the_size_is_about_two_bytes_per_predicted_post_and_criterion() -> None:
    assert len(predictions.pack(some_logits(2000, 10, missing=0))) < 2000 * 10 * 2
    assert len(predictions.pack(some_logits(2000, 10, missing=0.8))) < 450 * 10 * 2 + 2000 / 8
    uniform = np.random.default_rng(0).random((500, 4), dtype=np.float32)
    assert len(predictions.pack(uniform)) < 500 * 4 * 2 + 500 / 8 + 4 * 8 + 64, "what cannot be compressed"


def test_the_stored_form_does_not_change() -> None:
    """Databases hold it."""
    content = predictions.pack(np.array([[1, -2], [NAN, NAN], [0, 0], [0.25, 1]], dtype=np.float32))
    assert content[0] == 1
    expected = "04000000 02000000 b0 00000000 000000c0 0000803f 0000803f ffff 0000 0000 aaaa 0040 ffff"
    assert zlib.decompress(content[1:]).hex(" ") == bytes.fromhex(expected).hex(" ")


def recompressed(content: bytes, change: Any) -> bytes:
    return content[:1] + zlib.compress(change(zlib.decompress(content[1:])))


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: b"",
        lambda content: content[:1],
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content + b"\0",
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: b"\2" + content[1:],
        lambda content: b"not predictions at all",
        lambda content: recompressed(content, lambda plain: plain[:-2]),
        lambda content: recompressed(content, lambda plain: plain[:6]),
        lambda content: recompressed(content, lambda plain: plain[:8]),
        lambda content: recompressed(content, lambda plain: b"\xff\xff\xff\xff" + plain[4:]),
        lambda content: recompressed(content, lambda plain: plain[:4] + b"\xff" + plain[5:]),
        lambda content: recompressed(content, lambda plain: plain[:8] + bytes([plain[8] ^ 1]) + plain[9:]),
    ],
)
def test_damaged_predictions_are_one_sentence(harm: Any) -> None:
    content = harm(predictions.pack(some_logits()))
    with pytest.raises(PredictionsError, match=r"^the predictions of trial 3 are damaged") as caught:
        predictions.unpack(content, "the predictions of trial 3")
    assert isinstance(caught.value, UserError)


# ---- the tables ------------------------------------------------------------------------------------------------------


def stored_rows(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(sa.text("SELECT count(*) FROM hpo_predictions")).scalar_one()


def test_predictions_are_stored_by_trial_number(claims: Any) -> None:
    mine = claims()
    ends = {0: TrialState.COMPLETE, 1: TrialState.PRUNED, 2: TrialState.FAIL, 3: TrialState.COMPLETE}
    for number, state in ends.items():
        logits = None if state == TrialState.FAIL else some_logits(seed=number)
        claimed(mine).finish(state, 0.5 if state == TrialState.COMPLETE else None, logits=logits, reason="diverged")
    loaded = predictions.load(mine.study)
    assert list(loaded) == [0, 1, 3], "an infeasible trial has none"
    for number, logits in loaded.items():
        assert_close(logits, some_logits(seed=number))
    assert list(predictions.load(mine.study, [3, 2, 99])) == [3]
    assert predictions.load(mine.study, []) == {}


def test_predictions_of_other_studies_are_not_read(claims: Any) -> None:
    mine = claims()
    claimed(mine).finish(TrialState.COMPLETE, 0.5, logits=some_logits())
    other = optuna.create_study(storage=mine.study._storage, study_name="other")
    assert predictions.load(other) == {}


def test_damage_in_the_database_names_the_trial(claims: Any) -> None:
    mine = claims()
    claimed(mine).finish(TrialState.COMPLETE, 0.5, logits=some_logits())
    with mine.engine.begin() as connection:
        connection.execute(sa.text("UPDATE hpo_predictions SET logits = substr(logits, 1, 20)"))
    with pytest.raises(PredictionsError, match="the predictions of trial 0 are damaged"):
        predictions.load(mine.study)


def test_a_finish_whose_answer_was_lost_stores_its_predictions_once(claims: Any, proxy: Proxy) -> None:
    mine = claims(proxy.url, budget=1)
    claim = claimed(mine)
    lost = proxy.lose_answer_to_commit("COMPLETE")
    claim.finish(TrialState.COMPLETE, 0.5, logits=some_logits())
    assert lost.is_set()
    assert_close(predictions.load(mine.study)[0], some_logits())


def test_an_end_that_cannot_be_written_leaves_no_predictions(claims: Any) -> None:
    mine = claims(budget=1)
    claim = claimed(mine)
    with pytest.raises(sa.exc.DBAPIError):
        claim.finish(TrialState.COMPLETE, 0.5, attributes={"b" * 2000: 2}, logits=some_logits())
    assert (mine.study.trials[0].state, stored_rows(mine.engine)) == (TrialState.RUNNING, 0)


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED])
def test_a_worker_that_lost_its_trial_stores_no_predictions(claims: Any, state: TrialState) -> None:
    first, second = claims(), claims()
    old = claimed(first)
    with first.engine.begin() as connection:
        connection.execute(sa.text("UPDATE hpo_claims SET released = true"))
    new = claimed(second)
    value = 0.5 if state == TrialState.COMPLETE else None
    with pytest.raises(ClaimLostError):
        old.finish(state, value, logits=some_logits(seed=1))
    assert stored_rows(first.engine) == 0
    new.finish(state, value, logits=some_logits(seed=2))
    with pytest.raises(ClaimLostError):
        old.finish(state, value, logits=some_logits(seed=1))
    assert_close(predictions.load(second.study)[0], some_logits(seed=2))


def test_deleting_a_study_removes_its_predictions_and_no_others(claims: Any) -> None:
    mine = claims()
    storage = mine.study._storage
    for study in (mine.study, optuna.create_study(storage=storage, study_name="other")):
        trial = study.ask()
        with mine.engine.begin() as connection:
            predictions.insert(connection, trial._trial_id, some_logits())
    assert stored_rows(mine.engine) == 2
    optuna.delete_study(study_name="s", storage=storage)
    assert stored_rows(mine.engine) == 1
    assert list(predictions.load(study)) == [0]


def store_baselines(study: optuna.Study, **logits: predictions.Logits) -> None:
    with engine_of(study).begin() as connection:
        predictions.insert_baselines(connection, study._study_id, logits, list(logits))


def test_baselines_are_stored_side_by_side_and_replaced(claims: Any) -> None:
    study = claims().study
    missing = np.isnan(some_logits()).any(1)  # the hold-out, which no baseline predicts
    logits = {name: some_logits(missing=0, seed=seed) for seed, name in enumerate(("linear", "retrieval"))}
    for found in logits.values():
        found[missing] = NAN
    assert predictions.load_baselines(study, list(logits)) is None
    store_baselines(study, linear=some_logits(seed=7), retrieval=some_logits(seed=8))
    store_baselines(study, **logits)
    loaded = predictions.load_baselines(study, list(logits))
    assert loaded is not None
    assert list(loaded) == list(logits)
    for name, found in logits.items():
        assert_close(loaded[name], found)
    other = optuna.create_study(storage=study._storage, study_name="other")
    assert predictions.load_baselines(other, list(logits)) is None
    with engine_of(study).begin() as connection:
        connection.execute(sa.text("UPDATE hpo_baselines SET logits = substr(logits, 1, 20)"))
    with pytest.raises(PredictionsError, match=r"the predictions of the baselines are damaged .* hpo_baselines"):
        predictions.load_baselines(study, list(logits))


def test_a_deleted_study_has_no_baselines_and_gets_none(claims: Any) -> None:
    mine = claims()
    store_baselines(mine.study, linear=some_logits())
    optuna.delete_study(study_name="s", storage=mine.study._storage)
    store_baselines(mine.study, linear=some_logits())
    with mine.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM hpo_baselines")).scalar_one() == 0


@pytest.mark.parametrize("tables", ["hpo_baselines", "hpo_predictions, hpo_baselines"])
def test_a_database_of_an_earlier_version_gets_the_tables_when_it_is_opened(database: str, tables: str) -> None:
    earlier = join_study(database, budget=2)
    claimed(earlier).finish(TrialState.COMPLETE, 0.5)
    interrupted = claimed(earlier)
    interrupted.release()
    with earlier.engine.begin() as connection:
        connection.execute(sa.text(f"DROP TABLE {tables}"))
    earlier.engine.dispose()
    later = join_study(database, budget=2)
    assert predictions.load(later.study) == {}
    assert predictions.load_baselines(later.study, ["linear"]) is None
    claim = claimed(later)
    assert claim.trial.number == interrupted.trial.number == 1
    claim.finish(TrialState.PRUNED, logits=some_logits())
    assert list(predictions.load(later.study)) == [1]
    store_baselines(later.study, linear=some_logits())
    assert list(predictions.load_baselines(later.study, ["linear"]) or {}) == ["linear"]
    later.engine.dispose()
