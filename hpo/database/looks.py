"""Looks at a study's hold-out: each is counted in the database before anybody sees its numbers."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .connection import engine_of
from .locks import lock_study
from .optuna_storage import study_id, unwrap
from .record import LOOKS
from .retry import retry
from .trial_rows import select_study_attribute, utc_now, write_study_attribute

if TYPE_CHECKING:
    from optuna import Study


def record_look(study: Study, look: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Add a look to those of the study, with the time of the database's clock.

    Of several at the same time each gets a number of its own.

    Args:
        study: the study whose hold-out it is.
        look: what was looked at, and what was seen; JSON values.

    Returns:
        All looks, this one last; its number is how many there are.

    Raises:
        StorageError: the database is unreachable; nobody may see the numbers then.
    """
    name = uuid.uuid4().hex  # so that a repetition after a lost answer does not count twice

    def add() -> list[dict[str, Any]]:
        with engine_of(study).begin() as connection:
            lock_study(connection, study_id(study))
            looks: list[dict[str, Any]] = select_study_attribute(connection, study_id(study), LOOKS) or []
            counted = [each["id"] for each in looks]
            if name in counted:
                return looks[: counted.index(name) + 1]
            looks = [*looks, {"id": name, "time": utc_now(connection), **look}]
            write_study_attribute(connection, study_id(study), LOOKS, looks)
            return looks

    return retry(add, unwrap(study).retry_seconds)
