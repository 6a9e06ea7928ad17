"""The tables of predictions: out-of-fold logits, one compact value per trial that ran, and one for a study's baselines.

Predictions are written in the transaction that ends their trial (complete or pruned), and Postgres deletes them with
the trial. They are numbers per post and criterion, in the order of the study's posts: no text, no ids, no labels.
Trials that ended before this table existed, and infeasible ones, have none. The baselines of a study, which have been
measured on the folds of its search, are side by side in one array; Postgres deletes them with the study.

*Format.* The first byte is the version, 1. The rest is one zlib stream, whose checksum covers all of it, of

- the number of posts and the number of criteria, two unsigned 32-bit integers,
- a bit per post, the first post in the highest bit of the first byte: whether the post has predictions,
- the smallest logit of every criterion, then the largest of every criterion, as float32,
- the logits of the posts that have predictions, post by post, as unsigned 16-bit integers: 0 stands for the criterion's
  smallest logit, 65535 for its largest, in equal steps,

all little-endian. Before compression that is 2 bytes per predicted post and criterion, a bit per post and 8 bytes per
criterion; compression saves about a tenth. The error is at most half a step: 0.0001 if logits range from -7 to 7.

*Why not float16,* which has the same size: a trial that is pruned early gives all posts nearly the same logit. float16
rounds many of them to the same number, and with their order the trial's score is lost (average precision .40 became
.32).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from ..errors import PredictionsError
from .optuna_storage import study_id, unwrap
from .retry import retry

if TYPE_CHECKING:
    import optuna

Logits = npt.NDArray[np.float32]
"""`[posts, criteria]`; NaN for posts without predictions."""

_VERSION = 1
_SHAPE = struct.Struct("<II")
_LIMIT = np.dtype("<f4")
_STEP = np.dtype("<u2")
_STEPS = 65535
_LARGEST = 104.0
"""Logits beyond it are clipped: their probability is 0 or 1 in float32, in which scores are computed."""


# ---- the tables ------------------------------------------------------------------------------------------------------

# The references make Postgres delete a row with its trial or study, whoever deletes that: Optuna knows nothing of them.
_CREATE_TABLES = (
    sa.text("""
CREATE TABLE IF NOT EXISTS hpo_predictions (
    trial_id integer PRIMARY KEY REFERENCES trials (trial_id) ON DELETE CASCADE,
    logits bytea NOT NULL
)
"""),
    sa.text("""
CREATE TABLE IF NOT EXISTS hpo_baselines (
    study_id integer PRIMARY KEY REFERENCES studies (study_id) ON DELETE CASCADE,
    logits bytea NOT NULL
)
"""),
)
_EXIST = sa.text(
    "SELECT 1 WHERE to_regclass('hpo_predictions') IS NOT NULL AND to_regclass('hpo_baselines') IS NOT NULL"
)


def create_tables(connection: sa.Connection) -> None:
    """Create the tables unless they exist; Optuna's tables must exist."""
    for statement in _CREATE_TABLES:
        connection.execute(statement)


def tables_exist(connection: sa.Connection) -> bool:
    """Whether the tables exist, which they do not in a database of an earlier version."""
    return connection.execute(_EXIST).first() is not None


_INSERT = sa.text("""
INSERT INTO hpo_predictions (trial_id, logits) VALUES (:trial, :logits)
ON CONFLICT (trial_id) DO UPDATE SET logits = excluded.logits
""")


def insert(connection: sa.Connection, trial_id: int, logits: Logits) -> None:
    """Store a trial's logits `[posts, criteria]`, NaN where nothing was predicted, in the caller's transaction.

    Idempotent.
    """
    connection.execute(_INSERT, {"trial": trial_id, "logits": pack(logits)})


_SELECT = """
SELECT t.number, p.logits FROM hpo_predictions p JOIN trials t USING (trial_id) WHERE t.study_id = :study
"""
_SELECT_ALL = sa.text(f"{_SELECT} ORDER BY t.number")
_SELECT_SOME = sa.text(f"{_SELECT} AND t.number = ANY(:numbers) ORDER BY t.number")


def load(study: optuna.Study, numbers: Iterable[int] | None = None) -> dict[int, Logits]:
    """Read the predictions of the study's trials, by trial number in ascending order.

    Args:
        study: opened with `hpo.database.studies`.
        numbers: the trials to read; default: all. Trials without predictions are absent from the result.

    Raises:
        PredictionsError: a trial's predictions are damaged, or were written by a later version.
        StorageError: the database is unreachable.
    """
    storage = unwrap(study)
    sql_params = {"study": study_id(study)} | ({} if numbers is None else {"numbers": [int(n) for n in numbers]})
    statement = _SELECT_ALL if numbers is None else _SELECT_SOME

    def read() -> list[tuple[int, bytes]]:
        with storage.engine.connect() as connection:
            return [(row.number, bytes(row.logits)) for row in connection.execute(statement, sql_params)]

    stored = retry(read, storage.retry_seconds)
    return {number: unpack(content, f"the predictions of trial {number}") for number, content in stored}


