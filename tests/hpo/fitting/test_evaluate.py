"""A fitted model on the hold-out of a real study: what is measured, that it is counted, and when it is refused."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from sparse_evidence.core.corpus.data import Corpus
from sparse_evidence.core.fitted import checksum, load_model
from sparse_evidence.hpo.database import connection, record, studies
from sparse_evidence.hpo.running.task import load_task
from sparse_evidence.hpo.study.definition import load

STUDY = """
name = "judged"
[data]
source = "synthetic"
posts = 150
criteria = 2
sentences_mean = 5
[split]
folds = 3
holdout = 0.25
[search]
space = "file"
trials = 2
[model]
name = "retrieval"
C = { low = 1e-3, high = 1e-1, log = true }
[confirm]
leaders = 0
"""

pytestmark = pytest.mark.slow


def hpo(folder, *arguments, **environment):
    command = [sys.executable, "-m", "sparse_evidence.hpo", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, database_of_module):
    """A folder where a small study was searched and fitted into the folder `model`."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(STUDY)
    done = hpo(folder, "run", "study.toml", "--workers", "1", "--fit", "model", HPO_STORAGE=database_of_module)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def holdout(folder) -> Corpus:
    task = load_task(load(folder / "study.toml"))
    return task.corpus.subset(np.flatnonzero(task.folds.assignment < 0))


@pytest.fixture
def looks(database_of_module):
    """Call it for the looks that are counted."""
    opened = connection.open_storage(database_of_module)
    yield lambda: record.looks(studies.load_study(opened, "judged"))
    connection.engine_of(opened).dispose()


def evaluated(folder, *arguments, **environment):
    done = hpo(folder, "evaluate", "model", *arguments, "--json", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def write_pairs(path, corpus, names=None, rows=None):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["post_id", "post", "criterion", "label", "group", "evidence"])
        passages = {
            (item.post, item.criterion): corpus.posts[item.post][item.start : item.end] for item in corpus.evidence
        }
        for post in range(len(corpus)) if rows is None else rows:
            for column, criterion in enumerate(corpus.criteria):
                label = corpus.labels[post, column]
                cells = [corpus.post_ids[post], corpus.posts[post], (names or {}).get(criterion.name, criterion.name)]
                writer.writerow([*cells, label, corpus.groups[post], passages.get((post, column), "")])
    return path


def test_the_holdout_is_measured_and_every_look_is_counted(folder, holdout, looks, database_of_module):
    before = len(looks())
    report, _ = evaluated(folder, "--storage", database_of_module)
    assert (report["look"], len(looks())) == (before + 1, before + 1)
    last = looks()[-1]
    assert last == report["looks"][-1]
    assert last["model"] == checksum(folder / "model") == report["model"]
    assert last["value"] == report["scores"]["model"]["value"]

    model = load_model(folder / "model")
    probabilities = model.probabilities(holdout.posts)
    for column, criterion in enumerate(holdout.criteria):
        found, truth = report["evaluation"]["per_criterion"][criterion.name], holdout.labels[:, column]
        assert report["labelled"][criterion.name] == len(holdout)
        assert found["positives"] == truth.sum()
        assert found["average_precision"] == pytest.approx(average_precision_score(truth, probabilities[:, column]))
        assert found["auroc"] == pytest.approx(roc_auc_score(truth, probabilities[:, column]))
        assert found["f1"] == pytest.approx(f1_score(truth, probabilities[:, column] >= model.threshold))
    assert report["evaluation"]["threshold"] == model.threshold
    scores = report["scores"]
    assert list(scores) == ["chance", "linear", "model", "retrieval", "zero_shot"]  # sorted JSON
    low, high = scores["model"]["interval"]
    assert low < scores["model"]["value"] < high
    for name in ("linear", "retrieval", "zero_shot", "chance"):
        assert scores[name]["gain"] == pytest.approx(scores["model"]["value"] - scores[name]["value"])
        assert scores["chance"]["value"] <= scores[name]["value"]
    assert 0 < report["evidence"]["chance"] < report["evidence"]["precision_at_1"] <= 1

    # the same numbers again, and a warning
    again = hpo(folder, "evaluate", "model", HPO_STORAGE=database_of_module)
    assert again.returncode == 0, again.stderr
    assert len(looks()) == before + 2
    text = " ".join(again.stdout.split())
    assert f"judged: look {before + 2} at the hold-out, {len(holdout)} posts" in text
    assert f"This is look {before + 2} at the hold-out, with 1 different model;" in text
    assert "Average precision depends on the number of posts" in text
    assert max(map(len, again.stdout.splitlines())) <= 80
    for post in holdout.posts:
        assert post not in again.stdout


