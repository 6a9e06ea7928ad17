"""Groups stay whole, every post is validated once, criteria are balanced, and impossible splits are refused."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_evidence.core.config import SplitConfig
from sparse_evidence.core.corpus.synthetic import SyntheticSource
from sparse_evidence.core.errors import ConfigError, SplitError
from sparse_evidence.core.splits import Folds, holdout_split, kfold, partition, split, split_once

REDSM5 = (328, 124, 44, 102, 35, 124, 311, 59, 165, 92)  # positive posts of each criterion among its 1,484
NAMES = tuple(f"A{number}" for number in range(1, 11))


def redsm5_labels(seed=0, posts=1484, times=1):
    source = np.random.default_rng(seed)
    labels = np.zeros((posts, len(REDSM5)), dtype=np.int8)
    for column, count in enumerate(REDSM5):
        labels[source.permutation(posts)[: count * times], column] = 1
    return labels


def singletons(count):
    return [f"post {number}" for number in range(count)]


def positives(labels, part, parts):
    return np.array([(labels[part == number] == 1).sum(axis=0) for number in range(parts)])


@st.composite
def tables(draw, values=(-1, 0, 1)):
    """(groups, labels) of up to 60 posts in up to 20 groups, with up to 4 criteria."""
    posts = draw(st.integers(6, 60))
    source = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = [f"g{number}" for number in source.integers(0, draw(st.integers(4, 20)), posts)]
    return groups, source.choice(values, size=(posts, draw(st.integers(1, 4)))).astype(np.int8)


@given(tables(), st.integers(2, 4), st.integers(-5, 2**40))
@settings(max_examples=60, deadline=None)
def test_groups_stay_whole_and_no_part_is_empty(table, parts, seed):
    groups, labels = table
    if len(set(groups)) < parts:
        with pytest.raises(SplitError, match="parts were requested, but there are only"):
            partition(groups, labels, [1] * parts, seed)
        return
    part = partition(groups, labels, [1] * parts, seed)
    assert part.dtype == np.int16
    assert len({(group, number) for group, number in zip(groups, part, strict=True)}) == len(set(groups))
    assert set(part.tolist()) == set(range(parts))


@given(tables(values=(0, 1)), st.integers(2, 4), st.integers(0, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_every_included_post_is_validated_once(table, folds, seed, data):
    groups, labels = table
    include = np.array(data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))))
    names = NAMES[: labels.shape[1]]
    try:
        result = kfold(groups, labels, folds, seed, criteria=names, include=include)
    except SplitError:
        return
    validated = np.concatenate([result.validation(fold) for fold in range(folds)])
    np.testing.assert_array_equal(np.sort(validated), np.flatnonzero(include))
    for fold in range(folds):
        train, validation = result.train(fold), result.validation(fold)
        np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.flatnonzero(include))
        assert not {groups[row] for row in train} & {groups[row] for row in validation}
        for column in range(labels.shape[1]):
            assert set(labels[validation, column]) == {0, 1}
    repeated = kfold(groups, labels, folds, seed, criteria=names, include=include)
    np.testing.assert_array_equal(result.assignment, repeated.assignment)


@given(tables(), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_the_names_of_groups_do_not_matter(table, seed):
    groups, labels = table
    if len(set(groups)) < 2:
        return
    renamed = [group[::-1] + "é" for group in groups]
    shares = [0.3, 0.7]
    np.testing.assert_array_equal(partition(groups, labels, shares, seed), partition(renamed, labels, shares, seed))


def test_another_process_with_another_hash_seed_gives_the_same_parts():
    code = (
        "import numpy as np; from sparse_evidence.core.splits import partition; r = np.random.default_rng(3);"
        "labels = r.integers(-1, 2, (200, 5)).astype(np.int8);"
        "print(partition([f'u{i}' for i in r.integers(0, 80, 200)], labels, [1] * 5, 7).tolist())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("config", "fingerprint"),
    [
        (SplitConfig(), "b7e407aa8ed2"),
        (SplitConfig(folds=2, holdout=0.0, seed=1), "cb8cfce63bc8"),
        (SplitConfig(folds=3, seed=4), "360c49fe935a"),
        (SplitConfig(folds=4, holdout=0.35, seed=-3), "7a66205feb0c"),
    ],
)
def test_the_folds_of_a_study_never_change(config, fingerprint):
    """Studies store the fingerprint of their folds and refuse workers with others, so these must stay."""
    corpus = SyntheticSource(posts=200, criteria=4, seed=3, sentences_mean=6.0).load(Path())
    names = [criterion.name for criterion in corpus.criteria]
    folds = split(corpus.groups, corpus.labels, config, criteria=names)
    assert folds.fingerprint(corpus.post_ids)[:12] == fingerprint


def test_folds_from_the_cache_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path))
    labels, groups, names = redsm5_labels(), singletons(1484), [str(column) for column in range(10)]
    for config in (SplitConfig(folds=3), SplitConfig(folds=3, seed=1)):
        expected = split(groups, labels, config, criteria=names)
        for _ in range(2):
            folds = split_once(groups, labels, config, criteria=names)
            assert folds.count == expected.count
            assert folds.assignment.tolist() == expected.assignment.tolist()
    assert len(list((tmp_path / "folds").iterdir())) == 2


def test_another_seed_gives_other_folds():
    labels = redsm5_labels()
    folds = [kfold(singletons(1484), labels, 5, seed, criteria=NAMES).fingerprint(singletons(1484)) for seed in (0, 1)]
    assert folds[0] != folds[1]


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 4), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_every_fold_has_a_positive_if_possible(seed, folds, criteria, spare):
    """There is one positive and at least one negative post of every criterion per fold."""
    source = np.random.default_rng(seed)
    planted = np.concatenate([np.eye(criteria, dtype=np.int8)] * folds + [np.zeros((folds + spare, criteria), np.int8)])
    labels = source.permutation(planted)
    result = kfold(singletons(len(labels)), labels, folds, seed, criteria=NAMES[:criteria])
    assert (positives(labels, result.assignment, folds) == 1).all()


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.lists(st.floats(0.05, 0.95), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_single_posts_are_balanced(seed, folds, rates):
    """Documented bound: if every post is its own group, each count is within 2 of its target."""
    labels = (np.random.default_rng(seed).random((150, len(rates))) < rates).astype(np.int8)
    part = partition(singletons(150), labels, [1] * folds, seed)
    assert np.abs(positives(labels, part, folds) - labels.sum(axis=0) / folds).max() <= 2
    assert np.abs(np.bincount(part) - 150 / folds).max() <= 2


@pytest.mark.parametrize("seed", range(3))
def test_data_like_redsm5_is_balanced_to_within_one_post(seed):
    labels = redsm5_labels(seed)
    result = kfold(singletons(1484), labels, 5, seed, criteria=NAMES)
    assert np.abs(positives(labels, result.assignment, 5) - np.array(REDSM5) / 5).max() <= 1
    assert np.abs(np.bincount(result.assignment) - 1484 / 5).max() <= 1


@pytest.mark.parametrize("seed", [5, 174])
def test_the_local_search_ends(seed):
    """With few, small groups a single number for shortage and imbalance once led to an endless loop."""
    source = np.random.default_rng(seed)
    posts, parts, max_groups, criteria = (int(source.integers(*ends)) for ends in ((6, 61), (2, 5), (4, 21), (1, 5)))
    groups = [f"g{number}" for number in source.integers(0, max_groups, posts)]
    labels = source.choice((-1, 0, 1), size=(posts, criteria)).astype(np.int8)
    assert set(partition(groups, labels, [1] * parts, seed)) == set(range(parts))


def test_groups_of_uneven_size_are_balanced():
    """Documented bound: with groups of 1 to 9 posts, within 2 positives and 2 posts of the target."""
    source = np.random.default_rng(0)
    groups = [f"u{number}" for number in source.integers(0, 500, 1484)]
    labels = redsm5_labels()
    result = kfold(groups, labels, 5, 0, criteria=NAMES)
    assert np.abs(positives(labels, result.assignment, 5) - np.array(REDSM5) / 5).max() <= 2
    assert np.abs(np.bincount(result.assignment) - 1484 / 5).max() <= 2


def test_parts_get_their_shares():
    labels = redsm5_labels()
    part = partition(singletons(1484), labels, [0.5, 0.3, 0.2], 0)
    target = np.outer([0.5, 0.3, 0.2], REDSM5)
    assert np.abs(positives(labels, part, 3) - target).max() <= 1


def test_few_negatives_are_balanced_too():
    labels = np.ones((100, 1), dtype=np.int8)
    labels[:5] = 0
    result = kfold(singletons(100), labels, 5, 0, criteria=["common"])
    assert [int((labels[result.validation(fold)] == 0).sum()) for fold in range(5)] == [1] * 5


# ---- the local search -------------------------------------------------------------------------------------------


def group_table(groups, labels):
    """Counts of posts, positives and negatives, [groups, columns], without empty columns; and each post's group."""
    names = list(dict.fromkeys(groups))
    group = np.array([names.index(name) for name in groups])
    per_post = np.concatenate([np.ones((len(groups), 1)), labels == 1, labels == 0], axis=1)
    counts = np.stack([per_post[group == number].sum(axis=0) for number in range(len(names))])
    return group, counts[:, counts.sum(axis=0) > 0]


