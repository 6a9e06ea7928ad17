"""Files of other formats: read, or refused with the way to convert them."""

import gzip
import json

import pandas as pd
import pytest

from sparse_evidence.core.corpus.pairs import PairsSource
from sparse_evidence.core.corpus.parts import format_of, open_table
from sparse_evidence.core.corpus.recognise import recognise
from sparse_evidence.core.errors import DataError, UserError

ROWS = pd.DataFrame(
    {"post_id": ["a", "b"], "post": ["One, two.", "Three."], "criterion": ["x", "x"], "label": [1.0, 0.0]}
)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.xlsx", "", "pandas.read_excel('t.xlsx').to_csv('t.csv', index=False)"),
        ("t.jsonl", '{"text": "x"}', "pandas.read_json('t.jsonl', lines=True).to_csv('t.csv', index=False)"),
        ("t.zip", "", "pandas.read_csv('t.zip').to_csv('t.csv', index=False)"),
        ("t.json", json.dumps([{"id": 1, "annotations": [], "data": {"text": "x"}}]), "an export of Label Studio: "),
        ("t.jsonl", json.dumps({"id": 1, "text": "x", "label": ["sad"]}), "an export of Doccano: "),
        ("t.jsonl", json.dumps({"text": "x", "_input_hash": 1, "accept": ["sad"]}), "an export of Prodigy: "),
        ("t.json", "[" * 100_000, "pandas.read_json"),
        ("t.docx", "", "allowed are .csv, .tsv and .parquet"),
    ],
)
def test_other_formats_are_refused_with_the_way_to_convert_them(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as refused:
        PairsSource(path=name).load(tmp_path)
    assert expected in str(refused.value)
    with pytest.raises(UserError, match="or name its format"):
        format_of(tmp_path / name, None)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_recognised(tmp_path, separator):
    path = tmp_path / "t.csv"
    ROWS.to_csv(path, index=False, sep=separator, decimal=",")
    corpus = PairsSource(path="t.csv").load(tmp_path)
    assert (corpus.posts, corpus.labels.tolist()) == (("One, two.", "Three."), [[1], [0]])
    assert recognise(path).source == PairsSource(path=str(path))
    with open_table(path, format_of(path, None)) as source:
        assert source.columns == ("post_id", "post", "criterion", "label")
        assert [part.cells(1) for part in source.parts()] == [["One, two.", "Three."]]


def test_text_may_be_compressed(tmp_path):
    ROWS.to_csv(tmp_path / "t.csv.gz", index=False)
    assert PairsSource(path="t.csv.gz").load(tmp_path).posts == ("One, two.", "Three.")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"post_id,post")[:-9])
    with pytest.raises(DataError, match="it is not a complete gzip file"):
        PairsSource(path="t.csv.gz").load(tmp_path)
