"""Study files and tables in every state: a study or one message, never a traceback, never a hang.

`make fuzz` tries ten thousand of each; the suite tries a few hundred, always the same ones.
"""

from __future__ import annotations

import copy
import io
import json
import os
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from in_process import at_most, hpo

from sparse_evidence.core.errors import UserError
from sparse_evidence.core.features.chunks import chunk
from sparse_evidence.core.splits import split
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.definition import load

ROOT = Path(__file__).parents[2]
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SECONDS = 60.0
"""Far more than any example takes, even on a busy machine."""
LONGEST = 20_000
"""Characters of a message: twenty mistakes, and the rest counted."""

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey; a message has line ends only."""

many = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # what fails is read as it is: shrinking takes minutes
    print_blob=True,
)


def is_told(ended: Any) -> None:
    """It worked, or it is the user's mistake in words."""
    assert ended.code in {0, 2}
    assert "Traceback" not in ended.err
    if ended.code:
        assert ended.err.startswith("hpo: "), ended.err[:500]
        assert len(ended.err) < LONGEST
        assert not CONTROL.search(ended.err), ended.err[:500]


# ---- study files -----------------------------------------------------------------------------------------------------

# Of those that name a file, which is absent: what is right about a study ends there, before anything is trained.
DOCUMENTS = [
    tomllib.loads((ROOT / "studies" / name).read_text())
    for name in ("pairs.toml", "redsm5_iris.toml", "redsm5_token.toml")
]
ODD = st.sampled_from([
    None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e-300, 1e39, 1e308, float("nan"), float("inf"), -float("inf"),
    2**31, 2**53 + 1, 2**63, 10**400, "", " ", "\0", "\x7f", "\x1b[2J", "ü", "\U0001f600", "../..", "/", "[red]",
    "[/bold]", "nan",
    "1", "true", "x" * 10_000, "sqrt", "%s", "{}", "\n", [], {}, [[]], [1, "a"], [{}], [1] * 3000, {"low": 1},
    {"low": 1, "high": 0}, {"low": 0, "high": 1, "log": True}, {"low": 1, "high": 10**309}, {"low": 1, "high": 2**60},
    {"low": float("nan"), "high": 1.0}, {"low": 0.1, "high": 1e39}, {"choices": []}, {"choices": [1, "a", None]},
    {"choices": [1, 1]}, {"choices": list(range(3000))}, {"low": 1, "high": 2, "choices": [1]}, {"name": "iris"},
    {"name": ["iris"]}, {"low": 1, "high": 5, "step": 0}, {"": 1},
]).map(copy.deepcopy)  # fmt: skip


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a document."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, item in below for path in paths(item, (*at, key)))]


@st.composite
def documents(draw: Any) -> Any:
    document = copy.deepcopy(draw(st.sampled_from(DOCUMENTS)))
    for _ in range(draw(st.integers(1, 4))):
        *above, key = draw(st.sampled_from(paths(document)[1:]))
        holder = document
        for step in above:
            holder = holder[step]
        match draw(st.sampled_from(["replace", "replace", "replace", "delete", "add", "double", "nest"])):
            case "replace":
                holder[key] = draw(ODD)
            case "delete":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["unknown", "", "naem", "ü", "$", "a.b", "low", "name", "path"]))] = draw(
                    ODD
                )
            case "double":
                holder[key] = [holder[key], copy.deepcopy(holder[key])]
            case _:
                for _ in range(draw(st.sampled_from([1, 3, 100]))):
                    holder[key] = {"deeper": holder[key]} if draw(st.booleans()) else [holder[key]]
        if not paths(document)[1:]:
            break
    return document


def toml(value: Any) -> str:
    """A value as TOML, tables inline; without recursion limits of its own nothing deep could be written."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool | float) else hex(value) if abs(value) > 10**30 else str(value)


NOISE = st.sampled_from(
    [b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3", b"[" * 5000, b"=", b"\r", b'"""', b"\xed\xa0\x80", b"#", b"[[", b"."]
)


@st.composite
def garbled(draw: Any, content: bytes) -> bytes:
    """The content, or in one of four cases with bytes turned, inserted or cut off."""
    if draw(st.integers(0, 3)):
        return content
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["insert", "cut", "turn", "drop"])):
            case "insert":
                content = content[:at] + draw(NOISE) + content[at:]
            case "cut":
                content = content[:at]
            case "turn":
                content = content[:at] + draw(st.binary(max_size=3)) + content[at + 2 :]
            case _:
                content = content[:at] + content[at + 7 :]
    return content


