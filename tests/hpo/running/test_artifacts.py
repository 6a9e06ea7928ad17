"""Checkpoints of unfinished trials: saved in folders and buckets, resumed by other workers, lost and damaged."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from claim_tools import artifact_rows, claimed, claimed_soon
from optuna.trial import TrialState

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.errors import ClaimLostError
from sparse_evidence.hpo.running import artifacts
from sparse_evidence.hpo.running.artifacts import ArtifactStore, Checkpoints
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.reaper import Reaper

CONFIG = {"a": 1}


class Counter:
    """A resumable training: an epoch and weights."""

    def __init__(self, epoch: int = 0, weights: Any = (0, 0, 0)) -> None:
        self.epoch = epoch
        self.weights = np.array(weights, np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.weights = state["epoch"], state["weights"]


class FailingStore:
    """A store whose disk is full and whose files are locked."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        raise FileNotFoundError(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    def remove(self, artifact_id: str) -> None:
        raise PermissionError


class KeepingStore:
    """A store that removes nothing while `keeps` is set."""

    def __init__(self, store: ArtifactStore) -> None:
        self.open_reader, self.write = store.open_reader, store.write
        self._store, self.keeps = store, False

    def remove(self, artifact_id: str) -> None:
        if self.keeps:
            raise PermissionError
        self._store.remove(artifact_id)


class SlowStore:
    """A store that calls `after_write` when it has written an artifact, before it returns."""

    def __init__(self, store: ArtifactStore, after_write: Callable[[], object]) -> None:
        self.open_reader, self.remove = store.open_reader, store.remove
        self._store, self._after_write = store, after_write

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._store.write(artifact_id, content_body)
        self._after_write()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(artifacts.open_store(str(folder)), every_seconds=0)


def saved(checkpoints: Checkpoints, claims: Claims, state: Counter) -> Claim:
    """Claim a trial, save it and let another worker take it over."""
    claim = claimed(claims)
    checkpoints.save(claim, CONFIG, state)
    claim.release()
    return claimed(claims)


def test_a_saved_state_is_resumed(checkpoints: Checkpoints, folder: Path, claims: Any) -> None:
    claim = saved(checkpoints, claims(), Counter(3, [0, 1, 2]))
    resumed = checkpoints.restore(claim, CONFIG, Counter)
    assert resumed.epoch == 3
    assert resumed.weights.tolist() == [0, 1, 2]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_new_checkpoint_replaces_the_old_one(checkpoints: Checkpoints, folder: Path, claims: Any) -> None:
    worker = claims(discard=checkpoints.discard)
    claim = claimed(worker)
    for epoch in (1, 2):
        checkpoints.save(claim, CONFIG, Counter(epoch))
    (file,) = folder.iterdir()
    assert artifact_rows(worker)[0].checkpoint == file.name
    assert checkpoints.restore(claim, CONFIG, Counter).epoch == 2


@pytest.mark.parametrize("harm", ["missing", "flipped", "cut", "of another configuration"])
def test_an_unusable_checkpoint_means_starting_over_with_a_warning(
    harm: str, checkpoints: Checkpoints, folder: Path, claims: Any, caplog: pytest.LogCaptureFixture
) -> None:
    claim = saved(checkpoints, claims(), Counter(3))
    (file,) = folder.iterdir()
    content = file.read_bytes()
    if harm == "missing":
        file.unlink()
    elif harm == "flipped":
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif harm == "cut":
        file.write_bytes(content[:-1])
    config = {"a": 2} if harm == "of another configuration" else CONFIG
    assert checkpoints.restore(claim, config, Counter).epoch == 0
    assert "Trial 0 starts over because its checkpoint cannot be used" in caplog.text


def test_the_artifact_that_an_earlier_worker_was_writing_is_removed(
    checkpoints: Checkpoints, folder: Path, claims: Any
) -> None:
    worker = claims()
    claim = claimed(worker)
    half = artifacts.new_name(0)
    claim.mark_pending(half)
    (folder / half).write_bytes(b"x")
    claim.release()
    checkpoints.restore(claimed(worker), CONFIG, Counter)
    assert not (folder / half).exists()


