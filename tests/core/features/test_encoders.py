"""Where an encoder is found, and when two folders count as the same weights."""

import json
import os
import subprocess
import sys

import pytest

from sparse_evidence.core.config import DEFAULT_ENCODER
from sparse_evidence.core.errors import EncoderError
from sparse_evidence.core.features.embeddings import embed
from sparse_evidence.core.features.encoders import PACKAGED, locate

COMMIT = "c" * 40


def write_encoder(folder, **files):
    """A folder that looks like a saved encoder; `files` replaces or adds contents, with `__` for a dot."""
    contents = {"config__json": "{}", "model__safetensors": "weights", "vocab__txt": "words"} | files
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def revision(folder):
    return locate(str(folder)).revision


# ---- folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "modules.json"])
def test_either_configuration_file_makes_a_folder_an_encoder(file, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / file).write_text("{}")
    assert locate("one", tmp_path).folder == tmp_path / "one"


def test_an_encoder_keeps_the_name_that_it_was_requested_by(tmp_path):
    """Whatever folder it is relative to: the name is part of a study, which moves between machines."""
    write_encoder(tmp_path / "models" / "one")
    assert locate("models/one", tmp_path).name == "models/one"
    assert locate("./models/one", tmp_path).name == "./models/one"


def test_a_folder_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_encoder(tmp_path / "one")
    assert locate("~/one").folder == tmp_path / "one"


def test_without_a_base_a_name_is_relative_to_the_current_folder(tmp_path, monkeypatch):
    write_encoder(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    assert locate("one").folder == tmp_path / "one"


def test_the_package_comes_before_a_folder_of_the_same_name(tmp_path):
    write_encoder(tmp_path / DEFAULT_ENCODER)
    assert DEFAULT_ENCODER in PACKAGED
    assert locate(DEFAULT_ENCODER, tmp_path) == locate(DEFAULT_ENCODER)
    assert locate(f"./{DEFAULT_ENCODER}", tmp_path).folder == tmp_path / DEFAULT_ENCODER


def test_a_file_is_no_encoder(tmp_path):
    (tmp_path / "one").write_text("{}")
    with pytest.raises(EncoderError, match="one does not exist; give a folder"):
        locate("./one", tmp_path)


# ---- revisions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"config__json": "{ }"},
        {"model__safetensors": "other weights"},
        {"vocab__txt": "other words"},
        {"pytorch_model__bin": "more weights"},
        {"spiece__model": "pieces"},
    ],
    ids=lambda change: next(iter(change)).replace("__", "."),
)
def test_every_file_that_decides_a_vector_decides_the_revision(change, tmp_path):
    write_encoder(tmp_path / "one")
    assert revision(write_encoder(tmp_path / "two", **change)) != revision(tmp_path / "one")


@pytest.mark.parametrize("extra", [{"README__md": "read me"}, {"model__onnx": "the same weights"}], ids=["md", "onnx"])
def test_other_files_do_not_change_the_revision(extra, tmp_path):
    write_encoder(tmp_path / "one")
    assert revision(write_encoder(tmp_path / "two", **extra)) == revision(tmp_path / "one")


def test_the_names_of_files_are_part_of_the_revision(tmp_path):
    """The same contents under exchanged names are other weights."""
    write_encoder(tmp_path / "one", a__bin="first", b__bin="second")
    write_encoder(tmp_path / "two", a__bin="second", b__bin="first")
    write_encoder(tmp_path / "three", a__bin="first", c__bin="second")
    assert len({revision(tmp_path / name) for name in ("one", "two", "three")}) == 3


def test_files_in_subfolders_are_part_of_the_revision(tmp_path):
    before = revision(write_encoder(tmp_path / "one"))
    write_encoder(tmp_path / "one" / "1_Pooling", config__json='{"pooling": "mean"}')
    assert revision(tmp_path / "one") != before


# ---- loading ----------------------------------------------------------------------------------------------------

FOREIGN_CODE = [{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]
UNUSABLE = {
    "needs code": ({"modules.json": json.dumps(FOREIGN_CODE)}, "code from an encoder's folder is never run"),
    "needs code, transformers": (
        {"config.json": json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}})},
        "code from an encoder's folder is never run",
    ),
    "names any function": (
        {"modules.json": json.dumps([{**FOREIGN_CODE[0], "type": "os.system"}])},
        "code from an encoder's folder is never run",
    ),
    "lists no modules": ({"modules.json": "[]"}, r"cannot be loaded \(ValueError: "),
    "lists modules without a path": ({"modules.json": "[{}]"}, r"cannot be loaded \(KeyError: "),
    "is not JSON": ({"modules.json": "{"}, r"cannot be loaded \(JSONDecodeError: "),
    "has no weights": ({"config.json": '{"model_type": "bert"}'}, r"cannot be loaded \(OSError: "),
}


@pytest.mark.parametrize("why", UNUSABLE)
def test_an_encoder_that_cannot_be_loaded_is_one_sentence(why, tmp_path):
    files, message = UNUSABLE[why]
    ran = tmp_path / "ran"
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: pass\n")
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(EncoderError, match=message) as caught:
        embed(["a text"], locate(str(folder)), root=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not ran.exists()


# ---- the hub's local cache --------------------------------------------------------------------------------------

LOCATE = """
import json, sys
from sparse_evidence.core.features.encoders import locate
encoder = locate(sys.argv[1])
heavy = sorted({"torch", "transformers", "sentence_transformers"} & set(sys.modules))
print(json.dumps([encoder.name, str(encoder.folder), encoder.revision, heavy]))
"""


def locate_offline(name, cache):
    """[name, folder, revision, heavy packages imported] in a process that uses this cache of the hub, and no network.

    huggingface_hub reads both settings when it is imported.
    """
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    process = subprocess.run([sys.executable, "-c", LOCATE, name], env=environ, capture_output=True, check=False)
    assert process.returncode == 0, process.stderr.decode()
    return json.loads(process.stdout)


@pytest.mark.parametrize(("name", "repository"), [("tiny", "sentence-transformers--tiny"), ("lab/tiny", "lab--tiny")])
def test_a_downloaded_encoder_is_found_without_a_network(name, repository, tmp_path):
    """A bare name belongs to sentence-transformers, and the commit is the revision."""
    folder = tmp_path / f"models--{repository}"
    snapshot = write_encoder(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    assert locate_offline(name, tmp_path) == [name, str(snapshot), COMMIT, []]
