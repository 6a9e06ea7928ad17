"""A study as a dict means what the file with the same content means."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.study.definition import from_document, load
from sparse_evidence.hpo.study.document import to_toml

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "studies").glob("*.toml"))

text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
)


@given(st.dictionaries(text, values))
def test_what_is_written_is_read_again(document):
    assert tomllib.loads(to_toml(document)) == document


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_dict_is_the_same_study_as_its_file(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    document = {"name": path.stem, **tomllib.loads(path.read_text(encoding="utf-8"))}
    made, loaded = from_document(document, environ={}), load(path, environ={})
    assert made.sha256() == loaded.sha256()
    assert made.path.parent == path.parent


def test_values_of_python_are_written_as_those_of_toml():
    document = {
        "a": np.float64(0.5),
        "b": np.int64(3),
        "c": Path("posts.csv"),
        "d": (1, 2),
        "e": None,
        "f": {"g": None},
    }
    assert tomllib.loads(to_toml(document)) == {"a": 0.5, "b": 3, "c": "posts.csv", "d": [1, 2], "f": {}}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"data": {"path": b"posts.csv"}}, r"^data\.path: a bytes is not allowed; a study has text, numbers"),
        ({"search": {"seed": Decimal(1)}}, r"^search\.seed: a Decimal is not allowed"),
        ({"data": {1: 2}}, r"the study has the key 1 in data; keys must be strings"),
        ([("name", "x")], "a study is a file or a dict, not a list"),
    ],
)
def test_what_a_study_file_cannot_hold_is_named(document, expected):
    with pytest.raises(UserError, match=expected):
        to_toml(document)
