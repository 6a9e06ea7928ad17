"""A fitted model on the hold-out of a real study: what is measured, that it is counted, and when it is refused."""

import csv
import io
import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import processes
import pytest
from rich.console import Console
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from sparse_evidence.core.corpus.data import Corpus
from sparse_evidence.core.errors import UserError
from sparse_evidence.core.fitted import checksum, load_model
from sparse_evidence.core.splits import Folds
from sparse_evidence.hpo.database import connection, record, studies
from sparse_evidence.hpo.errors import RefusedError
from sparse_evidence.hpo.fitting import evaluate, tables
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

STREAMS = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def hpo(folder, *arguments, **environment):
    return processes.call(*arguments, cwd=folder, env={"COLUMNS": "80", **environment})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, database_of_module):
    """A folder where a small study was searched and fitted into the folder `model`."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(STUDY)
    done = hpo(folder, "run", "study.toml", "--workers", "1", "--fit", "model", HPO_STORAGE=database_of_module)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder / "model")


@pytest.fixture(scope="module")
def task(folder):
    return load_task(load(folder / "study.toml"))


@pytest.fixture(scope="module")
def holdout(task) -> Corpus:
    return task.corpus.subset(np.flatnonzero(task.folds.assignment < 0))


@pytest.fixture
def study(folder, database_of_module):
    opened = connection.open_storage(database_of_module)
    yield studies.load_study(opened, "judged")
    connection.engine_of(opened).dispose()


@pytest.fixture
def looks(study):
    """Call it for the looks that are counted."""
    return lambda: record.looks(study)


def evaluated(folder, *arguments, **environment):
    done = hpo(folder, "evaluate", "model", *arguments, "--json", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def write_pairs(path, corpus, names=None, rows=None):
    """A row for every pair of a post and a criterion; several where several passages are marked."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["post_id", "post", "criterion", "label", "group", "evidence"])
        for post in range(len(corpus)) if rows is None else rows:
            text = corpus.posts[post]
            for column, criterion in enumerate(corpus.criteria):
                marked = [item for item in corpus.evidence if (item.post, item.criterion) == (post, column)]
                cells = [corpus.post_ids[post], text, (names or {}).get(criterion.name, criterion.name)]
                cells += [corpus.labels[post, column], corpus.groups[post]]
                for passage in [text[item.start : item.end] for item in marked] or [""]:
                    writer.writerow([*cells, passage])
    return path


def test_the_holdout_is_measured_and_every_look_is_counted(folder, model, holdout, looks, database_of_module):
    before = len(looks())
    report, _ = evaluated(folder, "--storage", database_of_module)
    assert (report["look"], len(looks())) == (before + 1, before + 1)
    last = looks()[-1]
    assert last == report["looks"][-1]
    assert last["model"] == checksum(folder / "model") == report["model"]
    assert last["value"] == report["scores"]["model"]["value"]

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


def test_from_the_second_look_on_there_is_a_warning(folder, model, study, task, holdout, looks):
    before = len(looks())
    for number in (before + 1, before + 2):
        report = evaluate.holdout_report(model, folder / "model", task, study)
        assert (report["look"], len(looks())) == (number, number)
    console = Console(file=io.StringIO(), width=80)
    console.print(tables.report_table(report))
    shown = console.file.getvalue()
    text = " ".join(shown.split())
    assert f"judged: look {before + 2} at the hold-out, {len(holdout)} posts" in text
    assert f"This is look {before + 2} at the hold-out, of 1 model;" in text
    assert "Average precision depends on the number of posts" in text
    assert max(map(len, shown.splitlines())) <= 80
    for post in holdout.posts:
        assert post not in shown
    assert tables.look_warning({**report, "look": 1, "looks": report["looks"][:1]}) is None


def test_two_looks_at_the_same_time_have_different_numbers(folder, looks, database_of_module):
    before = len(looks())
    environment = {"HPO_STORAGE": database_of_module}
    pair = [processes.hpo("evaluate", "model", "--json", cwd=folder, env=environment, **STREAMS) for _ in range(2)]
    found = [json.loads(process.communicate(timeout=120)[0]) for process in pair]
    assert sorted(report["look"] for report in found) == [before + 1, before + 2]
    assert found[0]["scores"] == found[1]["scores"]
    assert len(looks()) == before + 2


def test_what_cannot_be_counted_is_not_shown(folder, looks):
    before = len(looks())
    unreachable = hpo(folder, "evaluate", "model", "--storage", "postgresql://nobody@127.0.0.1:1/none")
    assert (unreachable.returncode, unreachable.stdout, unreachable.stderr.count("\n")) == (3, "", 1)
    assert len(looks()) == before


def test_other_data_or_another_study_in_its_place_are_refused(folder, model, study, looks, tmp_path, database):
    before = len(looks())
    (tmp_path / "study.toml").write_text(STUDY.replace("posts = 150", "posts = 151"))
    other = load_task(load(tmp_path / "study.toml"))
    with pytest.raises(RefusedError, match=r"is not of .*other posts, labels or groups"):
        evaluate.holdout_report(model, folder / "model", other, study)
    storage = connection.open_storage(database)
    namesake = studies.open_study(storage, "judged", direction="maximize", identity=other.identity())
    with pytest.raises(RefusedError, match="is not the one that the model was fitted from"):
        evaluate.check_study(model, namesake)
    connection.engine_of(storage).dispose()
    assert len(looks()) == before