def naive_cost(counts, part, shares):
    """The documented cost, written down directly: (part, column) cells without a post, then χ²."""
    shortage, chi_squared = 0, 0.0
    for number, share in enumerate(shares):
        for column in range(counts.shape[1]):
            count = counts[part == number, column].sum()
            target = max(round(share * counts[:, column].sum() * 64), 1) / 64
            shortage += count == 0
            chi_squared += (count - target) ** 2 * (max(round(2**20 / target), 1) / 2**20)
    return shortage, chi_squared


@given(tables(), st.integers(2, 3), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_no_move_and_no_exchange_of_groups_improves_the_cost(table, parts, seed):
    groups, labels = table
    if len(set(groups)) < parts:
        return
    shares = [1 / parts] * parts
    group, counts = group_table(groups, labels)
    part_of_post = partition(groups, labels, shares, seed)
    part = np.array([part_of_post[group == number][0] for number in range(len(counts))])
    shortage, chi_squared = naive_cost(counts, part, shares)
    changes = [{one: to} for one in range(len(part)) for to in range(parts)]
    changes += [{one: part[other], other: part[one]} for one, other in itertools.combinations(range(len(part)), 2)]
    for change in changes:
        moved = part.copy()
        for one, to in change.items():
            moved[one] = to
        other_shortage, other_chi_squared = naive_cost(counts, moved, shares)
        assert other_shortage >= shortage
        if other_shortage == shortage:
            assert other_chi_squared >= chi_squared - 1e-5


@given(tables(values=(0, 1)), st.integers(2, 4), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_order_of_posts_within_groups_does_not_matter(table, parts, seed):
    """Groups are numbered by their first post, so posts may change places as long as that order stays the same."""
    groups, labels = table
    if len(set(groups)) < parts:
        return
    order = sorted(range(len(groups)), key=lambda row: groups.index(groups[row]))  # stable: whole groups in a row
    sorted_part = partition([groups[row] for row in order], labels[order], [1] * parts, seed)
    np.testing.assert_array_equal(sorted_part, partition(groups, labels, [1] * parts, seed)[order])


@given(tables(), st.floats(0.05, 0.5), st.integers(0, 5), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_a_holdout_has_whole_groups_and_leaves_some_to_the_search(table, share, seed, keep):
    groups, labels = table
    if len(set(groups)) < 2:
        return
    held_out = holdout_split(groups, labels, share, seed, keep=keep)
    assert held_out.dtype == np.bool_
    assert not {group for group, out in zip(groups, held_out, strict=True) if out} & {
        group for group, out in zip(groups, held_out, strict=True) if not out
    }
    assert held_out.sum() < len(groups)


def test_shares_are_relative():
    labels = redsm5_labels(posts=400)
    parts = [partition(singletons(400), labels, shares, 0) for shares in ([0.25, 0.75], [1, 3], [10, 30])]
    np.testing.assert_array_equal(parts[0], parts[1])
    np.testing.assert_array_equal(parts[0], parts[2])


def test_unlabelled_posts_are_distributed_but_count_for_no_class():
    labels = np.full((40, 1), -1, np.int8)
    labels[:4] = [[1], [1], [0], [0]]
    part = partition(singletons(40), labels, [1, 1], 0)
    assert np.bincount(part).tolist() == [20, 20]
    assert positives(labels, part, 2).tolist() == [[1], [1]]


def test_labels_without_any_column_are_split_by_the_number_of_posts():
    part = partition(singletons(30), np.zeros((30, 0), np.int8), [1, 2], 0)
    assert np.bincount(part).tolist() == [10, 20]


# ---- hold-out ---------------------------------------------------------------------------------------------------


def test_the_holdout_gets_its_share():
    labels = redsm5_labels()
    held_out = holdout_split(singletons(1484), labels, 0.2, 0)
    assert abs(int(held_out.sum()) - 0.2 * 1484) <= 1
    assert np.abs(labels[held_out].sum(axis=0) - 0.2 * np.array(REDSM5)).max() <= 1


def test_a_share_of_zero_holds_nothing_out():
    assert not holdout_split(singletons(3), np.zeros((3, 1), np.int8), 0, 0).any()


@pytest.mark.parametrize(("positive_posts", "held_out_positives"), [(4, 0), (5, 0), (6, 1), (7, 1), (25, 5)])
def test_the_search_gets_rare_positives_before_the_holdout(positive_posts, held_out_positives):
    labels = np.zeros((100, 1), np.int8)
    labels[:positive_posts] = 1
    held_out = holdout_split(singletons(100), labels, 0.2, 0, keep=5)
    assert int((labels[held_out] == 1).sum()) == held_out_positives
    assert abs(int(held_out.sum()) - 20) <= 1


def test_a_small_holdout_has_every_criterion_if_possible():
    labels = np.zeros((200, 6), np.int8)
    for column in range(6):
        labels[column * 7 : column * 7 + 7, column] = 1  # 7 positives, of which 5 % is a third of a post
    held_out = holdout_split(singletons(200), labels, 0.05, 0, keep=5)
    assert (labels[held_out].sum(axis=0) >= 1).all()
    assert (labels[~held_out].sum(axis=0) >= 5).all()


def test_a_split_has_a_holdout_and_folds():
    labels = redsm5_labels()
    result = split(singletons(1484), labels, SplitConfig(), criteria=NAMES)
    held_out = holdout_split(singletons(1484), labels, 0.2, 0, keep=5)
    np.testing.assert_array_equal(result.assignment == -1, held_out)
    assert np.abs(positives(labels, result.assignment, 5) - 0.16 * np.array(REDSM5)).max() <= 1
    assert result.count == 5


# ---- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [(2, 2), (5, 1), (6, -1)])
def test_stages_must_add_up_to_the_folds(stages):
    with pytest.raises(ConfigError, match=r"adds up to .* but folds = 5"):
        split(singletons(1484), redsm5_labels(), SplitConfig(stages=stages), criteria=NAMES)


def test_one_group_is_refused():
    labels = redsm5_labels()
    with pytest.raises(SplitError, match="one group"):
        kfold(["u"] * 1484, labels, 5, 0, criteria=NAMES)
    with pytest.raises(SplitError, match="one group"):
        holdout_split(["u"] * 1484, labels, 0.2, 0)


def test_more_folds_than_groups_are_refused():
    groups = [f"u{number % 3}" for number in range(30)]
    with pytest.raises(SplitError, match=r"5 folds were requested, but the 30 posts .* 3 groups.* at most 3"):
        kfold(groups, np.zeros((30, 1), np.int8), 5, 0, criteria=["a"])


def test_all_rare_criteria_are_named_together():
    labels = np.zeros((100, 3), np.int8)
    labels[:2, 0] = 1
    labels[:50, 1] = 1
    labels[:, 2] = 1
    labels[:3, 2] = 0
    with pytest.raises(SplitError) as refused:
        kfold(singletons(100), labels, 5, 0, criteria=["fatigue", "mood", "sleep"])
    message = str(refused.value)
    assert "criterion 'fatigue' has 2 positive posts in 2 groups" in message
    assert "criterion 'sleep' has 3 negative posts in 3 groups" in message
    assert "fewer than 5 folds" in message
    assert "set folds to at most 2" in message
    assert "mood" not in message


def test_positives_in_one_large_group_are_not_enough():
    labels = np.zeros((40, 1), np.int8)
    labels[:20] = 1
    groups = ["frequent author"] * 20 + singletons(20)
    with pytest.raises(SplitError, match="20 positive posts in 1 group, fewer than 3 folds"):
        kfold(groups, labels, 3, 0, criteria=["a"])


def test_a_fold_without_a_class_is_named():
    """Every criterion needs its two posts in different folds, which two folds cannot do for three posts."""
    labels = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0]], np.int8)
    with pytest.raises(SplitError, match=r"fold \d has no positive post of criterion '[xyz]'.* fewer than 2 folds"):
        kfold(singletons(5), labels, 2, 0, criteria=["x", "y", "z"])


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_of_the_holdout_out_of_range_are_refused(share):
    with pytest.raises(SplitError, match="share"):
        holdout_split(singletons(4), np.zeros((4, 1), np.int8), share, 0)


