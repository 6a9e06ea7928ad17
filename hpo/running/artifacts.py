"""Checkpoints of unfinished trials, saved where any worker can resume from them: Optuna's artifact stores.

A trial's claim names its checkpoint. Claims are fenced like every other write, so a worker that lost the trial cannot
change it, and an artifact that no claim names is not a checkpoint. An artifact is recorded in the claim *before* it is
written, and its SHA-256 is verified when it is read. A missing or damaged checkpoint costs time, never the trial:
training starts over, with bit-identical results.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from sparse_evidence.core.errors import UserError
from sparse_evidence.core.training.state_file import pack_state, unpack_state

from ..database.address import mask_password
from ..errors import ClaimLostError, StorageError
from .claims import Claim

logger = logging.getLogger(__name__)

VARIABLE = "HPO_ARTIFACTS"
FOLDER = Path(".hpo") / "artifacts"
NAME = re.compile(r"trial-\d+-[0-9a-f]{32}\.safetensors", re.ASCII)
"""The only names that an artifact has. A store touches nothing else, whatever names the database gives it."""
_BLOCK_BYTES = 1 << 20


class ArtifactStore(Protocol):
    """Optuna's protocol, but a missing artifact is a `FileNotFoundError`, so that Optuna need not be imported."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact; raises `FileNotFoundError`."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact."""

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact; raises `FileNotFoundError`."""


class Resumable(Protocol):
    """What a checkpoint saves and restores: a cross-validation."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that `load_state_dict` needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`."""


S = TypeVar("S", bound=Resumable)


def open_store(where: str | None = None) -> ArtifactStore:
    """Open the store at `where` (`--artifacts`), else at `HPO_ARTIFACTS`, else in `.hpo/artifacts`.

    Workers on several machines share a folder (NFS) or a bucket, `s3://BUCKET/PREFIX`, with boto3's usual settings.

    Raises:
        UserError: the folder cannot be created, or the URL is not that of a bucket.
    """
    where = where or os.environ.get(VARIABLE) or str(FOLDER)
    if where.startswith("s3://"):
        return _bucket(where)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", where):  # `s3:/bucket` is a typing error, not a folder
        raise UserError(
            f"the artifact store {mask_password(where)} is not supported: give a folder or s3://BUCKET/PREFIX"
        )
    folder = Path(where).expanduser().absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {folder} for checkpoints cannot be created ({error.strerror}); choose another with "
            f"--artifacts ({VARIABLE})"
        ) from error
    return _PrivateFolder(folder)


