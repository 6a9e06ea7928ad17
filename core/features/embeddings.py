"""Texts to float32 vectors from a frozen encoder, each text once ever.

The cache is content-addressed: a vector is stored under the SHA-256 of its text, in a folder named after the encoder
and its revision. Vectors lie in immutable pack files, each written under a temporary name and renamed, so a reader
never sees half of one and a killed writer leaves nothing behind that counts. One process embeds at a time; others wait
and take what is there. For every list of texts asked for, the gathered matrix is kept as well and memory-mapped, so
that all workers of a machine share one copy in memory.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ..cache import cache_dir, write_atomically
from ..errors import UserError
from .encoders import Encoder

logger = logging.getLogger(__name__)

PACK_TEXTS = 1024
"""Texts per pack file: what an interrupted run can lose."""
BATCH_TOKENS = {"cpu": 1024, "accelerator": 32_768}
"""Tokens per batch, padding included: on a CPU as much as its caches hold, elsewhere what fills the device."""

Progress = Callable[[int, int], None]
"""Called with (texts done, texts to do) while embedding."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """The vectors of a list of texts, and what it took to get them."""

    vectors: npt.NDArray[np.float32]
    """float32 `[texts, dim]`, unit length, memory-mapped."""
    computed: int
    """Texts that were embedded just now; all the others came from the cache."""


def embed(
    texts: Sequence[str],
    encoder: Encoder,
    *,
    device: str = "cpu",
    batch_size: int | None = None,
    progress: Progress | None = None,
    root: Path | None = None,
) -> Embedded:
    """Unit-length embeddings of `texts`, in order; whatever was embedded before is read from the cache.

    Args:
        texts: at least one.
        encoder: from `encoders.locate`.
        device: where the encoder runs if it has to.
        batch_size: most texts per pass through the encoder; left out, as many as its token budget holds.
        progress: told how far it is.
        root: the cache; the user's own if left out.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = (root or cache_dir()) / "embeddings" / _folder_name(encoder)
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    view = folder / f"view-{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}.npy"
    if (kept := _map(view)) is not None:
        return Embedded(kept, 0)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _one_at_a_time(folder / "lock"):
            if (kept := _map(view)) is not None:
                return Embedded(kept, 0)
            wanted = dict(zip(keys, texts, strict=True))
            computed = _compute_missing(folder, wanted, encoder, device, batch_size, progress)
            _write_view(folder, view, keys)
    except OSError as error:
        raise UserError(
            f"the embedding cache {folder} cannot be used ({error.strerror or error}); free space or permissions, "
            "or point HPO_CACHE at a folder that can be written"
        ) from error
    written = _map(view)
    assert written is not None
    return Embedded(written, computed)


def _folder_name(encoder: Encoder) -> str:
    readable = re.sub(r"[^A-Za-z0-9]+", "-", encoder.name).strip("-")[-60:]
    return f"{readable}-{hashlib.sha256(encoder.revision.encode()).hexdigest()[:16]}"


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """The lock under which one process embeds; says so when it has to wait."""
    lock = FileLock(path, mode=0o600)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.info("another process is embedding; waiting for what it finds")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _compute_missing(
    folder: Path,
    wanted: dict[bytes, str],
    encoder: Encoder,
    device: str,
    batch_size: int | None,
    progress: Progress | None,
) -> int:
    known = _known_keys(folder)
    missing = [(key, text) for key, text in wanted.items() if key not in known]
    if not missing:
        return 0
    missing.sort()  # whoever embeds the same texts makes the same batches, so the same bits
    model = load_encoder(encoder, device)
    done = 0
    for at in range(0, len(missing), PACK_TEXTS):
        part = missing[at : at + PACK_TEXTS]
        texts = [text for _, text in part]
        vectors: npt.NDArray[np.float32] | None = None
        for rows in _batches(model, texts, batch_size):
            got = model.encode(
                [texts[row] for row in rows], batch_size=len(rows), normalize_embeddings=True, show_progress_bar=False
            )
            if vectors is None:
                vectors = np.empty((len(texts), got.shape[1]), dtype=np.float32)
            vectors[rows] = got
            done += len(rows)
            if progress is not None:
                progress(done, len(missing))
        assert vectors is not None
        _write_pack(folder, [key for key, _ in part], vectors)
    return len(missing)


def _batches(
    model: Any,  # noqa: ANN401
    texts: Sequence[str],
    at_most: int | None,
) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of `texts` that share a batch: of like length, longest first, padded size within the budget."""
    lengths = _lengths(model, texts)
    order = np.argsort(-lengths, kind="stable")
    budget = BATCH_TOKENS["cpu" if model.device.type == "cpu" else "accelerator"]
    at = 0
    while at < len(order):
        size = max(1, min(budget // int(lengths[order[at]]), at_most or len(order)))
        yield order[at : at + size]
        at += size


def _lengths(model: Any, texts: Sequence[str]) -> npt.NDArray[np.int64]:  # noqa: ANN401
    """Tokens of each text; characters say too little, and a batch of even lengths saves a quarter of the time."""
    if not callable(model.tokenizer):  # an encoder without a transformer: its length does not matter
        return np.array([len(text) // 4 + 1 for text in texts])
    tokens = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length)["input_ids"]
    return np.array([len(each) for each in tokens])


def load_encoder(encoder: Encoder, device: str) -> Any:  # noqa: ANN401  (importing the class costs seconds)
    """The sentence-transformers model, from local files and without chatter."""
    import sentence_transformers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return sentence_transformers.SentenceTransformer(str(encoder.folder), device=device, local_files_only=True)


def _known_keys(folder: Path) -> set[bytes]:
    return {row.tobytes() for pack in _packs(folder) for row in pack["keys"]}


def _packs(folder: Path) -> list[dict[str, npt.NDArray[Any]]]:
    """All packs; one that a failing disk or another program has damaged is removed, its texts are embedded again."""
    packs = []
    for path in sorted(folder.glob("pack-*.safetensors")):
        try:
            packs.append(load_file(path))
        except SafetensorError:
            logger.warning("%s is damaged; what was in it is embedded again", path)
            path.unlink()
    return packs


def _write_pack(folder: Path, keys: Sequence[bytes], vectors: npt.NDArray[np.float32]) -> None:
    table = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1)
    name = hashlib.sha256(b"".join(keys)).hexdigest()[:32]
    write_atomically(folder / f"pack-{name}.safetensors", save({"keys": table, "vectors": vectors}))


def _write_view(folder: Path, view: Path, keys: Sequence[bytes]) -> None:
    """Gather the vectors of `keys` from the packs into one `.npy` file."""
    places: dict[bytes, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    matrix: npt.NDArray[np.float32] | None = None
    for pack in _packs(folder):
        found = [(row, places[key]) for row, key in enumerate(map(bytes, pack["keys"])) if key in places]
        if matrix is None:
            matrix = np.empty((len(keys), pack["vectors"].shape[1]), dtype=np.float32)
        for row, targets in found:
            matrix[targets] = pack["vectors"][row]
    assert matrix is not None
    content = io.BytesIO()
    np.save(content, matrix, allow_pickle=False)
    write_atomically(view, content.getbuffer())


def _map(view: Path) -> npt.NDArray[np.float32] | None:
    """The matrix in a view file, or None if there is none or it is damaged."""
    try:
        # copy-on-write: torch wants a writable array, the pages stay shared as nobody writes
        return np.load(view, mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError):  # whoever has to write it learns what is wrong with the folder
        return None
