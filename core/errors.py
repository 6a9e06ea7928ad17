"""Errors whose messages are written for users, what of a user's data they may show, and suggestions for names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

_MAX_WORD_LENGTH = 20  # characters; what is longer and has no space is not one word
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.\-]+")


class UserError(ValueError):
    """A user's mistake, explained in one sentence: what was wrong, where, what is allowed, what to do."""


class DataError(UserError):
    """A data file cannot be used as it is.

    `problems` has every mistake in the file, so that all can be fixed in one pass; the message lists the first
    `limit`.
    """

    def __init__(self, where: str, problems: Sequence[str], *, limit: int = 20) -> None:
        self.where = where
        self.problems = tuple(problems)
        count = "1 mistake" if len(self.problems) == 1 else f"{len(self.problems)} mistakes"
        super().__init__(f"{where} has {count}: {first(self.problems, limit)}")


class SplitError(UserError):
    """The posts cannot be split as requested."""


class EncoderError(UserError):
    """The encoder cannot be loaded."""


class ConfigError(UserError):
    """A configuration value is outside what is allowed."""


class NonFiniteLossError(ArithmeticError):
    """The training loss became NaN or infinite; lower the learning rate, or clip gradients harder."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class CheckpointError(UserError):
    """A checkpoint cannot be read."""


class OutOfMemoryError(MemoryError):
    """The model and its batch do not fit into memory; use smaller batches with more accumulation steps."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a name that is not in `known`: it suggests the nearest one and lists them all.

    Args:
        kind: what the name should be, such as "metric".
        name: the unknown name.
        known: all allowed names.
    """
    known = list(known)
    close = nearest(name, known)
    hint = f"did you mean '{close}'? " if close else ""
    return ConfigError(f"'{name}' is not a {kind}; {hint}allowed: {', '.join(known)}")


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Raise a ConfigError if the argument `name` has a value that is not in `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, but must be one of {', '.join(allowed)}")


def quote_value(value: str, max_words: int = 3, max_length: int = 40) -> str:
    """Quote a cell's value for a message; of a longer one, which could be a post's text, only the length is shown."""
    if not value:
        return "empty"
    return repr(value) if _may_be_shown(value, max_words, max_length) else f"a text of {len(value)} characters"


def shown_value(value: str) -> str:
    """The same without quotation marks."""
    return value if value and _may_be_shown(value) else quote_value(value)


def _may_be_shown(value: str, max_words: int = 3, max_length: int = 40) -> bool:
    return len(value) <= max_length and len(value.split()) <= max_words and not is_unspaced(value)


def is_unspaced(value: str) -> bool:
    """True if a value has a long part without a space, as text in Chinese, Japanese or Thai has.

    An identifier, such as a UUID or the name of a column, has none, however long it is.
    """
    return any(len(part) > _MAX_WORD_LENGTH and not _IDENTIFIER.fullmatch(part) for part in value.split())


def first(clauses: Sequence[str], limit: int = 20, *, separator: str = "; ") -> str:
    """Join the first clauses, and count the others."""
    more = len(clauses) - limit
    return separator.join(clauses[:limit]) + (f"{separator}and {more} more" if more > 0 else "")


def reason_of(error: BaseException, longest: int = 300) -> str:
    """The kind of an error of a library and the beginning of what it says, on one line, for a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:longest]


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known word closest to `word`, for a "did you mean" hint; None if none is similar.

    Args:
        word: what was written.
        known: what may have been meant.
        cutoff: how similar they must be, from 0 to 1 (the same).
    """
    import difflib  # needed only once something is wrong

    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)