def test_a_model_that_was_moved_asks_for_its_study(folder, model, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    done = hpo(tmp_path, "evaluate", "model")
    assert done.returncode == 2
    assert "which does not exist; give it with --study" in done.stderr
    with pytest.raises(UserError, match="names no study, so it has no hold-out"):
        evaluate.study_name(model.with_info({}), folder / "model")


def test_a_study_without_a_holdout_has_nothing_to_look_at(folder, model, study, task, looks):
    before = len(looks())
    everything = replace(task, folds=Folds(np.maximum(task.folds.assignment, 0), task.folds.count))
    fitted = model.with_info({**model.info, "folds_sha256": everything.identity()["folds_sha256"]})
    study.set_user_attr(record.IDENTITY, everything.identity())
    try:
        with pytest.raises(UserError, match="has no hold-out"):
            evaluate.holdout_report(fitted, folder / "model", everything, study)
    finally:
        study.set_user_attr(record.IDENTITY, task.identity())
    assert len(looks()) == before


def test_other_data_are_measured_the_same_way(folder, model, study, task, holdout, looks, tmp_path):
    counted = len(looks())
    table = write_pairs(tmp_path / "pairs.csv", holdout)
    report = evaluate.other_report(model, folder / "model", table)
    assert len(looks()) == counted
    held = evaluate.holdout_report(model, folder / "model", task, study)
    for key in ("per_criterion", "pooled", "calibration", "threshold", "posts", "groups"):
        assert report["evaluation"][key] == held["evaluation"][key], key
    assert report["evidence"] == held["evidence"]
    assert report["scores"]["model"]["value"] == held["scores"]["model"]["value"]
    assert report["scores"]["chance"]["value"] == held["scores"]["chance"]["value"]
    assert (report["data"], report["look"], report["looks"]) == ("other data", None, [])


def test_criteria_are_matched_by_name(folder, model, holdout, tmp_path):
    first, second = (criterion.name for criterion in holdout.criteria)
    table = write_pairs(tmp_path / "pairs.csv", holdout, {first: "unheard_of"})
    done = hpo(folder, "evaluate", "model", table, HPO_STORAGE="postgresql://nobody@127.0.0.1:1/none")
    assert done.returncode == 0, done.stderr  # no database is needed
    text = " ".join(done.stdout.split())
    assert "Other data: whether the model was trained on some of these posts is not known." in text
    assert "The model does not know unheard_of; their labels were left out." in text
    assert f"The file has no labels of {first}." in text
    report = evaluate.other_report(model, folder / "model", table)
    assert list(report["evaluation"]["per_criterion"]) == [second]
    assert f"{len(holdout)} posts form {len(set(holdout.groups))} groups" in report["notes"]
    truth = holdout.labels[:, 1]
    expected = average_precision_score(truth, model.probabilities(holdout.posts)[:, 1])
    assert report["scores"]["model"]["value"] == pytest.approx(expected)
    for names, rows, sentence in (
        ({first: "x", second: "y"}, None, "none of its criteria \\('x', 'y'\\) is one of the model's"),
        ({}, np.flatnonzero((holdout.labels == 0).all(1)), "have labels of one kind only"),
    ):
        table = write_pairs(tmp_path / "wrong.csv", holdout, names, rows)
        with pytest.raises(UserError, match=sentence):
            evaluate.other_report(model, folder / "model", table)


def test_the_studys_own_table_is_refused(folder, model, task, looks, tmp_path):
    """It holds the posts that the model was trained on, and the hold-out, which would not be counted."""
    counted = len(looks())
    table = write_pairs(tmp_path / "own.csv", task.corpus)
    done = hpo(folder, "evaluate", "model", table)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "own.csv holds the posts of the model's own study" in done.stderr
    learns = replace(task.corpus, name="own").fingerprint(evidence=True)
    with pytest.raises(UserError, match="give no file to look at the hold-out"):
        evaluate.other_report(model.with_info({**model.info, "data_sha256": learns}), folder / "model", table)
    assert len(looks()) == counted


def test_a_wide_table_is_measured_as_one_of_pairs(folder, model, holdout, tmp_path):
    names = [criterion.name for criterion in holdout.criteria]
    path = tmp_path / "wide.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "author_id", "text", *names, "remark"])
        for row in zip(holdout.post_ids, holdout.groups, holdout.posts, *holdout.labels.T, strict=True):
            writer.writerow([*row, "read by two"])
    wide = evaluate.other_report(model, folder / "model", path)
    pairs = evaluate.other_report(model, folder / "model", write_pairs(tmp_path / "pairs.csv", holdout))
    assert wide["scores"] == pairs["scores"]
    assert "columns that were not read: remark" in wide["notes"]


def test_a_metric_that_is_not_defined_is_one_sentence(folder, model, tmp_path):
    first, second = (criterion.name for criterion in model.criteria)
    path = tmp_path / "one_kind.csv"
    rows = [f"{post},Words.,{name},{label}" for post in range(4) for name, label in ((first, 1), (second, 0))]
    path.write_text("\n".join(["post_id,post,criterion,label", *rows]))
    ranked = model.with_info({**model.info, "metric": "auroc"})
    with pytest.raises(UserError, match="is not defined on the posts of one_kind: each criterion has labels of one"):
        evaluate.other_report(ranked, folder / "model", path)


def test_names_that_look_like_markup_are_shown_as_they_are(folder, model, holdout, tmp_path):
    name = "mood [/low]"
    first = model.criteria[0]
    renamed = replace(model, criteria=(replace(first, name=name), *model.criteria[1:]))
    table = write_pairs(tmp_path / "pairs.csv", holdout, {first.name: name})
    console = Console(file=io.StringIO(), width=80)
    console.print(tables.report_table(evaluate.other_report(renamed, folder / "model", table)))
    assert name in console.file.getvalue()