def test_a_worker_that_loses_its_trial_while_saving_leaves_no_file(folder: Path, claims: Any) -> None:
    cut_off, other = (claims(budget=1, grace_seconds=0.01) for _ in range(2))
    store = SlowStore(artifacts.open_store(str(folder)), after_write=lambda: claimed_soon(other))
    claim = claimed(cut_off)  # no heartbeat, because its context is not entered
    with pytest.raises(ClaimLostError):
        Checkpoints(store, every_seconds=0).save(claim, CONFIG, Counter())
    assert list(folder.iterdir()) == []


def test_a_store_that_fails_does_not_end_the_trial(claims: Any, caplog: pytest.LogCaptureFixture) -> None:
    claim = claimed(claims())
    Checkpoints(FailingStore(), every_seconds=0).save(claim, CONFIG, Counter())
    assert claim.checkpoint is None
    assert (
        "Trial 0 could not be saved (OSError: [Errno 28] No space left on device); training continues." in caplog.text
    )


def test_a_state_is_saved_no_more_often_than_requested(folder: Path, claims: Any) -> None:
    rare = Checkpoints(artifacts.open_store(str(folder)), every_seconds=1000)
    rare.epoch_ended(claimed(claims()), CONFIG, Counter())
    assert list(folder.iterdir()) == []


