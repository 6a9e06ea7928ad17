"""`study_template`: a valid study file for a user's table, with counts as comments and without any post's text."""

import csv
import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import jsonschema
import pytest

from sparse_evidence.core.errors import DataError, SplitError, UserError
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.definition import StudyDefinition, load
from sparse_evidence.hpo.study.schema import json_schema
from sparse_evidence.hpo.study.template import study_template

STUDIES = Path(__file__).parents[3] / "studies"


def table(
    path: Path, posts: int = 40, positive_every: int = 3, criteria: tuple[str, ...] = ("anger", "low mood")
) -> Path:
    """A table of pairs in which every n-th post meets every criterion."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["post_id", "post", "criterion", "label"])
        for number in range(posts):
            for criterion in criteria:
                text = f"Secret sentence {number}. Another one."
                writer.writerow([f"p{number}", text, criterion, int(number % positive_every == 0)])
    return path


def written(data: Path | None, file: Path) -> tuple[str, StudyDefinition]:
    text = study_template(data, file)
    file.write_text(text, encoding="utf-8")
    return text, load(file, environ={})


def test_a_study_of_a_users_table(tmp_path):
    (tmp_path / "data").mkdir()
    data = table(tmp_path / "data" / "my posts.csv")
    text, definition = written(data, tmp_path / "first.toml")
    assert definition.name == "first"
    assert len(definition.data.load(tmp_path)) == 40
    assert definition.split.stages == (2, 3)
    assert [model.name for model in definition.model] == ["iris", "instance", "retrieval"]
    assert {"model.k_retrieved", "training.iris.learning_rate"} <= space.distributions(definition).keys()
    assert [loss.name for loss in definition.loss] == ["bce"]
    assert '"anger": 14 of 40 posts are positive' in text
    assert '"low mood": 14 of 40 posts are positive' in text
    assert "group" in text
    assert "Secret" not in text
    jsonschema.Draft202012Validator(json_schema()).validate(tomllib.loads(text))


def test_a_study_of_a_wide_table(tmp_path):
    path = tmp_path / "wide.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "body", "author", "low mood", "anger", "anger_evidence", "stars"])
        for number in range(40):
            shown = "Secret sentence" if number % 3 == 0 else ""
            post = f"Secret sentence {number}. Another one follows."
            writer.writerow(
                [number, post, f"u{number // 2}", number % 4 == 0, ["no", "yes"][bool(shown)], shown, number % 5]
            )
    text, definition = written(path, tmp_path / "wide.toml")
    assert definition.data.columns == {"post_id": "id", "post": "body", "group": "author"}
    assert definition.data.criteria == {"low mood": "low mood", "anger": "anger"}
    assert definition.data.evidence == {"anger": "anger_evidence"}
    corpus = definition.data.load(tmp_path)
    assert (len(corpus), len(set(corpus.groups)), corpus.positives.tolist()) == (40, 20, [10, 14])
    assert len(corpus.evidence) == 14
    assert "# columns that are not read: stars\n" in text
    assert "Secret" not in text
    jsonschema.Draft202012Validator(json_schema()).validate(tomllib.loads(text))


def test_the_path_is_relative_to_the_study_file(tmp_path):
    (tmp_path / "studies").mkdir()
    _, definition = written(table(tmp_path / "posts.csv"), tmp_path / "studies" / "a.toml")
    assert definition.data.path == "../posts.csv"


def test_a_study_of_the_editorials(tmp_path):
    text, definition = written(None, tmp_path / "editorials.toml")
    assert definition.data.source == "editorials"
    jsonschema.Draft202012Validator(json_schema()).validate(tomllib.loads(text))


@pytest.mark.parametrize(("posts", "folds"), [(40, 5), (9, 3), (6, 2)])
def test_few_positive_posts_get_fewer_folds(tmp_path, posts, folds):
    _, definition = written(table(tmp_path / "posts.csv", posts), tmp_path / "a.toml")
    assert definition.split.folds == folds


def test_too_few_positive_posts_are_an_error(tmp_path):
    with pytest.raises(SplitError, match="fewer than 2 folds"):
        study_template(table(tmp_path / "posts.csv", posts=3), tmp_path / "a.toml")


def test_mistakes_in_the_table_are_reported(tmp_path):
    path = tmp_path / "posts.csv"
    path.write_text("post_id,post,criterion,label\np1,Text.,anger,maybe\np2,,anger,1\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        study_template(path, tmp_path / "a.toml")
    assert len(caught.value.problems) == 2
    with pytest.raises(UserError, match=r"absent\.csv"):
        study_template(tmp_path / "absent.csv", tmp_path / "a.toml")


def test_names_that_toml_does_not_allow_as_they_are(tmp_path):
    data = table(tmp_path / 'a "quoted" name.csv', criteria=("bell\a and\x7f", "two\nlines"))
    text, definition = written(data, tmp_path / "what is this?.toml")
    assert definition.name == "what-is-this"
    assert len(definition.data.load(tmp_path)) == 40
    assert "\a" not in text
    assert "\x7f" not in text


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("посты", r"study-[0-9a-f]{8}"),
        ("данные", r"study-[0-9a-f]{8}"),
        ("посты 2024", r"study-[0-9a-f]{8}"),
        ("投稿.v2", r"v2"),
        ("..--", r"study-[0-9a-f]{8}"),
        ("2024 (1)", r"2024-1"),
        ("-my posts-", r"my-posts"),
        ("a" * 99 + " b", "a" * 99),
    ],
)
def test_a_file_without_a_usable_name_has_a_study_of_its_own(tmp_path, stem, name):
    _, definition = written(table(tmp_path / "posts.csv"), tmp_path / f"{stem}.toml")
    assert re.fullmatch(name, definition.name)
    assert definition.name == written(None, tmp_path / f"{stem}.toml")[1].name, "the same name every time"


def test_files_without_a_letter_of_ascii_have_different_studies(tmp_path):
    names = {written(None, tmp_path / f"{stem}.toml")[1].name for stem in ("посты", "данные", "посты 1", "данные 1")}
    assert len(names) == 4


def test_no_text_without_spaces_gets_into_the_study_file(tmp_path):
    secret = "我昨天晚上又没有睡好觉今天早上起来头很疼"
    path = tmp_path / "posts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["post_id", "post", "anger", "note"])
        for number in range(40):
            note = f"{secret}{number}" if number % 4 == 3 else number % 2
            writer.writerow([number, f"{secret}{number}", int(number % 3 == 0), note])
    text, _ = written(path, tmp_path / "a.toml")
    assert "note (not only labels: row 5 is a text of 21 characters)" in text
    assert secret[:5] not in text


def test_the_schema_line_names_a_file_that_exists(tmp_path):
    line = study_template(None, tmp_path / "a.toml").splitlines()[0]
    schema = Path(url2pathname(urlparse(line.removeprefix("#:schema ")).path))
    assert json.loads(schema.read_text(encoding="utf-8")) == json_schema()


def test_the_shipped_example_is_the_template_for_its_table(tmp_path):
    example = (STUDIES / "pairs.toml").read_text(encoding="utf-8").splitlines()
    template = study_template(STUDIES / "pairs.csv", STUDIES / "pairs.toml").splitlines()
    assert example[0] == "#:schema study.schema.json"
    assert example[1:] == template[1:]


def test_schemas_and_examples_are_package_resources():
    folder = files("sparse_evidence.studies")
    schemas = [json.loads((folder / f"{name}.schema.json").read_text(encoding="utf-8")) for name in ("study", "best")]
    for schema in schemas:
        jsonschema.Draft202012Validator.check_schema(schema)
        assert "$id" not in schema
    assert tomllib.loads((folder / "quickstart.toml").read_text(encoding="utf-8"))["name"] == "quickstart"
