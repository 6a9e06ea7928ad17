"""Study files: every mistake in one readable error; equivalent files have the same hash; the schema agrees."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import jsonschema
import pytest

from sparse_evidence.core.config import IrisConfig, TrainingConfig
from sparse_evidence.core.errors import DataError, UserError
from sparse_evidence.hpo.errors import DefinitionError, Exit, RefusedError, StorageError, exit_code_of
from sparse_evidence.hpo.study.config import OuterFold
from sparse_evidence.hpo.study.defaults import model_space, training_space
from sparse_evidence.hpo.study.definition import StudyDefinition, differences, load
from sparse_evidence.hpo.study.fields import Choices, Range
from sparse_evidence.hpo.study.schema import json_schema

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "studies").glob("*.toml"))
DATA = '[data]\nsource = "editorials"\n'
MODEL = '[model]\nname = "iris"\n'
PAIRS = '[data]\nsource = "pairs"\npath = "a.csv"\n'


def written(folder: Path, text: str, name: str = "study.toml") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def define(folder: Path, text: str, name: str = "study.toml") -> StudyDefinition:
    return load(written(folder, text, name), environ={})


def mistakes(folder: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(DefinitionError) as caught:
        define(folder, text)
    assert str(caught.value).startswith("study.toml has ")
    assert not any("\n" in problem for problem in caught.value.problems)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_load_and_match_the_schema(path):
    definition = load(path, environ={})
    assert definition.name == path.stem
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(tomllib.loads(path.read_text(encoding="utf-8")))


def test_data_and_model_name_are_enough(tmp_path):
    definition = define(tmp_path, DATA + MODEL, name="tiny.toml")
    assert definition.name == "tiny"
    assert definition.split.stages == (2, 3)
    assert definition.search.metric == "average_precision"
    assert (definition.search.trials, definition.search.seed, definition.search.sampler) == (40, 0, "tpe")
    assert (definition.search.pruner.name, definition.search.pruner.percentile) == ("same_folds", 50.0)
    assert (definition.service.heartbeat_seconds, definition.service.grace_seconds) == (20.0, 120.0)
    assert [loss.name for loss in definition.loss] == ["bce"]
    assert definition.search.space == "default"
    assert definition.model[0].specs["num_queries"] == model_space("iris")["num_queries"]
    assert definition.model[0].specs["dropout"] == IrisConfig().dropout
    (training,) = definition.training
    assert training.specs["learning_rate"] == training_space("iris")["learning_rate"]
    assert training.specs["epochs"] == TrainingConfig().epochs


FIELDS = [
    # [model] or [training] line, every mistake expected
    ("model", "k_retreived = 3", ["[model] k_retreived: unknown key, did you mean k_retrieved?"]),
    ("model", "epochs = 3", ["[model] epochs: unknown key, it belongs in [training]"]),
    ("model", "attention_hidden = 3", ["[model] attention_hidden: unknown key, it belongs to the model abmil"]),
    ("model", "gamma = 3", ["[model] gamma: unknown key, it belongs in [loss] (focal)"]),
    ("model", "xyzzy = 3", ["[model] xyzzy: unknown key, allowed: encoder, window, num_queries"]),
    ("model", "k_retrieved = 0", ["[model] k_retrieved: 0 is not allowed, give a whole number from 1 to 256"]),
    ("model", "k_retrieved = 4.0", ["[model] k_retrieved: 4.0 is not a whole number, give a whole number from 1"]),
    ("model", "k_retrieved = true", ["[model] k_retrieved: true is a truth value, give a whole number"]),
    ("model", 'k_retrieved = "4"', ['[model] k_retrieved: "4" is text (omit the quotes), give a whole number']),
    ("model", "k_retrieved = [2, 4]", ["k_retrieved: [2, 4] is a list (to search it, write { choices = [2, 4] })"]),
    ("model", "dropout = 1.0", ["[model] dropout: 1.0 is not allowed, give a number of at least 0 and below 1"]),
    ("model", "dropout = nan", ["[model] dropout: NaN is not allowed"]),
    ("model", "temperature = inf", ["[model] temperature: Infinity is not allowed, give a number above 0"]),
    ("model", "encoder = 5", ["[model] encoder: 5 is a number, not text, give text"]),
    (
        "model",
        "encoder = { low = 1, high = 2 }",
        ["[model] encoder: a range is for numbers, write { choices = [ ... ] }"],
    ),
    (
        "training",
        "learning_rate = { low = 0.1, high = 0.01 }",
        ["[training] learning_rate: low 0.1 is above high 0.01 (swap them)"],
    ),
    ("training", "epochs = { low = 4, high = 4 }", ["low and high are both 4, give the value itself: epochs = 4"]),
    (
        "training",
        "learning_rate = { low = 0, high = 1 }",
        ["learning_rate: low 0 is not allowed, give a number above 0"],
    ),
    (
        "model",
        "query_noise = { low = 0, high = 1, log = true }",
        ["log needs low above 0, not 0.0, raise low or omit log"],
    ),
    ("model", "k_retrieved = { low = 2, high = 300 }", ["k_retrieved: high 300 is not allowed, give a whole number"]),
    ("model", "k_retrieved = { low = 2.5, high = 6 }", ["k_retrieved: low 2.5 is not a whole number"]),
    ("model", 'k_retrieved = { low = "2", high = true }', ['low "2" is text', "high true is a truth value"]),
    ("model", "k_retrieved = { low = 2 }", ["k_retrieved: high is missing, a range is { low = ..., high = ... }"]),
    ("model", "k_retrieved = {}", ["low is missing", "high is missing"]),
    (
        "model",
        "k_retrieved = { low = 2, hihg = 6 }",
        ["hihg is unknown in a range, did you mean high?", "high is missing"],
    ),
    ("model", "k_retrieved = { low = 2, high = 8, log = 1 }", ["log 1 is not allowed, give true or false"]),
    (
        "model",
        "k_retrieved = { low = 2, high = 8, log = true, step = 2 }",
        ["log and step exclude each other, remove one"],
    ),
    ("model", "k_retrieved = { low = 2, high = 8, step = 0 }", ["step 0 is not allowed, give a whole number above 0"]),
    (
        "model",
        "k_retrieved = { low = 2, high = 8, step = 1.5 }",
        ["step 1.5 is not allowed, give a whole number above 0"],
    ),
    ("model", "dropout = { low = 0, high = 0.5, step = 1e-30 }", ["step 1e-30 makes more than 1000000 steps, make it"]),
    ("model", "dropout = { low = 0, high = 0.5, step = -0.1 }", ["step -0.1 is not allowed, give a number above 0"]),
    (
        "model",
        "k_retrieved = { low = 2, high = 7, step = 2 }",
        ["steps of 2 from low 2 do not reach high 7, make high 6 or 8"],
    ),
    (
        "model",
        "k_retrieved = { low = 2, high = 8, step = 2, default = 5 }",
        ["default 5 is not on the steps of 2 from 2, the nearest is"],
    ),
    (
        "model",
        "k_retrieved = { low = 2, high = 8, default = 9 }",
        ["default 9 is not between low 2 and high 8, move it inside"],
    ),
    ("model", "k_retrieved = { choices = [] }", ["choices is empty, give at least two values"]),
    ("model", "k_retrieved = { choices = [3] }", ["choices has one value, give the value itself: k_retrieved = 3"]),
    ("model", "k_retrieved = { choices = [2, 3, 2] }", ["choices has 2 more than once, give each value once"]),
    ("model", "temperature = { choices = [1, 1.0] }", ["choices has 1.0 more than once"]),
    ("model", "k_retrieved = { choices = 3 }", ["choices 3 is not a list, write choices = [ ... ]"]),
    (
        "model",
        'k_retrieved = { choices = [0, "2", true, [2]] }',
        ["choice 0 is not allowed", 'choice "2" is text', "choice true is a truth value", "choice [2] is a list"],
    ),
    (
        "model",
        "k_retrieved = { choices = [2, 4], default = 3 }",
        ["default 3 is not among the choices, give one of 2, 4"],
    ),
    ("model", "k_retrieved = { choices = [2, 4], low = 2 }", ["low is unknown in a table of choices"]),
    ("model", "k_retrieved = 2026-01-01", ['k_retrieved: "2026-01-01" is not allowed, give a whole number']),
]


@pytest.mark.parametrize(("table", "line", "expected"), FIELDS, ids=[line for _, line, _ in FIELDS])
def test_mistakes_in_a_field(tmp_path, table, line, expected):
    text = DATA + MODEL + (line if table == "model" else f"[{table}]\n{line}")
    problems = mistakes(tmp_path, text)
    assert len(problems) == len(expected), problems
    for fragment, problem in zip(expected, problems, strict=True):
        assert fragment in problem
        assert problem.startswith(f"[{table}] ")


FILES = [
    # whole file, every mistake expected
    ("", ["[data]: missing, write [data] with source = one of", "[model]: missing, write [model] with name = one of"]),
    (
        DATA + "[model]\nk_retrieved = 3",
        ['[model] name: missing, give one of "iris", "abmil", "instance", "linear", "retrieval", "token"'],
    ),
    (
        DATA + '[model]\nname = "irs"',
        [
            '[model] name: "irs" is unknown, did you mean "iris"? '
            'Allowed: "iris", "abmil", "instance", "linear", "retrieval", "token"'
        ],
    ),
    (
        DATA + '[model]\nname = { choices = ["iris", "linear"] }',
        ["[model] name: a range is not allowed here, allowed:"],
    ),
    ("[data]\n" + MODEL, ["[data] source: missing, give one of"]),
    ('[data]\nsource = "editorial"\n' + MODEL, ['[data] source: "editorial" is unknown, did you mean "editorials"?']),
    ('[data]\nsource = "pairs"\n' + MODEL, ["[data] path: missing, give text"]),
    ('[data]\nsource = "redsm5"\npost = 1\n' + MODEL, ["[data] post: unknown key, did you mean posts?"]),
    (
        '[data]\nsource = "synthetic"\nposts = { low = 1, high = 2 }\n' + MODEL,
        ["[data] posts: a range is not allowed here, give a whole number"],
    ),
    ('name = "my study"\n' + DATA + MODEL, ['name: "my study" is not allowed, give up to 100 letters']),
    ('name = { choices = ["a", "b"] }\n' + DATA + MODEL, ["name: "]),
    ("trials = 3\n" + DATA + MODEL, ["trials: unknown key, it belongs in [search]"]),
    (DATA + MODEL + "[trainng]\nepochs = 3", ["trainng: unknown key, did you mean training?"]),
    ("split = 5\n" + DATA + MODEL, ["[split]: 5 is not a table, write [split] on a line and its keys below"]),
    (DATA + MODEL + "[[split]]\nfolds = 5", ["[split]: ", "is not a table"]),
    (
        DATA + MODEL + "[split]\nfolds = { low = 2, high = 5 }",
        ["[split] folds: a range is not allowed here, give a whole"],
    ),
    (
        DATA + MODEL + "[split]\nstages = [2, 2]",
        ["[split] stages: [2, 2] add up to 4, not to folds = 5, make them agree"],
    ),
    (DATA + MODEL + "[split]\nstages = [5, 0]", ["[split] stages: ", "give a list, each item a whole number"]),
    (DATA + MODEL + "[split]\nholdout = 0.6", ["[split] holdout: 0.6 is not allowed, give a number from 0 to 0.5"]),
    (
        DATA + MODEL + "[chunks]\nmax_words = 1",
        ["[chunks] max_words: 1 is not allowed, give a whole number from 4 to 512"],
    ),
    (
        DATA + MODEL + "[search]\ntrials = 0",
        ["[search] trials: 0 is not allowed, give a whole number from 1 to 2147483647"],
    ),
    (DATA + MODEL + '[search]\nmetric = "auorc"', ['[search] metric: "auorc" is unknown, did you mean "auroc"?']),
    (
        DATA + MODEL + '[search]\nsampler = "grid"',
        ['[search] sampler: "grid" is not allowed, give one of "tpe", "random"'],
    ),
    (DATA + MODEL + '[search]\npruner = "none"', ['[search] pruner: "none" is not a table, write pruner = { name']),
    (
        DATA + MODEL + '[search]\npruner = { name = "median", percentile = 100 }',
        ['[search] pruner name: "median" is not allowed, give one of "same_folds", "none"', "pruner percentile: 100"],
    ),
    (
        DATA + MODEL + "[service]\ngrace_seconds = 20",
        ["[service] grace_seconds: 20.0 seconds of grace must exceed the"],
    ),
    (DATA + MODEL + "[service]\nmax_attempts = 0", ["[service] max_attempts: 0 is not allowed"]),
    (
        PAIRS + 'columns = { psot = "body", post_id = 3 }\n' + MODEL,
        ["[data] columns: psot is unknown, did you mean post?", "[data] columns: post_id = 3 is not text, give it in"],
    ),
    (PAIRS + 'columns = "body"\n' + MODEL, ['[data] columns: "body" is text, give a table of texts, such as { name =']),
    (
        PAIRS + "[data.criteria]\nlow = 3\n" + MODEL,
        ["[data] criteria: low = 3 is not text, give it in quotes"],
    ),
    (
        PAIRS + '[data.evidence]\nsad = "why"\n' + MODEL,
        ["[data] evidence is for wide tables: give criteria, too, or name the column with columns = { evidence"],
    ),
    ("loss = []\n" + DATA + MODEL, ["[[loss]]: the list is empty, give at least one table with a name"]),
    ('loss = "bce"\n' + DATA + MODEL, ['[loss]: "bce" is not a table, write [loss] on a line and its keys below']),
    (
        DATA + MODEL + '[[loss]]\nname = "focal"\ngama = 1\n[[loss]]\nname = "focall"\nalpha = 1',
        [
            "[[loss]] focal gama: unknown key, did you mean gamma?",
            '[[loss]] number 2 name: "focall"',
            "number 2 alpha: 1",
        ],
    ),
    (
        DATA + MODEL + '[[loss]]\nname = "bce"\npos_weight = 2\n[[loss]]\nname = "weighted_bce"',
        ["[[loss]] bce pos_weight: unknown key, it belongs to the loss weighted_bce"],
    ),
    (
        DATA + MODEL + '[[loss]]\nname = "bce"\n[[loss]]\nname = "bce"',
        ["[[loss]] bce name: given twice, write one table of that name with ranges in it"],
    ),
]


@pytest.mark.parametrize(("text", "expected"), FILES, ids=[str(number) for number in range(len(FILES))])
def test_mistakes_in_a_file(tmp_path, text, expected):
    problems = " | ".join(mistakes(tmp_path, text))
    for fragment in expected:
        assert fragment in problems


def test_every_mistake_is_reported_in_one_error(tmp_path):
    text = """
        name = "what is this"
        sede = 1
        [data]
        source = "synthetic"
        posts = "many"
        [chunks]
        max_words = 1
        [split]
        folds = 5
        stages = [1, 1]
        [search]
        metric = "f1"
        pruner = { percentile = 0 }
        [model]
        name = "iris"
        k_retreived = 3
        dropout = { low = 0.5, high = 0.1 }
        [training]
        learning_rate = "fast"
        [[loss]]
        name = "focal"
        gamma = { low = -1, high = 99 }
        [service]
        heartbeat_seconds = 0
    """
    problems = mistakes(tmp_path, text)
    starts = (
        "sede:",
        "name:",
        "[data] posts:",
        "[chunks] max_words:",
        "[split] stages:",
        "[search] metric:",
        "[search] pruner percentile:",
        "[model] k_retreived:",
        "[model] dropout:",
        "[training] learning_rate:",
        "[[loss]] focal gamma: low",
        "[[loss]] focal gamma: high",
        "[service] heartbeat_seconds:",
    )
    assert len(problems) == len(starts)
    assert all(problem.startswith(start) for problem, start in zip(problems, starts, strict=True)), problems


def test_an_unreadable_file_gives_one_sentence(tmp_path):
    good = written(tmp_path, DATA + MODEL)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'name = "caf\xe9"')
    torn = written(tmp_path, "[data]\nsource = = 3\n", "torn.toml")
    for path, fragment in (
        (tmp_path / "stdy.toml", f"stdy.toml does not exist; did you mean {good}?"),
        (tmp_path / "sub" / "x.toml", "x.toml does not exist; check the path"),
        (good / "x.toml", "x.toml cannot be read (Not a directory)"),
        (tmp_path, "is a folder, not a study file"),
        (latin, "is not UTF-8 text (byte 11); save it as UTF-8"),
        (torn, "line 2, column 10"),
    ):
        with pytest.raises(DefinitionError) as caught:
            load(path, environ={})
        assert fragment in str(caught.value)
        assert caught.value.problems == (str(caught.value),)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_read_permission_gives_one_sentence(tmp_path):
    path = written(tmp_path, DATA + MODEL)
    path.chmod(0)
    with pytest.raises(DefinitionError, match="cannot be read"):
        load(path)


def test_a_byte_order_mark_is_accepted(tmp_path):
    path = tmp_path / "notepad.toml"
    path.write_bytes(b"\xef\xbb\xbf" + (DATA + MODEL).replace("\n", "\r\n").encode())
    assert load(path, environ={}).name == "notepad"


def test_environment_variables_override_the_service_table(tmp_path):
    path = written(tmp_path, DATA + MODEL)
    service = load(path, environ={"HPO_HEARTBEAT_SECONDS": "0.5", "HPO_GRACE_SECONDS": "3"}).service
    assert (service.heartbeat_seconds, service.grace_seconds, service.max_attempts) == (0.5, 3.0, 3)


def test_the_environment_makes_it_the_child_study_of_an_outer_fold(tmp_path):
    path = written(tmp_path, f"name = 'parent'\n{DATA}{MODEL}")
    parent = load(path, environ={})
    assert (parent.outer_fold, parent.environment, "outer_fold" in parent.canonical()) == (None, {}, False)
    child = load(path, environ={"HPO_NESTED": "2/5"})
    assert child == parent.on_outer_fold(OuterFold(2, 5))
    assert load(path, environ=child.environment) == child
    assert (child.name, child.confirm.leaders) == ("parent/nested/5/2", 0)
    assert child.canonical() == {**parent.canonical(), "name": child.name, "outer_fold": "2/5"}
    assert child.sha256() not in {parent.sha256(), parent.on_outer_fold(OuterFold(1, 5)).sha256()}
    for wrong in ("", "5", "0/5", "6/5", "1/1", "1/5 ", "a/b"):
        with pytest.raises(DefinitionError, match=r"HPO_NESTED: .* is not allowed, give an outer fold such as 1/5"):
            load(path, environ={"HPO_NESTED": wrong})


def test_mistakes_in_the_environment_name_the_variable(tmp_path):
    path = written(tmp_path, DATA + MODEL)
    for environ, expected in (
        ({"HPO_HEARTBEAT_SECONDS": "soon"}, 'HPO_HEARTBEAT_SECONDS: "soon" is not allowed, give a number above 0'),
        ({"HPO_GRACE_SECONDS": "nan"}, 'HPO_GRACE_SECONDS: "nan" is not allowed'),
        ({"HPO_GRACE_SECONDS": ""}, 'HPO_GRACE_SECONDS: "" is not allowed'),
        ({"HPO_GRACE_SECONDS": "5"}, "HPO_GRACE_SECONDS: 5.0 seconds of grace must exceed the heartbeat of 20.0"),
    ):
        with pytest.raises(DefinitionError) as caught:
            load(path, environ=environ)
        assert str(caught.value).startswith(f"the environment has 1 mistake: {expected}")
    broken = written(tmp_path, MODEL, "broken.toml")
    with pytest.raises(
        DefinitionError, match=r"^broken.toml and the environment have 2 mistakes:\n  \[data\]: missing"
    ):
        load(broken, environ={"HPO_GRACE_SECONDS": "-1"})


def spec(tmp_path, line):
    key = line.split(" =")[0]
    return define(tmp_path, DATA + MODEL + line).model[0].specs[key]


@pytest.mark.parametrize(
    ("line", "default"),
    [
        ("temperature = { low = 0.05, high = 1, log = true, default = 0.5 }", 0.5),  # as written
        ("temperature = { low = 0.05, high = 1, log = true }", 0.2),  # the field's own
        ("temperature = { low = 0.5, high = 2.0, log = true }", 1.0),  # the geometric middle
        ("temperature = { low = 0.5, high = 2.0 }", 1.25),  # the middle
        ("k_retrieved = { low = 5, high = 10 }", 8),  # a whole number
        ("k_retrieved = { low = 10, high = 30, step = 10 }", 20),
        ("k_retrieved = { low = 3, high = 9, step = 3 }", 3),  # the field's own 4, moved onto the steps
        ("dropout = { low = 0.0, high = 0.5, step = 0.25 }", 0.0),
        ("k_retrieved = { choices = [8, 4] }", 4),  # the field's own
        ("k_retrieved = { choices = [8, 2] }", 8),  # the first
        ("k_retrieved = { choices = [8, 2], default = 2 }", 2),
    ],
)
def test_the_default_of_a_searched_parameter(tmp_path, line, default):
    drawn_first = spec(tmp_path, line).default
    assert drawn_first == default
    assert type(drawn_first) is type(default)


def test_numbers_have_the_type_of_their_field(tmp_path):
    assert spec(tmp_path, "temperature = { low = 1, high = 2 }") == Range(1.0, 2.0, default=1.5)
    assert spec(tmp_path, "k_retrieved = { low = 2, high = 6 }") == Range(2, 6, integer=True, default=4)
    assert spec(tmp_path, "temperature = { choices = [1, 2] }") == Choices((1.0, 2.0), 1.0)
    assert isinstance(spec(tmp_path, "temperature = 1"), float)


FULL = DATA + MODEL + "k_retrieved = { low = 2, high = 6 }\n[training]\nepochs = 30\n"

SAME = {
    "a default written out": FULL + "patience = 6\n[split]\nstages = [2, 3]\nfolds = 5\n[[loss]]\nname = 'bce'\n",
    "one alternative in a list": FULL.replace("[model]", "[[model]]"),
    "a range's default written out": FULL.replace("high = 6", "high = 6, log = false, default = 4"),
    "an integer for a float": FULL + "clip_norm = 1\n",
    "how it is run": FULL + "[service]\nmax_attempts = 9\n[search]\ntrials = 400\n",
    "the default space written out": FULL + "[search]\nspace = 'default'\n",
    "another order": MODEL + "k_retrieved = { high = 6, low = 2 }\n" + DATA + "[training]\nepochs = 30\n",
    "a comment": "# why\n" + FULL,
}
OTHER = {
    "name": 'name = "other"\n' + FULL,
    "a value": FULL.replace("30", "31"),
    "a bound": FULL.replace("high = 6", "high = 7"),
    "a value for a range": FULL.replace("{ low = 2, high = 6 }", "4"),
    "where trial 0 starts": FULL.replace("high = 6", "high = 6, default = 3"),
    "folds": FULL + "[split]\nseed = 1\n",
    "stages": FULL + "[split]\nstages = [5]\n",
    "the sampler's seed": FULL + "[search]\nseed = 1\n",
    "the space": FULL + "[search]\nspace = 'file'\n",
    "the pruner": FULL + "[search]\npruner = { name = 'none' }\n",
    "a further loss": FULL + "[[loss]]\nname = 'bce'\n[[loss]]\nname = 'focal'\n",
    "data": FULL.replace('"editorials"', '"pairs"\npath = "a.csv"'),
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_equivalent_files_have_the_same_hash(tmp_path, text):
    first, second = define(tmp_path, FULL), define(tmp_path, text)
    assert first.sha256() == second.sha256()
    assert differences(first.canonical(), second.canonical()) == []


@pytest.mark.parametrize("text", OTHER.values(), ids=OTHER)
def test_different_studies_have_different_hashes(tmp_path, text):
    first, second = define(tmp_path, FULL), define(tmp_path, text)
    assert first.sha256() != second.sha256()
    assert differences(first.canonical(), second.canonical())


WIDE = {
    "merged groups": (DATA, "", "[split]\nmerge_near_duplicates = true\n"),
    "columns": (PAIRS, 'columns = { post = "body" }\n', ""),
    "criteria": (PAIRS, '[data.criteria]\nlow = "Feels low."\nchoices = "Has choices."\n', ""),
    "evidence": (PAIRS, 'criteria = { low = "" }\nevidence = { low = "why" }\n', ""),
}


@pytest.mark.parametrize(("data", "line", "more"), WIDE.values(), ids=WIDE)
def test_newer_settings_are_part_of_the_identity_only_where_they_are_used(tmp_path, data, line, more):
    before, after = define(tmp_path, data + MODEL), define(tmp_path, data + line + MODEL + more)
    assert before.canonical()["split"].keys() == {"folds", "stages", "holdout", "seed"}
    if data == PAIRS:
        assert before.canonical()["data"] == {"source": "pairs"}
    assert before.sha256() != after.sha256()
    assert differences(after.canonical(), before.canonical())
    off = data + ("columns = {}\ncriteria = {}\n" if data == PAIRS else "") + MODEL
    assert define(tmp_path, off + "[split]\nmerge_near_duplicates = false\n").sha256() == before.sha256()
    schema = jsonschema.Draft202012Validator(json_schema())
    schema.validate(tomllib.loads(data + line + MODEL + more))


def test_the_order_of_criteria_is_part_of_the_identity_and_that_of_columns_is_not(tmp_path):
    def hashed(key: str, *pairs: str) -> str:
        return define(tmp_path, f"{PAIRS}{key} = {{ {', '.join(pairs)} }}\n{MODEL}").sha256()

    columns, criteria = ('post = "a"', 'group = "b"'), ('sad = "a"', 'angry = "b"')
    assert hashed("columns", *columns) == hashed("columns", *columns[::-1])
    assert hashed("criteria", *criteria) != hashed("criteria", *criteria[::-1])


def test_the_hash_does_not_depend_on_the_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    assert define(tmp_path, FULL).sha256() == define(tmp_path / "elsewhere", FULL).sha256()


def test_differences_are_sentences(tmp_path):
    losses = '[[loss]]\nname = "bce"\n[[loss]]\nname = "focal"\ngamma = 1\n'
    mine = define(tmp_path, FULL.replace("30", "50").replace("high = 6", "high = 8") + losses).canonical()
    theirs = define(tmp_path, FULL).canonical()
    assert differences(mine, json.loads(json.dumps(theirs))) == [
        "model.k_retrieved is 2 to 8, default 4 here and 2 to 6, default 4 in the study",
        "training.epochs is 50 here and 30 in the study",
        "loss is bce, focal here and bce in the study",
        "loss.focal.gamma is 1.0 here and not set in the study",
    ]


def test_differences_name_the_model_where_training_depends_on_it(tmp_path):
    models = DATA + '[[model]]\nname = "iris"\n[[model]]\nname = "abmil"\n'
    mine = define(tmp_path, models).canonical()
    theirs = define(tmp_path, models + "[training]\nlearning_rate = 1e-3\n").canonical()
    assert differences(mine, json.loads(json.dumps(theirs))) == [
        "training.iris.learning_rate is 0.0003 to 0.003 (log), default 0.001 here and not set in the study",
        "training.abmil.learning_rate is 0.0003 to 0.01 (log), default 0.003 here and not set in the study",
        "training.learning_rate is not set here and 0.001 in the study",
    ]
    file = define(tmp_path, models + "[search]\nspace = 'file'\n").canonical()
    assert "search.space is default here and file in the study" in differences(mine, file)


def test_ranges_that_do_not_apply_are_refused_if_nothing_else_is_searched(tmp_path):
    solved = DATA + '[model]\nname = "linear"\nC = 1\n'
    learning_rate = "[training]\nlearning_rate = { low = 1e-3, high = 1e-2 }\n"
    losses = '[[loss]]\nname = "bce"\n[[loss]]\nname = "focal"\n'
    (problem,) = mistakes(tmp_path, solved + learning_rate)
    assert problem == (
        "[training] learning_rate: does not apply, linear is solved, not trained in epochs, search settings of [model]"
    )
    (problem,) = mistakes(tmp_path, solved + losses)
    assert problem.startswith("[[loss]]: does not apply, linear is solved")
    define(tmp_path, solved.replace("C = 1", "") + learning_rate)
    define(tmp_path, solved)


RELATIONS = (
    "does not apply",
    "is above",
    "are both",
    "makes more",
    "log needs",
    "exclude",
    "do not reach",
    "not on the",
    "not between",
    "among",
    "add up to",
    "must exceed",
    "given twice",
    "is for wide tables",
)
"""Mistakes in values that are valid, each alone: a schema cannot compare two values."""


def test_the_schema_rejects_what_load_rejects(tmp_path):
    validator = jsonschema.Draft202012Validator(json_schema())
    fields = [DATA + MODEL + (line if table == "model" else f"[{table}]\n{line}") for table, line, _ in FIELDS]
    for text in fields + [text for text, _ in FILES]:
        problems = mistakes(tmp_path, text)
        if any(phrase in problem for phrase in RELATIONS for problem in problems):
            continue
        if any(number in text for number in ("= nan", "= inf", "4.0")):
            continue  # JSON has neither, and does not distinguish 4.0 from 4
        assert not validator.is_valid(tomllib.loads(text)), text


@pytest.mark.parametrize("text", [*SAME.values(), *OTHER.values()], ids=[*SAME, *OTHER])
def test_the_schema_accepts_what_load_accepts(tmp_path, text):
    define(tmp_path, text)
    jsonschema.Draft202012Validator(json_schema()).validate(tomllib.loads(text))


def test_the_schema_has_the_docstrings_and_defaults_of_the_fields():
    training = json_schema()["$defs"]["TrainingConfig"]["properties"]
    assert "gradient norm" in training["clip_norm"]["description"]
    assert training["clip_norm"]["default"] == TrainingConfig().clip_norm


def test_the_schema_file_is_up_to_date():
    committed = json.loads((ROOT / "studies" / "study.schema.json").read_text(encoding="utf-8"))
    assert committed == json_schema(), "run: make schema"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_refer_editors_to_the_schema(path):
    named = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#:schema ")
    assert (path.parent / named).resolve() == ROOT / "studies" / "study.schema.json"


def test_exit_codes():
    assert [int(code) for code in Exit] == [0, 1, 2, 3, 4, 75, 76, 130]
    for exception, code in (
        (DefinitionError("x"), Exit.USAGE),
        (DataError("posts.csv", ["x"]), Exit.USAGE),
        (UserError("x"), Exit.USAGE),
        (StorageError("x"), Exit.STORAGE),
        (RefusedError("x"), Exit.REFUSED),
        (KeyboardInterrupt(), Exit.INTERRUPTED),
        (ValueError("x"), Exit.FAILED),
    ):
        assert exit_code_of(exception) is code


def test_several_mistakes_are_read_line_by_line():
    assert str(DefinitionError.listing("s.toml", ["a"])) == "s.toml has 1 mistake: a"
    assert str(DefinitionError.listing("s.toml", ["a", "b"])) == "s.toml has 2 mistakes:\n  a\n  b"
    many = DefinitionError.listing("s.toml", [f"key_{n}: unknown" for n in range(3000)])
    assert str(many).splitlines()[-2:] == ["  key_19: unknown", "  and 2980 more"]
    assert len(many.problems) == 3000


def test_definitions_and_errors_can_be_pickled(tmp_path):
    definition = define(tmp_path, FULL)
    assert pickle.loads(pickle.dumps(definition)) == definition
    error = DefinitionError.listing("study.toml", ["a", "b"])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.problems) == (str(error), ("a", "b"))


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, sparse_evidence.hpo.study.definition, sparse_evidence.hpo.study.space;"
        "print([name for name in ('torch', 'transformers', 'optuna', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
