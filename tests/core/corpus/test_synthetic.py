"""Generated posts: their size, labels and evidence, and that they are the same on every machine."""

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_evidence.core.corpus.redsm5 import DEPRESSION
from sparse_evidence.core.corpus.synthetic import TOPICS, SyntheticSource, generate


def test_the_default_has_the_size_and_prevalences_of_redsm5():
    corpus = SyntheticSource().load(Path())
    assert corpus.labels.shape == (1484, 10)
    assert corpus.positives.tolist() == [328, 124, 44, 102, 35, 124, 311, 59, 165, 92]
    assert 270 < np.mean([len(post.split()) for post in corpus.posts]) < 320
    assert len(set(corpus.posts)) == 1484
    sizes = np.unique(corpus.groups, return_counts=True)[1]
    assert sizes.max() <= 6
    assert 0.5 < (sizes == 1).mean() < 0.8


def test_evidence_supports_every_positive_label_and_no_other():
    corpus = SyntheticSource(posts=100, criteria=12).load(Path())
    backed = np.zeros_like(corpus.labels)
    for item in corpus.evidence:
        backed[item.post, item.criterion] = 1
        passage = corpus.posts[item.post][item.start : item.end]
        assert passage == passage.strip()
        assert passage[0].isupper()
        assert passage[-1] in ".!"
    assert np.array_equal(backed, corpus.labels)


def test_the_same_settings_give_the_same_corpus_on_every_machine():
    small = SyntheticSource(posts=40, criteria=3, seed=7)
    assert small.load(Path()).fingerprint()[:12] == "f498dc8cf4bd"
    assert SyntheticSource(posts=40, criteria=3, seed=8).load(Path()).fingerprint() != small.load(Path()).fingerprint()


@pytest.mark.parametrize("posts", [20, 40, 200])
def test_small_corpora_have_enough_positives_to_be_split(posts):
    positives = SyntheticSource(posts=posts, criteria=12).load(Path()).positives
    assert positives.min() >= 10
    assert positives.max() <= max(posts // 2, round(0.23 * posts))


def test_lengths_follow_the_mean():
    lengths = [
        np.mean([len(post.split()) for post in SyntheticSource(posts=300, sentences_mean=mean).load(Path()).posts])
        for mean in (5, 14, 50)
    ]
    assert lengths[0] < lengths[1] / 2 < lengths[2] / 5


def test_large_corpora_are_generated_quickly():
    started = time.process_time()
    SyntheticSource(posts=15_000).load(Path())
    assert time.process_time() - started < 10


def test_the_first_ten_topics_are_those_of_redsm5():
    assert tuple(topic.criterion for topic in TOPICS[:10]) == DEPRESSION
    assert len({topic.criterion.name for topic in TOPICS}) == len(TOPICS)


def test_no_template_is_both_evidence_and_decoy():
    templates = [template for topic in TOPICS for template in (*topic.evidence, *topic.decoys)]
    assert len(set(templates)) == len(templates)
    assert all(template.count("{") == template.count("}") for template in templates)


@given(
    st.integers(20, 120),
    st.integers(1, len(TOPICS)),
    st.integers(0, 2**32),
    st.floats(3, 40),
    st.integers(1, 30),
)
@settings(max_examples=25, deadline=None)
def test_counts_are_exact_for_all_settings(posts, criteria, seed, mean, min_positives):
    corpus = generate(posts=posts, criteria=criteria, seed=seed, sentences_mean=mean, min_positives=min_positives)
    expected = [max(int(topic.rate * posts + 0.5), min(min_positives, posts // 2)) for topic in TOPICS[:criteria]]
    assert corpus.positives.tolist() == expected
    assert len(corpus) == posts
    assert len(set(corpus.post_ids)) == posts
    for item in corpus.evidence:
        assert corpus.labels[item.post, item.criterion] == 1
    assert not any("{" in post or "|" in post for post in corpus.posts)


def test_a_post_has_at_most_three_sentences_of_evidence_per_criterion_and_they_do_not_overlap():
    corpus = SyntheticSource(posts=200).load(Path())
    spans = {}
    for item in corpus.evidence:
        spans.setdefault(item.post, []).append((item.start, item.end, item.criterion))
    for of_post in spans.values():
        criteria = [criterion for _, _, criterion in of_post]
        assert max(map(criteria.count, criteria)) <= 3
        assert all(left[1] < right[0] for left, right in pairwise(sorted(of_post)))


def test_posts_of_a_user_are_neighbours_and_share_a_group():
    corpus = SyntheticSource(posts=100).load(Path())
    users = [post_id.split("_")[1] for post_id in corpus.post_ids]
    assert corpus.groups == tuple(f"user-{user}" for user in users)
    changes = sum(a != b for a, b in pairwise(corpus.groups))
    assert changes == len(set(corpus.groups)) - 1


def test_fewer_criteria_are_the_first_ones():
    assert [criterion.name for criterion in SyntheticSource(posts=30, criteria=2).load(Path()).criteria] == [
        "depressed_mood",
        "anhedonia",
    ]
    assert np.unique(SyntheticSource(posts=30, criteria=2).load(Path()).labels).tolist() == [0, 1]
