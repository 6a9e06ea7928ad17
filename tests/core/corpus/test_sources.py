"""The registry of data sources, and what all of them have in common."""

import ast
import inspect
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from sparse_evidence.core.corpus.data import Corpus
from sparse_evidence.core.corpus.sources import SOURCES, Source


def test_the_first_field_of_every_source_is_its_name():
    for name, kind in SOURCES.items():
        first = fields(kind)[0]
        assert (first.name, first.default) == ("source", name)


def test_the_registry_has_every_member_of_the_union():
    assert set(SOURCES.values()) == set(get_args(Source))


def test_every_field_is_documented():
    """The docstrings below the fields are the documentation of the settings, so none may be missing."""
    for kind in SOURCES.values():
        body = ast.parse(inspect.getsource(kind)).body[0].body
        documented = {
            field.target.id
            for field, following in pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr)
        }
        assert documented == {field.name for field in fields(kind)} - {"source"}
        assert kind.__doc__


def test_sources_are_immutable_and_hashable():
    source = SOURCES["synthetic"](posts=30)
    with pytest.raises(FrozenInstanceError):
        source.posts = 40
    assert source == SOURCES["synthetic"](posts=30)
    assert hash(source) == hash(SOURCES["synthetic"](posts=30))


@pytest.mark.parametrize("name", ["pairs", "redsm5"])
def test_table_sources_load_from_the_folder_they_are_given(name, tmp_path):
    nested = tmp_path / "data"
    nested.mkdir()
    (nested / "pairs.csv").write_text("post_id,post,criterion,label\np1,One.,a,1\np2,Two.,a,0\n")
    (nested / "redsm5_posts.csv").write_text("post_id,text\np1,One.\np2,Two.\n")
    (nested / "redsm5_annotations.csv").write_text(
        "post_id,sentence_text,DSM5_symptom,status\np1,One.,FATIGUE,1\n",
    )
    source = SOURCES[name](path="pairs.csv") if name == "pairs" else SOURCES[name]()
    corpus = source.load(nested)
    assert isinstance(corpus, Corpus)
    assert corpus.post_ids == ("p1", "p2")


def test_importing_the_sources_loads_no_heavy_package():
    code = (
        "import sys, sparse_evidence.core.corpus.sources;"
        "print(*{'torch', 'pandas', 'pyarrow', 'sklearn', 'transformers', 'faiss'} & sys.modules.keys())"
    )
    root = Path(__file__).parents[3]
    completed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert completed.stdout.split() == []
