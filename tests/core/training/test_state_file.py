"""State files round-trip exactly; damaged, foreign or incomplete files are refused."""

import json
import math
import os
import stat
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from corpora import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_evidence.core.errors import CheckpointError
from sparse_evidence.core.training.state_file import _digest, load_state, pack_state, save_state, unpack_state

TIED = torch.arange(6.0).reshape(2, 3)
STATE = {
    "epoch": 3,
    "nothing": None,
    "yes": True,
    "big": 2**80,
    "exact": 0.1 + 0.2,
    "odd": [math.nan, math.inf, -math.inf, -0.0],
    "text": "über\n\x00$",
    "betas": (0.9, (0.999, [1, (2,)])),
    "empty": {"dict": {}, "list": [], "tuple": ()},
    "state": {0: {"step": torch.tensor(3.0)}, 1: {"step": torch.tensor(4.0)}, None: 1, -1: 2},
    "$tensor": "not one",
    "nested": {"$dict": [[1, 2]], "$float": "nan"},
    "tied": [TIED, TIED, TIED.T, TIED[:, 1]],
    "a/b": torch.ones(2),
    "a": {"b": torch.zeros(2)},
    "kinds": [
        torch.tensor([1.5], dtype=dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64)
    ],
    "mask": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "none_there": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    "arrays": [np.arange(6, dtype=np.int16)[::-2], np.float32([[math.nan]]), np.zeros((0, 2)), np.array(True)],
    "foreign": np.arange(3, dtype=">f8"),
}


def same(left, right):
    assert_same_bits(left, right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        assert [type(key) for key in left] == [type(key) for key in right]


def test_a_state_round_trips_exactly(tmp_path):
    save_state(tmp_path / "folder" / "it.safetensors", STATE)
    loaded = load_state(tmp_path / "folder" / "it.safetensors")
    expected = {**STATE, "parameter": STATE["parameter"].detach(), "foreign": np.arange(3.0)}
    same(loaded, expected)
    same(loaded["state"], STATE["state"])
    assert math.copysign(1, loaded["odd"][3]) == -1
    for before, after in zip(STATE["kinds"] + STATE["tied"], loaded["kinds"] + loaded["tied"], strict=True):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
    for before, after in zip(STATE["arrays"], loaded["arrays"], strict=True):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        after[...] = 0  # writable


def test_numpy_scalars_become_numbers():
    loaded = unpack_state(pack_state({"a": np.float32(0.1), "b": np.int64(3), "c": np.bool_(True)}))
    assert loaded == {"a": float(np.float32(0.1)), "b": 3, "c": True}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values))
@settings(max_examples=30, deadline=None)
def test_any_plain_state_round_trips_exactly(state):
    same(unpack_state(pack_state(state)), state)


def test_equal_states_are_equal_bytes():
    assert pack_state(STATE) == pack_state(STATE)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [0, {"b": object()}]}, r"object \(at /a/1/b\)"),
        ({"a": {1.5: 0}}, "must be strings, .* which they are not at /a"),
        ({"a": {(1, 2): 0}}, "must be strings, .* which they are not at /a"),
        ({"a": np.array(["text"])}, r"array of <U4 \(at /a\)"),
        ({"a": {1, 2}}, r"set \(at /a\)"),
    ],
)
def test_values_that_cannot_be_stored_are_named(state, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        save_state(tmp_path / "it", state)
    assert list(tmp_path.iterdir()) == []


# ---- damaged, foreign, half written -----------------------------------------------------------------------------


def test_damage_to_any_byte_is_detected():
    """A file with any byte changed is refused, or (padding, JSON white space) gives the same state."""
    state = {"epoch": 3, "weights": torch.arange(4.0), "rate": 0.1}
    content = pack_state(state)
    for offset in range(len(content)):
        damaged = bytearray(content)
        damaged[offset] ^= 0x04
        try:
            state_of_damaged = unpack_state(bytes(damaged))
        except CheckpointError:
            continue
        same(state_of_damaged, state)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(size, tmp_path):
    (tmp_path / "it").write_bytes(pack_state(STATE)[:size])
    with pytest.raises(CheckpointError, match="it is damaged"):
        load_state(tmp_path / "it")


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "plain").write_bytes(safetensors.torch.save({"a": torch.ones(2)}))
    (tmp_path / "newer").write_bytes(safetensors.torch.save({}, {"checkpoint": '{"format": 99, "state": {}}'}))
    torch.save({"a": 1}, tmp_path / "pickle")
    for name, message in (("plain", "not a checkpoint"), ("newer", "another version"), ("pickle", "not a checkpoint")):
        with pytest.raises(CheckpointError, match=message):
            load_state(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"absent cannot be read \(No such file"):
        load_state(tmp_path / "absent")


