"""Where unfinished trials are saved: folders, buckets, and what goes wrong with them."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database.optuna_storage import ClaimLostError
from sparse_evidence.hpo.running import artifacts
from sparse_evidence.hpo.running.artifacts import Checkpoints


class State:
    """Something that counts."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"epoch": 0, "weights": np.zeros(3, np.float32)}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = dict(state)


class Claim:
    """What `Checkpoints` asks of a claim, without a database."""

    class trial:  # noqa: N801 (an attribute of a claim)
        number = 7

    def __init__(self) -> None:
        self.checkpoint: str | None = None
        self.checkpoint_sha256: str | None = None
        self.pending: str | None = None
        self.lost = False

    def announce(self, artifact: str) -> None:
        if self.lost:
            raise ClaimLostError
        self.pending = artifact

    def keep(self, artifact: str, sha256: str) -> None:
        if self.lost:
            raise ClaimLostError
        self.checkpoint, self.checkpoint_sha256, self.pending = artifact, sha256, None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def saving(folder: Path) -> Checkpoints:
    return Checkpoints(artifacts.open_store(str(folder)), every_seconds=0)


def saved(saving: Checkpoints, **state: Any) -> Claim:
    claim, made = Claim(), State()
    made.state |= state
    saving.save(claim, {"a": 1}, made)  # type: ignore[arg-type]
    return claim


def test_a_saved_state_comes_back(saving: Checkpoints, folder: Path) -> None:
    claim = saved(saving, epoch=3, weights=np.arange(3, dtype=np.float32))
    again = saving.resumed(claim, {"a": 1}, State)  # type: ignore[arg-type]
    assert again.state["epoch"] == 3
    assert again.state["weights"].tolist() == [0, 1, 2]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("harm", ["gone", "flipped", "cut", "of another configuration"])
def test_what_cannot_be_used_means_starting_over_with_a_warning(
    harm: str, saving: Checkpoints, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    claim = saved(saving, epoch=3)
    (file,) = folder.iterdir()
    content = file.read_bytes()
    if harm == "gone":
        file.unlink()
    elif harm == "flipped":
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif harm == "cut":
        file.write_bytes(content[:-1])
    config = {"a": 2 if harm == "of another configuration" else 1}
    assert saving.resumed(claim, config, State).state["epoch"] == 0  # type: ignore[arg-type]
    assert "Trial 7 starts over, its checkpoint cannot be used" in caplog.text


def test_what_an_earlier_worker_was_writing_is_removed(saving: Checkpoints, folder: Path) -> None:
    claim = saved(saving)
    claim.pending = "half"
    (folder / "half").write_bytes(b"x")
    saving.resumed(claim, {"a": 1}, State)  # type: ignore[arg-type]
    assert not (folder / "half").exists()


def test_who_lost_the_trial_leaves_no_file(saving: Checkpoints, folder: Path) -> None:
    claim = Claim()
    write = saving._store.write

    def lose(artifact: str, body: Any) -> None:
        write(artifact, body)
        claim.lost = True

    saving._store.write = lose  # type: ignore[method-assign]
    with pytest.raises(ClaimLostError):
        saving.save(claim, {}, State())  # type: ignore[arg-type]
    assert list(folder.iterdir()) == []


def test_a_store_that_fails_costs_no_trial(saving: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    saving._store.write = full  # type: ignore[method-assign]
    claim = Claim()
    saving.save(claim, {}, State())  # type: ignore[arg-type]
    assert claim.checkpoint is None
    assert "Trial 7 could not be saved (OSError: [Errno 28] No space left on device); it goes on." in caplog.text


def test_a_state_is_saved_no_more_often_than_asked(folder: Path) -> None:
    rare = Checkpoints(artifacts.open_store(str(folder)), every_seconds=1000)
    rare.epoch_ended(Claim(), {}, State())  # type: ignore[arg-type]
    assert list(folder.iterdir()) == []


def test_a_file_that_cannot_be_removed_is_tried_again(saving: Checkpoints) -> None:
    assert saving.discard("was never there")

    def locked(_: str) -> None:
        raise PermissionError

    saving._store.remove = locked  # type: ignore[method-assign]
    assert not saving.discard("x")


def test_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be created .*--artifacts"):
        artifacts.open_store(str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="give a folder or s3://BUCKET/PREFIX"):
        artifacts.open_store("gs://bucket/x")
    with pytest.raises(UserError, match="names no bucket"):
        artifacts.open_store("s3://")


# ---- a bucket --------------------------------------------------------------------------------------------------------


class Bucket(BaseHTTPRequestHandler):
    """The four verbs of S3 that are needed, path style, in memory."""

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
def test_a_bucket_holds_checkpoints_under_its_prefix(bucket: dict[str, bytes]) -> None:
    pytest.importorskip("boto3")
    store = artifacts.open_store("s3://home/studies/a")
    saving = Checkpoints(store, every_seconds=0)
    claim = saved(saving, epoch=5)
    (path,) = bucket
    assert path == f"/home/studies/a/{claim.checkpoint}"
    assert saving.resumed(claim, {"a": 1}, State).state["epoch"] == 5  # type: ignore[arg-type]
    assert saving.discard(str(claim.checkpoint))
    assert bucket == {}
    with pytest.raises(FileNotFoundError):
        store.open_reader("gone")
    store.write("x", io.BytesIO(b"y"))
    assert bucket == {"/home/studies/a/x": b"y"}