FOREIGN = [
    "{folder}/thesis.tex", "../thesis.tex", "thesis.tex", "", ".", "trial-1-{hex}.safetensors/../thesis.tex",
    "trial-1-{hex}.safetensors\n", "trial-\u0661-{hex}.safetensors", "trial-1-{HEX}.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_only_what_a_worker_saved_is_read_written_or_removed(
    name: str, folder: Path, claims: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can write to the database can name any file in a claim."""
    store = artifacts.open_store(str(folder))
    checkpoints = Checkpoints(store, every_seconds=0)
    name = name.format(folder=folder, hex="0" * 32, HEX="A" * 32)
    thesis = [folder / "thesis.tex", folder.parent / "thesis.tex"]
    for file in thesis:
        file.write_text("mine")
    worker = claims(budget=1, discard=checkpoints.discard, grace_seconds=0.01)
    claim = claimed(worker)
    claim.mark_pending(name)
    claim.commit_checkpoint(name, hashlib.sha256(b"mine").hexdigest())
    claim.release()
    resumed = claimed(worker)
    assert checkpoints.restore(resumed, CONFIG, Counter).epoch == 0
    assert "DecodeError" not in caplog.text
    assert not name or "which no worker saved" in caplog.text
    with pytest.raises(FileNotFoundError):
        store.write(name, io.BytesIO(b"x"))
    resumed.finish(TrialState.COMPLETE, 1.0)
    Reaper(worker).reap()
    assert artifact_rows(worker) == [], "the claim is cleaned up all the same"
    assert [file.read_text() for file in thesis] == ["mine", "mine"]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_not_opened(kind: str, checkpoints: Checkpoints, folder: Path, claims: Any) -> None:
    claim = saved(checkpoints, claims(), Counter(3))
    (file,) = folder.iterdir()
    elsewhere = file.rename(folder.parent / "elsewhere")
    {"link": lambda: file.symlink_to(elsewhere), "pipe": lambda: os.mkfifo(file), "folder": file.mkdir}[kind]()
    assert checkpoints.restore(claim, CONFIG, Counter).epoch == 0


def test_a_checkpoint_that_grew_is_not_read_into_memory(
    checkpoints: Checkpoints, folder: Path, claims: Any, caplog: pytest.LogCaptureFixture
) -> None:
    claim = saved(checkpoints, claims(), Counter(3))
    (file,) = folder.iterdir()
    os.truncate(file, 1 << 28)  # sparse: it takes no room
    tracemalloc.start()
    try:
        assert checkpoints.restore(claim, CONFIG, Counter).epoch == 0
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
    assert "its SHA-256 differs" in caplog.text


def test_a_file_that_cannot_be_removed_is_to_be_retried(checkpoints: Checkpoints) -> None:
    assert checkpoints.discard(artifacts.new_name(0))
    assert not Checkpoints(FailingStore(), every_seconds=0).discard("x")


def test_stores_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be created .*--artifacts"):
        artifacts.open_store(str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="give a folder or s3://BUCKET/PREFIX"):
        artifacts.open_store("gs://bucket/x")
    with pytest.raises(UserError, match="names no bucket"):
        artifacts.open_store("s3://")
    with pytest.raises(UserError, match="give a folder or s3://BUCKET/PREFIX"):
        artifacts.open_store("s3:/bucket")
    assert not Path("s3:").exists()


# ---- a bucket --------------------------------------------------------------------------------------------------------


class Bucket(BaseHTTPRequestHandler):
    """The four verbs of S3 that are used, path style, in memory."""

    objects: dict[str, bytes]

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, code: int, body: bytes = b"") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"x"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self) -> None:
        self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200)

    def do_GET(self) -> None:
        if self.path in self.objects:
            self._answer(200, self.objects[self.path])
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.objects.pop(self.path, None)
        self._answer(204)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    objects: dict[str, bytes] = {}
    handler = type("Handler", (Bucket,), {"objects": objects})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    yield objects
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore:.*utcnow:DeprecationWarning")
def test_a_bucket_stores_checkpoints_under_its_prefix(bucket: dict[str, bytes], claims: Any) -> None:
    pytest.importorskip("boto3")
    store = artifacts.open_store("s3://home/studies/a")
    checkpoints = Checkpoints(store, every_seconds=0)
    claim = claimed(claims())
    checkpoints.save(claim, CONFIG, Counter(epoch=5))
    (path,) = bucket
    assert path == f"/home/studies/a/{claim.checkpoint}"
    assert checkpoints.restore(claim, CONFIG, Counter).epoch == 5
    assert checkpoints.discard(str(claim.checkpoint))
    assert bucket == {}
    name = artifacts.new_name(7)
    with pytest.raises(FileNotFoundError):
        store.open_reader(name)
    store.write(name, io.BytesIO(b"y"))
    assert bucket == {f"/home/studies/a/{name}": b"y"}
    bucket["/home/studies/thesis.tex"] = b"mine"
    for use in (store.open_reader, store.remove, lambda name: store.write(name, io.BytesIO(b"x"))):
        with pytest.raises(FileNotFoundError):
            use("../thesis.tex")
    assert checkpoints.discard("../thesis.tex")
    assert bucket["/home/studies/thesis.tex"] == b"mine"


def test_a_file_that_cannot_be_removed_for_a_while_stays_known(claims: Callable[..., Claims], tmp_path: Path) -> None:
    store = KeepingStore(artifacts.open_store(str(tmp_path)))
    checkpoints = Checkpoints(store, every_seconds=0)
    mine = claims(discard=checkpoints.discard)
    claim = claimed(mine)
    checkpoints.save(claim, CONFIG, Counter(1))
    store.keeps = True
    for epoch in (2, 3, 4):
        checkpoints.save(claim, CONFIG, Counter(epoch))
        (names,) = artifact_rows(mine)
        assert {path.name for path in tmp_path.iterdir()} == set(names), "every file is named by the claim"
    store.keeps = False
    checkpoints.save(claim, CONFIG, Counter(5))
    assert [path.name for path in tmp_path.iterdir()] == [claim.checkpoint]
    assert checkpoints.restore(claim, CONFIG, Counter).epoch == 5


@pytest.mark.filterwarnings("ignore:.*utcnow:DeprecationWarning")
def test_a_bucket_that_is_away_costs_one_line_and_not_the_trial(
    claims: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("boto3")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{address[1]}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "2",
    }.items():
        monkeypatch.setenv(name, value)
    claim = claimed(claims())
    Checkpoints(artifacts.open_store("s3://home"), every_seconds=0).save(claim, CONFIG, Counter())
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.levelname for record in lines] == ["WARNING"]
    assert lines[0].getMessage().startswith("Trial 0 could not be saved (EndpointConnectionError: ")
    assert lines[0].exc_info is None