def forged(plain, tensors):
    """A file whose SHA-256 is right, whatever its state is."""
    envelope = {"format": 1, "sha256": _digest(plain, tensors), "state": plain}
    return safetensors.torch.save(tensors, {"checkpoint": json.dumps(envelope)})


def with_header(header, body=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def with_envelope(envelope):
    return with_header({"__metadata__": {"checkpoint": envelope}})


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"deeper": value}
    return value


TENSORS = {"a": torch.ones(2), "half": torch.ones(2, dtype=torch.bfloat16)}
FORGED_STATES = [
    [], None, 3, "text", {"$tuple": [1]}, {"$dict": 5}, nested(500),
    {"a": {"$tensor": "absent"}}, {"a": {"$tensor": [1]}}, {"a": {"$tensor": {}}},
    {"a": {"$array": "absent"}}, {"a": {"$array": "half"}},
    {"a": {"$float": "word"}}, {"a": {"$float": [1]}}, {"a": {"$tuple": 3}},
    {"a": {"$dict": 3}}, {"a": {"$dict": [1]}}, {"a": {"$dict": [[[1], 2]]}}, {"a": {"$dict": [[{}, 2]]}},
    {"a": {"$dict": [[1, 2, 3]]}},
]  # fmt: skip
FORGED_FILES = [
    with_envelope("[" * 100_000),
    with_envelope('{"format": 1, "state": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    with_envelope('{"format": 1, "state": NaN}'),
    with_envelope('{"format": 1, "state": ' + "9" * 5000 + "}"),
    with_envelope('{"format": 1, "sha256": 5, "state": {}}'),
    with_envelope("[]"),
    with_header({"__metadata__": None}),
    with_header(b"[" * 100_000),
    with_header(b"{}"),
    with_header({"a": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
    with_header({"a": {"dtype": "U64", "shape": [2**62], "data_offsets": [0, 0]}}),
    struct.pack("<Q", 2**63) + b"{}",
]


@pytest.mark.parametrize("plain", FORGED_STATES)
def test_a_forged_state_is_refused_in_one_sentence(plain):
    with pytest.raises(CheckpointError, match="the checkpoint is damaged or not a checkpoint") as caught:
        unpack_state(forged(plain, TENSORS))
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", FORGED_FILES)
def test_a_forged_file_is_refused(content, tmp_path):
    (tmp_path / "it").write_bytes(content)
    with pytest.raises(CheckpointError):
        load_state(tmp_path / "it")


def test_a_state_file_is_safetensors_with_json(tmp_path):
    """Readable by other tools, without this project."""
    from safetensors import safe_open

    save_state(tmp_path / "it", {"epoch": 3, "model": {"weight": TIED}})
    with safe_open(tmp_path / "it", "pt") as file:
        assert json.loads(file.metadata()["checkpoint"])["state"]["epoch"] == 3
        assert torch.equal(file.get_tensor("/model/weight"), TIED)
    assert b"pickle" not in (tmp_path / "it").read_bytes()


def test_only_the_owner_can_read(tmp_path):
    old = os.umask(0)
    try:
        save_state(tmp_path / "new" / "it", STATE)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new" / "it").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_killed_writer_leaves_the_last_complete_file(tmp_path):
    """The writer is killed while it overwrites the file repeatedly; the file is complete at any time."""
    path = tmp_path / "it"
    save_state(path, {"round": -1, "w": torch.zeros(1)})
    code = (
        "import torch; from sparse_evidence.core.training.state_file import save_state\n"
        "for round in range(10**6):\n"
        f"    save_state({str(path)!r}, {{'round': round, 'w': torch.full((200_000,), float(round))}})\n"
        "    print(round, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    )
    try:
        for _ in range(5):
            child.stdout.readline()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    loaded = load_state(path)
    assert loaded["round"] >= 4
    assert (loaded["w"] == loaded["round"]).all()
