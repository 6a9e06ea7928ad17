"""The sentences a user reads when something they gave us cannot be used."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """A user's mistake, told in one sentence: what was wrong, where, what is allowed, what to do."""


class DataError(UserError):
    """A data file cannot be used as it is.

    Every mistake found in the file is in `problems`, so that a file is mended in one go.
    """

    def __init__(self, where: str, problems: Sequence[str], *, shown: int = 20) -> None:
        self.where = where
        self.problems = tuple(problems)
        listed = "; ".join(self.problems[:shown])
        if len(self.problems) > shown:
            listed += f"; and {len(self.problems) - shown} more"
        count = "1 mistake" if len(self.problems) == 1 else f"{len(self.problems)} mistakes"
        super().__init__(f"{where} has {count}: {listed}")


class SplitError(UserError):
    """The posts cannot be split as asked."""


class EncoderError(UserError):
    """The encoder cannot be loaded."""


class ConfigError(UserError):
    """A configuration value is outside what is allowed."""


class NonFiniteLossError(ArithmeticError):
    """The training loss became NaN or infinite; lower the learning rate, or clip harder."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class CheckpointError(UserError):
    """A checkpoint cannot be read."""


class OutOfMemoryError(MemoryError):
    """The model and its batch do not fit into memory; use smaller batches with more accumulation steps."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)
