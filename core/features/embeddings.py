"""Texts to float32 vectors with a frozen encoder; each text is embedded only once.

The cache is content-addressed: a vector is stored under the SHA-256 of its text, in a folder named after the encoder
and its revision. Vectors are in immutable pack files, which are written under a temporary name and renamed, so other
processes see only complete files, even if the writer is killed. One process embeds at a time; others wait and use its
results. The gathered matrix of every requested list of texts is cached as well, as a memory-mapped view, so that all
workers of a machine share one copy in memory.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..cache import CACHE_VARIABLE, cache_dir, write_atomically
from ..config import Precision
from ..errors import UserError
from .encoders import Encoder, loading

logger = logging.getLogger(__name__)

PACK_TEXTS = 1024
"""Texts per pack file: the most that an interrupted run can lose."""
BATCH_TOKENS = {"cpu": 1024, "accelerator": 32_768}
"""Tokens per batch, including padding: on a CPU what fits into its caches, otherwise what fills the device."""

Progress = Callable[[int, int], None]
"""Called with (texts done, texts to do) while embedding."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """The vectors of a list of texts, and how many of them were computed."""

    vectors: npt.NDArray[np.float32]
    """float32 `[texts, dim]`, unit length, memory-mapped."""
    computed: int
    """Texts embedded by this call; all others came from the cache."""


def embed(
    texts: Sequence[str],
    encoder: Encoder,
    *,
    device: str = "cpu",
    precision: Precision = "float32",
    batch_size: int | None = None,
    progress: Progress | None = None,
    root: Path | None = None,
) -> Embedded:
    """Unit-length embeddings of `texts`, in order; texts embedded before are read from the cache.

    Args:
        texts: at least one.
        encoder: from `encoders.locate`.
        device: where the encoder runs if some texts are not in the cache.
        precision: of its arithmetic; every precision has vectors of its own. The result is float32.
        batch_size: maximum number of texts per pass through the encoder; default: what the token budget allows.
        progress: called with (texts done, texts to do).
        root: the cache folder; default: `cache.cache_dir()`.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = (root or cache_dir()) / "embeddings" / _folder_name(encoder, precision)
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    view = folder / f"view-{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}.npy"
    if (cached := _map(view)) is not None:
        return Embedded(cached, 0)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _embedding_lock(folder / "lock"):
            if (cached := _map(view)) is not None:
                return Embedded(cached, 0)
            text_of = dict(zip(keys, texts, strict=True))
            computed = _compute_missing(folder, text_of, encoder, device, precision, batch_size, progress)
            _write_view(folder, view, keys)
    except OSError as error:
        raise UserError(
            f"the embedding cache {folder} cannot be used ({error.strerror or error}); free disk space, fix its "
            f"permissions, or set {CACHE_VARIABLE} to a writable folder"
        ) from error
    written = _map(view)
    assert written is not None
    return Embedded(written, computed)


class Embedder:
    """Embeds texts that are seen once, such as those that a model predicts: nothing is written to the cache.

    Args:
        encoder: from `encoders.locate`; loaded with the first texts.
        device: where it runs.
        precision: of its arithmetic.
    """

    def __init__(self, encoder: Encoder, *, device: str = "cpu", precision: Precision = "float32") -> None:
        self._encoder, self._device, self._precision = encoder, device, precision

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit-length embeddings `[texts, dim]` of at least one text, as `embed` returns them but for rounding."""
        return _encode(_last_loaded(self._encoder, self._device), texts, self._precision)


def mean_embeddings(embeddings: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Mean of each post's chunk embeddings: `[chunks, dim]` and `[posts + 1]` to float32 `[posts, dim]`."""
    sums = np.add.reduceat(embeddings, offsets[:-1], axis=0, dtype=np.float32)
    return np.asarray(sums / np.diff(offsets)[:, None], dtype=np.float32)


def _folder_name(encoder: Encoder, precision: Precision) -> str:
    slug = re.sub(r"[^A-Za-z0-9]+", "-", encoder.name).strip("-")[-60:]
    name = f"{slug}-{hashlib.sha256(encoder.revision.encode()).hexdigest()[:16]}"
    return name if precision == "float32" else f"{name}-{precision}"


@contextmanager
def _embedding_lock(path: Path) -> Iterator[None]:
    """Hold the lock that lets one process embed at a time; log a line before waiting for it."""
    lock = FileLock(path, mode=0o600)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.info("another process is embedding; waiting for its results")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _compute_missing(
    folder: Path,
    text_of: dict[bytes, str],
    encoder: Encoder,
    device: str,
    precision: Precision,
    batch_size: int | None,
    progress: Progress | None,
) -> int:
    """Embed the texts whose keys are in no pack, and write them into packs; returns their number."""
    known = _known_keys(folder)
    missing = [(key, text) for key, text in text_of.items() if key not in known]
    if not missing:
        return 0
    missing.sort()  # the same texts always form the same batches, and so get the same bits
    model = load_encoder(encoder, device)
    for at in range(0, len(missing), PACK_TEXTS):
        part = missing[at : at + PACK_TEXTS]

        def report(done: int, before: int = at) -> None:
            if progress is not None:
                progress(before + done, len(missing))

        vectors = _encode(model, [text for _, text in part], precision, batch_size, report)
        _write_pack(folder, [key for key, _ in part], vectors)
    return len(missing)