@given(st.data())
@many
def test_any_study_file_is_a_study_or_a_message(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    document = data.draw(documents())
    text = "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in document.items())
    file = tmp_path_factory.getbasetemp() / "fuzz.toml"
    file.write_bytes(data.draw(garbled(text.encode("utf-8", "surrogatepass"))))
    with at_most(SECONDS):
        is_told(hpo("validate", file))
        try:
            definition = load(file, environ={})
        except UserError:
            return
        assert definition.sha256() == load(file, environ={}).sha256()
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
        for _ in range(2):
            with suppress(UserError):  # a trial that is infeasible
                space.suggest(definition, study.ask())


# ---- tables ----------------------------------------------------------------------------------------------------------

CELLS = st.sampled_from([
    "", " ", "0", "1", "2", "-1", "0.5", "1.0", "true", "no", "nan", "NA", "None", "a", "A post. And more.", "ü", "\0",
    "[red]", "[/bold]", '"', "'", ",", "\n", "\r", "x" * 100_000, "\ufeff", "\u2028", "\U0001f600", "=1+1", "日本語。",
    "1e400", "9" * 400,
])  # fmt: skip
NAMES = [
    "post_id",
    "post",
    "criterion",
    "label",
    "group",
    "evidence",
    "",
    "post",
    "Post ",
    "text",
    "id",
    "\0",
    "x" * 300,
]


@st.composite
def rows(draw: Any) -> list[list[str]]:
    """A table that could be used, with a few cells, rows and columns that could not."""
    table = [["post_id", "post", "criterion", "label", "group"]]
    count = draw(st.sampled_from([0, 1, 3, 30]))
    table += [
        [str(row), f"Post {row} is short. It says {row % 3}.", criterion, str(int(row % 3 == 0)), f"u{row // 2}"]
        for row in range(count)
        for criterion in ("angry", "sad")
    ]
    for _ in range(draw(st.integers(0, 4))):
        row = draw(st.integers(0, len(table) - 1))
        column = draw(st.integers(0, 4))
        match draw(st.sampled_from(["cell", "cell", "name", "ragged", "repeat", "column"])):
            case "cell":
                table[row][column % max(len(table[row]), 1) : column + 1] = [draw(CELLS)]
            case "name":
                table[0][column % max(len(table[0]), 1) : column + 1] = [draw(st.sampled_from(NAMES))]
            case "ragged":
                table[row] = table[row][:column] if draw(st.booleans()) else [*table[row], "more"]
            case "repeat":
                table.append(list(table[row]))
            case _:
                value = draw(CELLS)
                for line in table[1:]:
                    line[column : column + 1] = [value]
    return table


@st.composite
def csv_files(draw: Any) -> bytes:
    quote = draw(st.sampled_from(["all", "needed", "none"]))
    separator, end = (
        draw(st.sampled_from([",", ",", ",", ";", "\t"])),
        draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])),
    )

    def cell(value: str) -> str:
        is_quoted = quote == "all" or (quote == "needed" and any(mark in value for mark in f'"\r\n{separator}'))
        return '"' + value.replace('"', '""') + '"' if is_quoted else value

    text = end.join(separator.join(map(cell, row)) for row in draw(rows())) + draw(st.sampled_from(["", end]))
    encoding = draw(st.sampled_from(["utf-8"] * 5 + ["utf-8-sig", "utf-16", "utf-32", "utf-7", "latin-1", "cp1252"]))
    content: bytes = text.encode(encoding, "replace")
    return content


COLUMNS: dict[str, Any] = {
    "int8": pa.array([0, 1] * 6, pa.int8()),
    "uint64": pa.array([2**64 - 1, 1] * 6, pa.uint64()),
    "float16": pa.array([0.5, 1.0] * 6, pa.float16()),
    "double": pa.array([float("nan"), 1.0] * 6),
    "bool": pa.array([True, None] * 6),
    "text": pa.array(["A post. More.", None] * 6),
    "large": pa.array(["a", "b"] * 6, pa.large_string()),
    "binary": pa.array([b"\xff", b"b"] * 6),
    "null": pa.nulls(12),
    "list": pa.array([[1], []] * 6),
    "struct": pa.array([{"a": 1}, {"a": None}] * 6),
    "map": pa.array([[("a", 1)], []] * 6, pa.map_(pa.string(), pa.int8())),
    "date": pa.array([2**31 - 1, 0] * 6, pa.int32()).cast(pa.date32()),
    "time": pa.array([2**62, 0] * 6, pa.int64()).cast(pa.timestamp("ms")),
    "zone": pa.array([0, 1] * 6, pa.timestamp("ns", "Europe/Berlin")),
    "duration": pa.array([2**62, 0] * 6, pa.int64()).cast(pa.duration("s")),
    "decimal": pa.array([0, 1] * 6).cast(pa.decimal128(38, 2)),
    "dictionary": pa.array(["a", "b"] * 6).dictionary_encode(),
}


@st.composite
def parquet_files(draw: Any) -> bytes:
    names = draw(st.lists(st.sampled_from(NAMES[:6]), min_size=1, max_size=5, unique=True))
    columns = [COLUMNS[draw(st.sampled_from(sorted(COLUMNS)))] for _ in names]
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, names=names), buffer)
    return buffer.getvalue()


@given(st.data())
@many
def test_any_table_is_recognised_or_a_message(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    kind = data.draw(st.sampled_from(["csv", "csv", "csv", "tsv", "parquet"]))
    content = data.draw(parquet_files() if kind == "parquet" else csv_files())
    folder = tmp_path_factory.getbasetemp()
    table, study = folder / f"fuzz.{kind}", folder / "recognised.toml"
    table.write_bytes(data.draw(garbled(content)))
    study.unlink(missing_ok=True)
    with at_most(SECONDS):
        ended = hpo("init", table, "-o", study)
        is_told(ended)
        if ended.code:
            return
        try:
            definition = load(study, environ={})
            corpus = definition.data.load(folder)
            chunk(corpus.posts, definition.chunks)
            split(corpus.groups, corpus.labels, definition.split, criteria=[each.name for each in corpus.criteria])
        except UserError:
            return
