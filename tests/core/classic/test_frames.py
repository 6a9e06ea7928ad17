"""Folds and loaders over a plain data frame: rows of a post stay together, labels stay with their rows."""

import numpy as np
import pandas as pd
import pytest
import torch

from sparse_evidence.core.classic import create_dataloader, create_kfold_splits
from sparse_evidence.core.errors import DataError, SplitError
from sparse_evidence.core.seeding import numpy_generator

CRITERIA = ("mood", "sleep", "appetite")


def frame(posts=100, authors=40, seed=0):
    """Every post with every criterion, rows in random order, with an index that is not the row number."""
    source = numpy_generator(seed, "frame")
    rows = [
        {
            "post_id": f"p{post}",
            "post": f"text of {post}",
            "criterion": name,
            "label": int(source.random() < 0.25),
            "author": f"u{post % authors}",
        }
        for post in range(posts)
        for name in CRITERIA
    ]
    shuffled = pd.DataFrame([rows[row] for row in source.permutation(len(rows))])
    shuffled.index = source.permutation(len(rows)) + 1000
    return shuffled


# ---- splits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["post_id", "author"])
def test_groups_stay_together_and_every_row_is_validated_once(group):
    df = frame()
    seen = []
    for train, validation in create_kfold_splits(df, n_folds=4, group_column=group):
        assert not set(df[group].iloc[train]) & set(df[group].iloc[validation])
        assert sorted([*train, *validation]) == list(range(len(df)))
        seen.extend(validation)
    assert sorted(seen) == list(range(len(df)))


def test_folds_are_balanced_for_every_criterion():
    df = frame(posts=200)
    for _, validation in create_kfold_splits(df):
        part = df.iloc[validation]
        assert abs(len(part) - 120) <= 3
        for name in CRITERIA:
            expected = df[df.criterion == name].label.sum() / 5
            assert abs(part[part.criterion == name].label.sum() - expected) <= 1


def test_splits_do_not_depend_on_the_order_of_the_columns_or_the_index():
    df = frame()
    moved = df[df.columns[::-1]].reset_index(drop=True)
    for one, other in zip(create_kfold_splits(df), create_kfold_splits(moved), strict=True):
        np.testing.assert_array_equal(one[1], other[1])


def test_folds_follow_from_the_seed():
    df = frame()
    folds = [[tuple(val) for _, val in create_kfold_splits(df, seed=seed)] for seed in (0, 0, 1)]
    assert folds[0] == folds[1] != folds[2]


