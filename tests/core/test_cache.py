"""The cache folder: private, written atomically, and every file verified."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparse_evidence.core import cache
from sparse_evidence.core.errors import UserError

CONTENT = b"a table"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache"


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_only_the_owner_may_read_the_cache(folder):
    assert cache.fetch_once("table", SHA256, lambda: CONTENT) == CONTENT
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "table").stat().st_mode & 0o777 == 0o600


def test_a_cached_file_is_fetched_once_and_again_when_damaged(folder):
    fetches = []

    def fetch():
        fetches.append(1)
        return CONTENT

    assert cache.fetch_once("table", SHA256, fetch) == cache.fetch_once("table", SHA256, fetch) == CONTENT
    assert len(fetches) == 1
    (folder / "table").write_bytes(CONTENT[:3])
    assert cache.fetch_once("table", SHA256, fetch) == CONTENT
    assert len(fetches) == 2
    assert (folder / "table").read_bytes() == CONTENT


def test_content_with_the_wrong_hash_is_not_kept(folder):
    with pytest.raises(UserError, match="SHA-256 differs"):
        cache.fetch_once("table", SHA256, lambda: b"something else")
    assert not (folder / "table").exists()


def test_a_cache_folder_that_cannot_be_created_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in ("file", "file/below"):
        monkeypatch.setenv("HPO_CACHE", str(tmp_path / path))
        with pytest.raises(UserError, match="set HPO_CACHE to a folder you may write to"):
            cache.cache_dir()


def test_several_processes_fetch_once(folder, tmp_path):
    script = f"""
import time
from sparse_evidence.core.cache import fetch_once

def fetch():
    with open({str(tmp_path / "log")!r}, "a") as log:
        log.write("x")
    time.sleep(0.3)
    return {CONTENT!r}

assert fetch_once("table", {SHA256!r}, fetch) == {CONTENT!r}
"""
    root = Path(__file__).parents[2]
    running = [subprocess.Popen([sys.executable, "-c", script], cwd=root) for _ in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "x"


def test_the_folder_of_the_variable_is_used_and_created(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "a" / "b"))
    assert cache.cache_dir() == tmp_path / "a" / "b"
    assert cache.cache_dir().is_dir()
    monkeypatch.setenv("HPO_CACHE", "~/some cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / "some cache"


def test_without_the_variable_it_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("HPO_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.cache_dir().name == "sparse-evidence-hpo"
    assert tmp_path in cache.cache_dir().parents


def test_a_relative_folder_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPO_CACHE", "here")
    assert cache.cache_dir() == tmp_path / "here"


def test_a_failed_fetch_leaves_nothing_behind(folder):
    def fail():
        raise UserError("no network")

    with pytest.raises(UserError, match="no network"):
        cache.fetch_once("table", SHA256, fail)
    assert [path.name for path in folder.iterdir() if not path.name.endswith(".lock")] == []
    assert cache.fetch_once("table", SHA256, lambda: CONTENT) == CONTENT


def test_a_folder_in_the_place_of_the_file_is_refused(folder):
    folder.mkdir(parents=True)
    (folder / "table").mkdir()
    with pytest.raises(UserError, match="set HPO_CACHE to a folder you may write to"):
        cache.fetch_once("table", SHA256, lambda: CONTENT)


def test_writing_replaces_the_file_as_a_whole(tmp_path):
    path = tmp_path / "file"
    cache.write_atomically(path, b"first")
    with path.open("rb") as reader:  # a reader that has the file open keeps the old content
        cache.write_atomically(path, memoryview(b"second"))
        assert reader.read() == b"first"
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "file"
    cache.write_atomically(path, b"first")
    with pytest.raises(TypeError):
        cache.write_atomically(path, "text is not bytes")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_an_array_is_remembered_until_its_arguments_or_its_module_change_or_its_file_is_damaged(folder, tmp_path):
    module = tmp_path / "module.py"
    module.write_text("first", encoding="utf-8")
    computed = []

    def remembered(*arguments: bytes) -> list[int]:
        def compute() -> np.ndarray:
            computed.append(arguments)
            return np.arange(len(arguments), dtype=np.int16)

        found = cache.remembered("numbers", str(module), arguments, compute)
        assert found.dtype == np.int16
        return found.tolist()

    assert remembered(b"a", b"b") == remembered(b"a", b"b") == [0, 1]
    assert computed == [(b"a", b"b")]
    assert remembered(b"ab") == [0]
    assert len(computed) == 2
    for path in (folder / "numbers").iterdir():
        assert path.stat().st_mode & 0o077 == 0
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert remembered(b"ab") == [0]
    assert len(computed) == 3
    module.write_text("second", encoding="utf-8")
    assert remembered(b"ab") == [0]
    assert len(computed) == 4


def test_an_array_is_computed_if_it_cannot_be_kept(folder):
    folder.mkdir(parents=True)
    (folder / "numbers").write_bytes(b"a file where the folder should be")
    for _ in range(2):
        assert cache.remembered("numbers", __file__, [b"a"], lambda: np.ones(2)).tolist() == [1, 1]
