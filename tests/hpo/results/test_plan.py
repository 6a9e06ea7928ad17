"""The plan that `hpo validate` reports."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path

import pytest
from csv_files import write_csv
from tiny import task

from sparse_evidence.hpo.results import plan
from sparse_evidence.hpo.results.plan import make_plan, plan_task, probe_epoch
from sparse_evidence.hpo.running.task import load_task
from sparse_evidence.hpo.study.definition import load


def test_a_plan_counts_the_data_and_measures_an_epoch(tmp_path):
    data = task(tmp_path)
    planned = plan_task(data)
    assert (planned.study, planned.path) == ("tiny", str(data.definition.path))
    assert (planned.posts, planned.groups, planned.held_out) == (60, len(set(data.corpus.groups)), 0)
    assert planned.chunks == len(data.chunks.texts)
    assert planned.chunks_per_post.smallest <= planned.chunks_per_post.median <= planned.chunks_per_post.largest
    assert planned.stages == (1, 1, 1)
    assert sum(planned.validation_posts) == 60
    assert (planned.texts, planned.embedded_now) == (len(data.chunks.texts) + 2, 0)
    assert list(planned.short_posts) == [4]
    assert (planned.metric, planned.baselines) == ("average_precision", data.baselines())
    assert planned.trials == 4
    assert [parameter.name for parameter in planned.parameters] == ["training.learning_rate"]
    assert planned.notes == tuple(data.corpus.notes)


def test_a_plan_says_how_common_each_criterion_is_in_each_fold(tmp_path):
    data = task(tmp_path)
    for criterion, positives, prevalence in zip(
        plan_task(data).criteria, data.corpus.positives, data.corpus.prevalence, strict=True
    ):
        assert (criterion.positives, criterion.prevalence) == (positives, prevalence)
        assert sum(criterion.folds) / 3 == pytest.approx(prevalence, abs=0.02)
        assert criterion.holdout is None


def test_a_plan_is_json(tmp_path):
    planned = plan_task(task(tmp_path))
    values = json.loads(json.dumps(planned.as_dict(), allow_nan=False))
    assert values["posts"] == 60
    assert values["chunks_per_post"]["largest"] == planned.chunks_per_post.largest
    assert values["criteria"][0]["name"] == planned.criteria[0].name
    assert values["parameters"][0]["name"] == planned.parameters[0].name
    assert values["parameters"][0]["spec"]["low"] == planned.parameters[0].spec.low
    assert values["cost"]["longest_seconds"] == planned.cost.longest_seconds


def ticks(*epochs: float) -> iter:
    """A clock for epochs of these lengths, with a second between them: it is read at both ends of each."""
    ends = accumulate(chain.from_iterable((1.0, seconds) for seconds in epochs))
    return iter([*ends, 1e9]).__next__


def test_the_fastest_of_a_few_epochs_counts(tmp_path):
    data = task(tmp_path, epochs=5, patience=5)  # one model of all folds
    assert probe_epoch(data, clock=ticks(5.0, 2.0, 3.0, 4.0)) == 2.0


def test_no_further_epoch_is_measured_after_a_long_one(tmp_path):
    data = task(tmp_path, epochs=5, patience=5)
    assert probe_epoch(data, clock=ticks(plan.PROBE_SECONDS + 1)) == plan.PROBE_SECONDS + 1


def test_the_estimate_reaches_from_every_trial_stopping_early_to_none(tmp_path):
    data = task(tmp_path, epochs=5, patience=1)
    cost = plan_task(data, clock=ticks(5.0, 2.0, 3.0, 4.0)).cost
    assert (cost.epoch_seconds, cost.shortest_seconds, cost.longest_seconds) == (2.0, 4 * 2 * 2.0, 4 * 5 * 2.0)


def test_near_duplicates_of_different_groups_are_named_by_their_ids(tmp_path):
    data = task(tmp_path)
    assert plan_task(data).near_duplicates == plan.NearDuplicates(0, 0, 0, ())
    groups = data.corpus.groups
    other = next(post for post in range(60) if groups[post] != groups[0])
    same = next(post for post in range(1, 60) if groups[post] == groups[0])
    embedded = next(iter(data.embedded.values()))
    vectors, offsets = embedded.embeddings.copy(), embedded.offsets
    for copy in (other, same):
        vectors[offsets[copy] : offsets[copy + 1]] = vectors[offsets[0] : offsets[1]].mean(axis=0)
    copied = replace(data, embedded={("all-MiniLM-L6-v2", 1): replace(embedded, embeddings=vectors)})
    duplicates = plan_task(copied).near_duplicates
    ids = data.corpus.post_ids
    expected = {tuple(sorted((0, other))), tuple(sorted((other, same)))}
    assert (duplicates.pairs, duplicates.affected, duplicates.groups) == (2, 3, 2)
    assert set(duplicates.posts) == {(ids[first], ids[second]) for first, second in expected}
    texts = tuple(f"{number} I lay awake again and wept until the morning" for number in range(len(ids)))
    swapped = plan_task(replace(copied, corpus=replace(data.corpus, post_ids=texts)))
    assert "wept" not in str(swapped.as_dict()), "an id may be the text of a post by mistake"


MERGED = """
[data]
source = "pairs"
path = "posts.csv"
[data.criteria]
noise = "Is bothered by noise."
[split]
folds = 2
holdout = 0.0
{merge}
[model]
name = "retrieval"
"""


@pytest.mark.slow
def test_groups_that_share_near_duplicates_can_be_merged(tmp_path):
    """Real text: the second author has copied a post of the first, and changed a word."""
    places = (
        "the river",
        "the harbour",
        "an old mill",
        "the market",
        "the town hall",
        "a bakery",
        "a school",
        "a wood",
    )
    rows = [
        [f"p{n}", f"u{n}", f"We live near {place}. The flat has {n} rooms and a stove. Drums wake us at night.", n % 2]
        for n, place in enumerate(places)
    ]
    rows.append(["copy", "u8", rows[0][2].replace("a stove", "one stove"), 0])
    write_csv(tmp_path / "posts.csv", ("post_id", "group", "post", "noise"), *rows)
    for merge in ("", "merge_near_duplicates = true"):
        (tmp_path / "study.toml").write_text(MERGED.format(merge=merge), encoding="utf-8")
        task = load_task(load(tmp_path / "study.toml", environ={}))
        planned = plan_task(task)
        if not merge:
            assert planned.near_duplicates == plan.NearDuplicates(1, 2, 2, (("p0", "copy"),))
            assert planned.groups == 9
            apart = task.identity()
            continue
        assert planned.near_duplicates == plan.NearDuplicates(0, 0, 0, ())
        assert planned.groups == 8
        assert planned.notes[-1] == (
            "merge_near_duplicates: 2 posts are near-duplicates of a post of another group (p0 and copy); 9 groups "
            "became 8"
        )
        assert task.folds.assignment[0] == task.folds.assignment[8]
        assert {key for key, value in task.identity().items() if value != apart[key]} >= {"definition", "data_sha256"}


@pytest.mark.slow
def test_a_plan_of_a_study_file(tmp_path: Path) -> None:
    smoke = Path(__file__).parents[3] / "studies" / "smoke.toml"
    planned = make_plan(load(smoke, environ={}))
    assert (planned.posts, planned.held_out) == (60, 12)
    assert list(planned.short_posts) == [2, 4]
    assert all(criterion.holdout is not None for criterion in planned.criteria)