def test_columns_may_have_other_names_or_be_absent():
    df = frame()
    renamed = df.rename(columns={"post_id": "id", "criterion": "symptom", "label": "y"})
    splits = create_kfold_splits(
        renamed, 3, "id", post_column="id", criterion_column="symptom", label_column="y", seed=2
    )
    for one, other in zip(splits, create_kfold_splits(df, 3, seed=2), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    single = df[df.criterion == "mood"].drop(columns=["criterion", "post_id"])
    assert len(list(create_kfold_splits(single, 3, "author"))) == 3


def test_unlabelled_pairs_are_validated_too():
    df = frame()
    df.loc[df.index[::7], "label"] = -1
    seen = np.concatenate([validation for _, validation in create_kfold_splits(df)])
    assert len(seen) == len(df)


def test_all_mistakes_are_reported_before_the_first_fold():
    df = frame()
    with pytest.raises(DataError, match=r"no column 'label'.*no column 'thread'") as refused:
        create_kfold_splits(df.drop(columns="label"), group_column="thread")
    assert len(refused.value.problems) == 2
    invalid = df.copy()
    invalid["label"] = invalid["label"].astype(object)
    invalid.iloc[3, invalid.columns.get_loc("label")] = "maybe"
    with pytest.raises(DataError, match="1 of column 'label' are none of 1, 0 and -1: 'maybe' in row 3"):
        create_kfold_splits(invalid)
    gap = df.copy()
    gap.iloc[5, gap.columns.get_loc("author")] = None
    with pytest.raises(DataError, match="'author' is empty in row 5"):
        create_kfold_splits(gap, group_column="author")


def test_contradictions_are_refused():
    df = frame()
    other = df.copy()
    other["label"] = 1 - other["label"]
    with pytest.raises(DataError, match="two labels for one criterion in 100 posts, first in row 0"):
        create_kfold_splits(pd.concat([df, other]))
    assert len(list(create_kfold_splits(pd.concat([df, df])))) == 5  # repeated rows are no contradiction
    moved = df.copy()
    moved.iloc[0, moved.columns.get_loc("author")] = "another author"
    with pytest.raises(DataError, match="two groups for each of 1 posts, first in row"):
        create_kfold_splits(moved, group_column="author")
    assert len(list(create_kfold_splits(moved))) == 5


def test_too_few_positives_are_refused():
    df = frame()
    df.loc[df.criterion == "sleep", "label"] = 0
    with pytest.raises(SplitError, match="criterion 'sleep' has 0 positive posts"):
        create_kfold_splits(df)


# ---- loaders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.filterwarnings("default:.*fork.*"))])
def test_batches_contain_the_rows(shuffle, workers):
    df = frame()
    ids = [f"p{post}" for post in range(100)]
    loader = create_dataloader(df, 32, post_ids=ids, criteria=CRITERIA, shuffle=shuffle, num_workers=workers)
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [32] * 9 + [12]
    posts, criteria, labels = (
        torch.cat([batch[name] for batch in batches]) for name in ("posts", "criteria", "labels")
    )
    assert (posts.dtype, criteria.dtype, labels.dtype) == (torch.int64, torch.int64, torch.float32)
    expected = [(ids.index(row.post_id), CRITERIA.index(row.criterion), row.label) for row in df.itertuples()]
    triples = list(zip(posts.tolist(), criteria.tolist(), labels.tolist(), strict=True))
    assert (triples == expected) is not shuffle
    assert sorted(triples) == sorted(expected)


def test_a_part_of_a_frame_keeps_the_numbers_of_its_posts():
    """Numbering only the validation rows would give posts the numbers of other posts."""
    df = frame().astype({"post_id": "category", "criterion": "category"})
    _, validation = next(create_kfold_splits(df))
    part = df.iloc[validation]
    (batch,) = create_dataloader(part, 1000)
    assert [df.post_id.cat.categories[int(number)] for number in batch["posts"]] == part.post_id.tolist()
    with pytest.raises(DataError, match=r"'post_id' holds names, .* give all of them in order as post_ids="):
        create_dataloader(frame().iloc[validation], 32)


def test_numeric_columns_are_used_unchanged():
    df = pd.DataFrame({"post_id": [7, 3], "criterion": [1, 0], "label": [True, False]})
    (batch,) = create_dataloader(df, 8)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "posts": [7, 3],
        "criteria": [1, 0],
        "labels": [1.0, 0.0],
    }


def test_collate_makes_the_inputs_from_text():
    df = frame(posts=10)
    loader = create_dataloader(
        df,
        4,
        collate=lambda rows: {"texts": [f"{c}: {p}" for c, p in zip(rows["criterion"], rows["post"], strict=True)]},
    )
    batch = next(iter(loader))
    assert batch["texts"] == [f"{row.criterion}: {row.post}" for row in df.iloc[:4].itertuples()]
    assert batch["labels"].tolist() == df.label.iloc[:4].tolist()


def test_unknown_and_repeated_names_are_refused():
    df = frame(posts=10)
    with pytest.raises(DataError, match=r"'p.' in row .* of 'post_id' is not in post_ids"):
        create_dataloader(df, 4, post_ids=["p1"], criteria=CRITERIA)
    with pytest.raises(DataError, match="criteria lists a name twice"):
        create_dataloader(df, 4, post_ids=[f"p{n}" for n in range(10)], criteria=["mood", *CRITERIA])
