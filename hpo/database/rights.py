"""What a database role may not do, in one sentence with the statement that an administrator must run."""

from __future__ import annotations

from typing import Any

from sparse_evidence.core.errors import UserError

_NO_RIGHT = "42501"
_NO_SCHEMA = "3F000"
_READ_ONLY = "25006"


class DatabaseRightsError(UserError):
    """The database's role may not do what is needed."""


def explained(error: BaseException | None) -> DatabaseRightsError | None:
    """The error to raise instead of `error`, if it says that the role lacks a right; else None."""
    original: Any = getattr(error, "orig", None)
    state = getattr(original, "pgcode", None)
    if state not in {_NO_RIGHT, _NO_SCHEMA, _READ_ONLY}:
        return None
    connected = getattr(getattr(original.cursor, "connection", None), "info", None)
    role, database = (connected.user, connected.dbname) if connected else ("THE ROLE", "THE DATABASE")
    reason = original.diag.message_primary or "no reason given"
    return DatabaseRightsError(_sentence(state, reason, f'"{role}"', f'"{database}"'))


def _sentence(state: str, reason: str, role: str, database: str) -> str:
    where = f"in the database {database}"
    if state == _NO_SCHEMA:
        return (
            f"The role {role} has no schema {where} to create tables in ({reason}): its search_path names none that "
            f"exists. Let an administrator run CREATE SCHEMA hpo AUTHORIZATION {role}; ALTER ROLE {role} SET "
            "search_path = hpo; or take search_path out of the URL."
        )
    if state == _READ_ONLY:
        return (
            f"The database {database} is read-only for {role} ({reason}): name the primary server, not a standby, or "
            f"let an administrator run ALTER ROLE {role} SET default_transaction_read_only = off;"
        )
    if "for schema" in reason:
        schema = reason.rpartition("for schema ")[2]
        return (
            f"The role {role} may not create tables in the schema {schema} of the database {database} ({reason}): let "
            f"an administrator run GRANT USAGE, CREATE ON SCHEMA {schema} TO {role};"
        )
    if "must be owner" in reason:
        return (
            f"The tables {where} were made by an earlier version, and only their owner can extend them, not {role} "
            f"({reason}): let the owner run `hpo status` once."
        )
    return (
        f"The role {role} may not use all tables {where} ({reason}): let their owner run GRANT SELECT, INSERT, UPDATE, "
        f"DELETE ON ALL TABLES IN SCHEMA public TO {role}; GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}; "
        "(SELECT alone is enough for `hpo status` and `hpo export`)."
    )