def _encode(
    model: Any,  # noqa: ANN401
    texts: Sequence[str],
    precision: Precision,
    batch_size: int | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> npt.NDArray[np.float32]:
    """Unit vectors of at least one text, `[texts, dim]`; calls `report` with the number of texts done."""
    vectors: npt.NDArray[np.float32] | None = None
    done = 0
    for rows in _batches(model, texts, batch_size):
        with _arithmetic(model.device.type, precision):
            batch = model.encode(
                [texts[row] for row in rows], batch_size=len(rows), normalize_embeddings=True, show_progress_bar=False
            )
        if vectors is None:
            vectors = np.empty((len(texts), batch.shape[1]), dtype=np.float32)
        vectors[rows] = batch
        done += len(rows)
        report(done)
    assert vectors is not None
    return vectors


def _arithmetic(device: str, precision: Precision) -> AbstractContextManager[Any]:
    """Matrix products in this precision; layer norms, softmax and the final normalisation stay in float32."""
    import torch

    return torch.autocast(device, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def _batches(
    model: Any,  # noqa: ANN401
    texts: Sequence[str],
    batch_size: int | None,
) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of `texts` for each batch: similar lengths, longest first, padded size within the token budget."""
    lengths = _lengths(model, texts)
    order = np.argsort(-lengths, kind="stable")
    budget = BATCH_TOKENS["cpu" if model.device.type == "cpu" else "accelerator"]
    at = 0
    while at < len(order):
        size = max(1, min(budget // int(lengths[order[at]]), batch_size or len(order)))
        yield order[at : at + size]
        at += size


def _lengths(model: Any, texts: Sequence[str]) -> npt.NDArray[np.int64]:  # noqa: ANN401
    """Number of tokens of each text, int64 `[texts]`.

    Batches grouped by token counts take a quarter less time than batches grouped by characters.
    """
    if not callable(model.tokenizer):  # an encoder without a transformer: lengths do not matter
        return np.array([len(text) // 4 + 1 for text in texts])
    tokens = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length)["input_ids"]
    return np.array([len(ids) for ids in tokens])


def load_encoder(encoder: Encoder, device: str) -> Any:  # noqa: ANN401  (importing the class costs seconds)
    """Load the sentence-transformers model from local files, without progress bars.

    Raises:
        EncoderError: the files are damaged, or need code of their own, which is never run.
    """
    import sentence_transformers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with loading(encoder):
        return sentence_transformers.SentenceTransformer(str(encoder.folder), device=device, local_files_only=True)


_last_loaded = lru_cache(maxsize=1)(load_encoder)


def _known_keys(folder: Path) -> set[bytes]:
    return {key for _, keys in _packs(folder) for key in keys}


def _packs(folder: Path) -> Iterator[tuple[Any, list[bytes]]]:
    """Open every pack and yield it with its keys; a damaged one is removed, so that its texts are embedded again.

    Vectors are read only by who asks for them: the cache holds everything that was ever embedded.
    """
    for path in sorted(folder.glob("pack-*.safetensors")):
        try:
            with safe_open(path, "numpy") as pack:
                yield pack, list(map(bytes, pack.get_tensor("keys")))
        except SafetensorError:
            logger.warning("%s is damaged; its texts will be embedded again", path)
            path.unlink()


def _write_pack(folder: Path, keys: Sequence[bytes], vectors: npt.NDArray[np.float32]) -> None:
    table = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1)
    name = hashlib.sha256(b"".join(keys)).hexdigest()[:32]
    write_atomically(folder / f"pack-{name}.safetensors", save({"keys": table, "vectors": vectors}))


def _write_view(folder: Path, view: Path, keys: Sequence[bytes]) -> None:
    """Gather the vectors of `keys` from the packs into one `.npy` file."""
    rows_of: dict[bytes, list[int]] = {}
    for row, key in enumerate(keys):
        rows_of.setdefault(key, []).append(row)
    matrix: npt.NDArray[np.float32] | None = None
    for pack, packed in _packs(folder):
        if rows_of.keys().isdisjoint(packed):
            continue
        vectors = pack.get_tensor("vectors")
        if matrix is None:
            matrix = np.empty((len(keys), vectors.shape[1]), dtype=np.float32)
        for key, vector in zip(packed, vectors, strict=True):
            if key in rows_of:
                matrix[rows_of[key]] = vector
    assert matrix is not None
    content = io.BytesIO()
    np.save(content, matrix, allow_pickle=False)
    write_atomically(view, content.getbuffer())


def _map(view: Path) -> npt.NDArray[np.float32] | None:
    """Map the matrix in a view file into memory; None if the file is missing or damaged."""
    try:
        # copy-on-write: torch wants a writable array, and the pages stay shared because nothing writes to them
        return np.load(view, mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError):  # writing the view will report what is wrong with the folder
        return None