def test_wrong_arguments_are_refused():
    labels = redsm5_labels()
    with pytest.raises(SplitError, match="shape"):
        kfold(singletons(3), labels, 5, 0, criteria=NAMES)
    with pytest.raises(SplitError, match="3 criteria are named"):
        kfold(singletons(1484), labels, 5, 0, criteria=NAMES[:3])
    with pytest.raises(SplitError, match="at least 2"):
        kfold(singletons(1484), labels, 1, 0, criteria=NAMES)
    for shares in ([], [1, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(SplitError, match="shares must be positive"):
            partition(singletons(1484), labels, shares, 0)


# ---- Folds ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-1, 2), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_the_fingerprint_does_not_depend_on_the_order_of_posts(assignment, random):
    ids = [f"p{number}" for number in range(len(assignment))]
    order = list(range(len(ids)))
    random.shuffle(order)
    shuffled = Folds(np.array([assignment[row] for row in order], np.int16), 3)
    mark = Folds(np.array(assignment, np.int16), 3).fingerprint(ids)
    assert shuffled.fingerprint([ids[row] for row in order]) == mark
    changed = assignment.copy()
    changed[0] = (changed[0] + 2) % 4 - 1
    assert Folds(np.array(changed, np.int16), 3).fingerprint(ids) != mark
    assert Folds(np.array(assignment, np.int16), 3).fingerprint(["other", *ids[1:]]) != mark


def test_ambiguous_post_ids_have_no_fingerprint():
    folds = Folds(np.array([0, 1], np.int16), 2)
    with pytest.raises(ValueError, match="share an id"):
        folds.fingerprint(["a", "a"])
    with pytest.raises(ValueError, match="3 post ids"):
        folds.fingerprint(["a", "b", "c"])


def test_folds_are_immutable():
    assignment = np.array([0, 1, -1], np.int16)
    folds = Folds(assignment, 2)
    assignment[0] = 1
    assert folds.assignment.tolist() == [0, 1, -1]
    with pytest.raises(ValueError, match="read-only"):
        folds.assignment[0] = 1
    with pytest.raises(IndexError, match="folds 0 to 1"):
        folds.train(2)


@pytest.mark.parametrize("fold", [-1, 2])
def test_folds_that_do_not_exist_are_refused(fold):
    folds = Folds(np.array([0, 1, -1], np.int16), 2)
    for method in (folds.train, folds.validation):
        with pytest.raises(IndexError, match=rf"fold {fold} was requested, but there are folds 0 to 1"):
            method(fold)


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=20))
def test_training_and_validation_posts_are_all_posts_outside_the_holdout(assignment):
    folds = Folds(np.array(assignment, np.int16), 4)
    searched = np.flatnonzero(folds.assignment >= 0)
    for fold in range(4):
        train, validation = folds.train(fold), folds.validation(fold)
        assert (np.diff(train) > 0).all()
        assert (folds.assignment[validation] == fold).all()
        np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), searched)


def test_names_that_may_be_posts_are_not_shown():
    names = [f"My name is Bob and my wife left me in March {i}" for i in range(60)]
    labels = np.zeros((40, 60), dtype=np.int8)
    with pytest.raises(SplitError) as refused:
        kfold([str(row) for row in range(40)], labels, 5, 0, criteria=names)
    assert "Bob" not in str(refused.value)
    assert len(str(refused.value)) < 3000
    assert "; and 40 more" in str(refused.value)
