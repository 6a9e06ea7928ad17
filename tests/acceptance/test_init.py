"""`hpo init`: from a table of posts to a study file that `hpo validate` accepts."""

import csv
import json
from dataclasses import replace
from pathlib import Path

from csv_files import write_csv

from sparse_evidence.hpo.study.definition import load

STUDIES = Path(__file__).parents[2] / "studies"


def test_init_writes_a_study_file_that_validates(call, tmp_path):
    (tmp_path / "my posts.csv").write_bytes((STUDIES / "pairs.csv").read_bytes())
    done = call("init", "my posts.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "my posts.csv: one row per post and criterion",
        "  post            post",
        "  post_id         post_id",
        "  criterion       criterion",
        "  label           label",
        "  criterion_text  criterion_text",
        "  group           group",
        "  evidence        evidence",
        "wrote my posts.toml; next:",
        "  hpo validate 'my posts.toml'",
        "  hpo run 'my posts.toml'",
    ]
    checked = call("validate", "my posts.toml")
    assert checked.returncode == 0, checked.stderr
    assert "120 in 33 groups" in checked.stdout


def widened(path: Path) -> None:
    """Write the shipped pairs as a wide table, with other names and labels in words."""
    rows: dict[str, dict[str, str]] = {}
    with (STUDIES / "pairs.csv").open(encoding="utf-8", newline="") as file:
        for pair in csv.DictReader(file):
            row = rows.setdefault(
                pair["post_id"], {"id": pair["post_id"], "userId": pair["group"], "text": pair["post"]}
            )
            row[pair["criterion"]] = ["no", "yes"][int(pair["label"])]
            row[f"{pair['criterion']}_evidence"] = pair["evidence"]
    write_csv(path, next(iter(rows.values())), *(row.values() for row in rows.values()))


def test_a_wide_table_is_the_same_study(call, tmp_path):
    widened(tmp_path / "wide.csv")
    done = call("init", "wide.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:-3] == [
        "wide.csv: one row per post, one column per criterion",
        "  post      text",
        "  post_id   id",
        "  group     userId",
        "  criteria  noise, wrong_charge",
        "  evidence  noise_evidence, wrong_charge_evidence",
    ]
    data = load(tmp_path / "wide.toml", environ={}).data
    texts = {"noise": "The writer is bothered or kept awake by noise at home."}
    texts["wrong_charge"] = "The writer is charged too much or for the wrong thing."
    assert data.criteria == {name: name.replace("_", " ") for name in texts}
    wide, pairs = (
        replace(data, criteria=texts).load(tmp_path),
        load(STUDIES / "pairs.toml", environ={}).data.load(STUDIES),
    )
    assert wide.fingerprint(evidence=True) == pairs.fingerprint(evidence=True)
    checked = call("validate", "wide.toml", "--json")
    assert checked.returncode == 0, checked.stderr
    plan = json.loads(checked.stdout)
    assert plan["near_duplicates"] == {"pairs": 0, "affected": 0, "groups": 0, "posts": []}
    assert [criterion["positives"] for criterion in plan["criteria"]] == [18, 16]


def test_what_cannot_be_seen_can_be_said(call, tmp_path):
    rows = [(f"This is what number {n} wrote.", f"And this is {n} again, in German.", n % 2) for n in range(20)]
    write_csv(tmp_path / "two.csv", ("english", "german", "sad"), *rows)
    done = call("init", "two.csv")
    assert done.returncode == 2
    assert done.stderr == (
        "hpo: two.csv: the columns 'german' and 'english' could each be the post; choose one: --column post=NAME\n"
    )
    done = call("init", "two.csv", "--column", "post=german")
    assert done.returncode == 0, done.stderr
    assert "  not read  english" in done.stdout.splitlines()
    assert "  group     none: every post is its own group" in done.stdout.splitlines()
    assert 'columns = { post = "german" }' in (tmp_path / "two.toml").read_text(encoding="utf-8")


def test_init_without_a_table_is_for_the_editorials(call, tmp_path):
    assert call("init").returncode == 0
    assert 'source = "editorials"' in (tmp_path / "editorials.toml").read_text(encoding="utf-8")


def test_init_does_not_overwrite_a_file(call, tmp_path):
    (tmp_path / "editorials.toml").write_text("mine", encoding="utf-8")
    done = call("init")
    assert done.returncode == 2
    assert done.stderr == "hpo: editorials.toml already exists and is not overwritten; give another file with -o\n"
    assert (tmp_path / "editorials.toml").read_text(encoding="utf-8") == "mine"
    assert call("init", "-o", "other.toml").returncode == 0


def test_mistakes_of_init_are_one_sentence(call, tmp_path):
    (tmp_path / "bad.csv").write_text("post_id,post,criterion\np,Text.,anger\n", encoding="utf-8")
    for arguments, fragment in (
        (["absent.csv"], "absent.csv does not exist"),
        (["bad.csv"], "has a column 'criterion' of criteria, but no column for label"),
        (["bad.csv", "--column", "psot=x"], "--column psot=x is not WHAT=NAME, such as post=body; did you mean post?"),
        (
            ["bad.csv", "--column", "post"],
            "--column post is not WHAT=NAME, such as post=body; WHAT is one of post_id, ",
        ),
        (["--column", "post=x"], "no table is given; add its path"),
        (["-o", "absent/a.toml"], "absent/a.toml cannot be written (No such file or directory)"),
    ):
        done = call("init", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("hpo: ")
        assert fragment in done.stderr
    assert not list(tmp_path.glob("*.toml"))