class Checkpoints:
    """Saves and restores checkpoints, for one worker.

    Args:
        store: where the artifacts are.
        every_seconds: minimum time between two checkpoints; 0: a checkpoint after every epoch.
    """

    def __init__(self, store: ArtifactStore, *, every_seconds: float) -> None:
        self._store = store
        self._every = every_seconds
        self._last = time.monotonic()

    def restore(self, claim: Claim, config: Mapping[str, Any], make: Callable[[], S]) -> S:
        """Return what `make` creates, restored from the claim's checkpoint if there is one that can be used.

        Args:
            claim: the trial.
            config: the configuration that is trained; a checkpoint of another one is not used.
            make: creates it untrained; called again if a checkpoint could be loaded only in part.
        """
        self._last = time.monotonic()
        if claim.pending:
            self.discard(claim.pending)  # its writer is dead
        fresh = make()
        if claim.checkpoint is None or claim.checkpoint_sha256 is None:
            return fresh
        try:
            fresh.load_state_dict(self._load(claim.checkpoint, claim.checkpoint_sha256, config))
        except Exception as error:  # noqa: BLE001 (whatever is wrong, the trial can start over)
            reason = "it does not exist" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
            logger.warning(
                "Trial %d starts over because its checkpoint cannot be used (%s); do all workers share %s?",
                claim.trial.number, reason, VARIABLE, extra={"action": "checkpoint_unusable"},
            )  # fmt: skip
            return make()
        return fresh

    def epoch_ended(self, claim: Claim, config: Mapping[str, Any], state: Resumable) -> None:
        """Save a checkpoint unless the last one is too recent. Raises `ClaimLostError`."""
        if time.monotonic() - self._last >= self._every:
            self.save(claim, config, state)

    def save(self, claim: Claim, config: Mapping[str, Any], state: Resumable) -> None:
        """Save a checkpoint. An error of the store is logged, and training continues. Raises `ClaimLostError`."""
        if claim.pending and not self.discard(claim.pending):
            # The claim has room for the name of one file that is to be removed, and nothing else knows of it.
            logger.warning("Trial %d is not saved until its previous checkpoint can be removed; training continues.",
                           claim.trial.number, extra={"action": "checkpoint_failed"})  # fmt: skip
            self._last = time.monotonic()
            return
        content = pack_state({"config": dict(config), "state": state.state_dict()})
        artifact = new_name(claim.trial.number)
        try:
            claim.mark_pending(artifact)
            self._store.write(artifact, io.BytesIO(content))
            claim.commit_checkpoint(artifact, hashlib.sha256(content).hexdigest())
        except ClaimLostError:
            self.discard(artifact)
            raise
        except StorageError:
            raise  # this is the database, not the store, and retries are exhausted
        except Exception as error:  # noqa: BLE001 (a full disk, an unreachable bucket)
            logger.warning("Trial %d could not be saved (%s: %s); training continues.", claim.trial.number,
                           type(error).__name__, error, extra={"action": "checkpoint_failed"})  # fmt: skip
        self._last = time.monotonic()

    def discard(self, artifact: str) -> bool:
        """Remove an artifact; False if it failed and must be retried later."""
        try:
            self._store.remove(artifact)
        except FileNotFoundError:
            return True
        except Exception as error:  # noqa: BLE001 (a reaper retries)
            logger.warning("Checkpoint %s could not be removed (%s).", artifact, type(error).__name__)
            return False
        return True

    def _load(self, artifact: str, sha256: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Read a checkpoint. Raises `ValueError` if it is damaged or belongs to another configuration."""
        with closing(self._store.open_reader(artifact)) as reader:
            if _sha256(reader) != sha256:  # before it is read into memory: what is there may be of any size
                raise ValueError("its SHA-256 differs")
        with closing(self._store.open_reader(artifact)) as reader:
            saved = unpack_state(reader.read())
        if saved["config"] != config:
            raise ValueError("it belongs to another configuration")
        state: dict[str, Any] = saved["state"]
        return state


def new_name(trial: int) -> str:
    """Return a name for an artifact of a trial that no other artifact has."""
    return f"trial-{trial}-{uuid.uuid4().hex}.safetensors"


def _checked(artifact: str) -> str:
    """Return the name of an artifact. Any other name, such as a path that was written into the database, has none.

    Raises:
        FileNotFoundError: nothing that a worker saved has this name.
    """
    if not NAME.fullmatch(artifact):
        logger.warning(
            "The database names %r as a checkpoint, which no worker saved; it is left alone.", artifact[:200],
            extra={"action": "checkpoint_foreign"},
        )  # fmt: skip
        raise FileNotFoundError(artifact)
    return artifact


def _sha256(reader: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := reader.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


class _PrivateFolder:
    """A folder of artifacts that only their owner can read, whatever the permissions of the folder.

    Importing Optuna's class would import its cloud stores, and with them every client library that is installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open_reader(self, artifact_id: str) -> BinaryIO:
        # Neither what a link leads to nor a pipe, on which opening would wait for ever.
        file = os.open(self._folder / _checked(artifact_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise FileNotFoundError(artifact_id)
        return os.fdopen(file, "rb")

    def remove(self, artifact_id: str) -> None:
        (self._folder / _checked(artifact_id)).unlink()

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        file = os.open(self._folder / _checked(artifact_id), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "wb") as out:
            out.write(content_body.read())


class _Bucket:
    """One of Optuna's stores, with a prefix added to the name of every artifact."""

    def __init__(self, store: ArtifactStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def open_reader(self, artifact_id: str) -> BinaryIO:
        from optuna.artifacts.exceptions import ArtifactNotFound

        try:
            return self._store.open_reader(self._prefix + _checked(artifact_id))
        except ArtifactNotFound as error:
            raise FileNotFoundError(artifact_id) from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._store.write(self._prefix + _checked(artifact_id), content_body)

    def remove(self, artifact_id: str) -> None:
        self._store.remove(self._prefix + _checked(artifact_id))


def _bucket(url: str) -> ArtifactStore:
    from optuna.artifacts import Boto3ArtifactStore

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"the artifact store {url} names no bucket: give s3://BUCKET/PREFIX")
    try:
        import boto3  # noqa: F401 (Optuna needs it)
    except ImportError:
        raise UserError("s3:// needs boto3: pip install 'sparse-evidence-hpo[s3]'") from None
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    # boto3 repeats what fails (AWS_MAX_ATTEMPTS, AWS_RETRY_MODE). Optuna's `Backoff` would log a traceback each time.
    return _Bucket(Boto3ArtifactStore(bucket), prefix)