def test_two_looks_at_the_same_time_have_different_numbers(folder, looks, database_of_module):
    before = len(looks())
    command = [sys.executable, "-m", "sparse_evidence.hpo", "evaluate", "model", "--json"]
    environment = {**os.environ, "HPO_STORAGE": database_of_module}
    pair = [
        subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    found = [json.loads(process.communicate(timeout=120)[0]) for process in pair]
    assert sorted(report["look"] for report in found) == [before + 1, before + 2]
    assert found[0]["scores"] == found[1]["scores"]
    assert len(looks()) == before + 2


def test_what_cannot_be_counted_is_not_shown(folder, looks, database_of_module, tmp_path):
    before = len(looks())
    unreachable = hpo(folder, "evaluate", "model", "--storage", "postgresql://nobody@127.0.0.1:1/none")
    assert (unreachable.returncode, unreachable.stdout, unreachable.stderr.count("\n")) == (3, "", 1)

    # other data in the same place
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "study.toml").write_text(STUDY.replace("posts = 150", "posts = 151"))
    other = hpo(tmp_path, "evaluate", "model", "--study", "study.toml", HPO_STORAGE=database_of_module)
    assert (other.returncode, other.stderr.count("\n")) == (4, 1), other.stderr
    assert "other posts, labels or groups" in other.stderr
    assert "precision" not in other.stdout

    # a model without its study file
    lost = hpo(tmp_path / "model", "evaluate", ".", HPO_STORAGE=database_of_module)
    assert lost.returncode in {2, 4}
    (tmp_path / "study.toml").unlink()
    lost = hpo(tmp_path, "evaluate", "model", HPO_STORAGE=database_of_module)
    assert (lost.returncode, lost.stderr.count("\n")) == (2, 1)
    assert "which does not exist; give it with --study" in lost.stderr
    assert len(looks()) == before


def test_another_study_of_the_same_name_is_refused(folder, fresh_database, tmp_path):
    url = fresh_database()
    (tmp_path / "study.toml").write_text(STUDY.replace("posts = 150", "posts = 160"))
    done = hpo(tmp_path, "run", "study.toml", "--workers", "1", "--trials", "1", HPO_STORAGE=url)
    assert done.returncode == 0, done.stderr
    refused = hpo(folder, "evaluate", "model", HPO_STORAGE=url)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (4, "", 1)
    assert "is not the one that the model was fitted from" in refused.stderr


def test_other_data_are_measured_the_same_way_without_a_database(folder, holdout, looks, database_of_module, tmp_path):
    counted = len(looks())
    table = write_pairs(tmp_path / "pairs.csv", holdout)
    report, _ = evaluated(folder, table, HPO_STORAGE="postgresql://nobody@127.0.0.1:1/none")
    held, _ = evaluated(folder, HPO_STORAGE=database_of_module)
    assert len(looks()) == counted + 1
    for key in ("per_criterion", "pooled", "calibration", "threshold", "posts", "groups"):
        assert report["evaluation"][key] == held["evaluation"][key], key
    assert report["evidence"] == held["evidence"]
    assert report["scores"]["model"]["value"] == held["scores"]["model"]["value"]
    assert (report["data"], report["look"], report["looks"]) == ("other data", None, [])
    text = hpo(folder, "evaluate", "model", table).stdout
    assert "Other data: whether the model was trained on some of these posts" in " ".join(text.split())


def test_criteria_are_matched_by_name(folder, holdout, tmp_path):
    first, second = (criterion.name for criterion in holdout.criteria)
    table = write_pairs(tmp_path / "pairs.csv", holdout, {first: "unheard_of"})
    report, _ = evaluated(folder, table)
    assert list(report["evaluation"]["per_criterion"]) == [second]
    assert report["notes"] == [
        "the model does not know unheard_of; their labels were left out",
        f"the file has no labels of {first}",
    ]
    for names, rows, sentence in (
        ({first: "x", second: "y"}, None, "none of its criteria ('x', 'y') is one of the model's"),
        ({}, np.flatnonzero((holdout.labels == 0).all(1)), "have labels of one kind only"),
    ):
        table = write_pairs(tmp_path / "wrong.csv", holdout, names, rows)
        done = hpo(folder, "evaluate", "model", table)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert sentence in done.stderr