# A study that is being deleted gets no row: its own row is locked, or gone.
_INSERT_BASELINES = sa.text("""
INSERT INTO hpo_baselines (study_id, logits)
SELECT study_id, :logits FROM studies WHERE study_id = :study FOR KEY SHARE
ON CONFLICT (study_id) DO UPDATE SET logits = excluded.logits
""")
_SELECT_BASELINES = sa.text("SELECT logits FROM hpo_baselines WHERE study_id = :study")


def insert_baselines(connection: sa.Connection, study: int, logits: Mapping[str, Logits], names: Sequence[str]) -> None:
    """Store the logits `[posts, criteria]` of a study's baselines in this order, in the caller's transaction.

    Idempotent.
    """
    connection.execute(_INSERT_BASELINES, {"study": study, "logits": pack(side_by_side(logits, names))})


def load_baselines(study: optuna.Study, names: Sequence[str]) -> dict[str, Logits] | None:
    """Read the logits of the study's baselines, None if they are not stored.

    Args:
        study: opened with `hpo.database.studies`.
        names: what they are called, in the order in which they were stored.

    Raises:
        PredictionsError: they are damaged, or were written by a later version.
        StorageError: the database is unreachable.
    """
    storage = unwrap(study)

    def read() -> bytes | None:
        with storage.engine.connect() as connection:
            return connection.execute(_SELECT_BASELINES, {"study": study_id(study)}).scalar()

    content = retry(read, storage.retry_seconds)
    return None if content is None else apart(unpack(bytes(content), "the predictions of the baselines"), names)


def side_by_side(logits: Mapping[str, Logits], names: Sequence[str]) -> Logits:
    """The logits of several predictors in the order of `names` as one array, `[posts, predictors × criteria]`."""
    return np.concatenate([logits[name] for name in names], axis=1)


def apart(together: Logits, names: Sequence[str]) -> dict[str, Logits]:
    """The logits `[posts, criteria]` of every predictor; `names` are in the order of `side_by_side`."""
    return dict(zip(names, np.split(together, len(names), axis=1), strict=True))


# ---- the format ------------------------------------------------------------------------------------------------------


def pack(logits: Logits) -> bytes:
    """The stored form of logits `[posts, criteria]`; posts with a NaN are left out."""
    predicted = ~np.isnan(logits).any(axis=1)
    values = np.clip(logits[predicted], -_LARGEST, _LARGEST).astype(np.float64)
    low, high = (end(values, axis=0) if len(values) else np.zeros(logits.shape[1]) for end in (np.min, np.max))
    steps = np.rint((values - low) / np.where(high > low, high - low, 1) * _STEPS)
    parts = (
        _SHAPE.pack(*logits.shape),
        np.packbits(predicted).tobytes(),
        np.stack([low, high]).astype(_LIMIT).tobytes(),
        steps.astype(_STEP).tobytes(),
    )
    return bytes([_VERSION]) + zlib.compress(b"".join(parts))


def unpack(content: bytes, name: str = "the predictions") -> Logits:
    """The logits `[posts, criteria]` in their stored form.

    Args:
        content: from `pack`.
        name: what the content is called in error messages.

    Raises:
        PredictionsError: the content is damaged, or was written by a later version.
    """
    if not content:
        raise _damaged(name, "they are empty")
    if content[0] != _VERSION:
        raise PredictionsError(
            f"{name} are damaged or have the format {content[0]} of a later version; this one reads format {_VERSION}"
        )
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(content[1:])
    except zlib.error as error:
        raise _damaged(name, str(error)) from error
    if not stream.eof or stream.unused_data or len(plain) < _SHAPE.size:
        raise _damaged(name, "their length is wrong")
    posts, criteria = _SHAPE.unpack_from(plain)
    bits = _SHAPE.size
    limits = bits + (posts + 7) // 8
    steps = limits + 2 * criteria * _LIMIT.itemsize
    if len(plain) < steps:
        raise _damaged(name, "their length is wrong")
    predicted = np.unpackbits(np.frombuffer(plain[bits:limits], np.uint8), count=posts).astype(bool)
    rows = int(predicted.sum())
    if len(plain) != steps + rows * criteria * _STEP.itemsize:
        raise _damaged(name, "their length is wrong")
    low, high = np.frombuffer(plain[limits:steps], _LIMIT).reshape(2, criteria).astype(np.float64)
    logits = np.full((posts, criteria), np.nan, dtype=np.float32)
    logits[predicted] = low + np.frombuffer(plain[steps:], _STEP).reshape(rows, criteria) * ((high - low) / _STEPS)
    return logits


def _damaged(name: str, why: str) -> PredictionsError:
    return PredictionsError(
        f"{name} are damaged ({why}); restore the database from a backup, or delete their row (of a trial in "
        "hpo_predictions, of baselines in hpo_baselines)"
    )
