"""What a search is said to be worth rests on these: test documents, true scores, and the summary of repeats."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from corpora import IRIS, TRAINING
from optuna.trial import TrialState, create_trial
from tiny import task

from benchmarks import cases, films, script, truth, worth
from sparse_evidence.core import metrics
from sparse_evidence.core.config import BCEConfig, CandidateConfig
from sparse_evidence.core.corpus.pairs import PairsSource
from sparse_evidence.core.corpus.synthetic import generate
from sparse_evidence.core.features.views import EmbeddedCorpus

RATINGS = np.linspace(-4, 4, 200)
POOL = films.Sentences(tuple(f"Sentence number {n}." for n in range(200)), RATINGS)


def small_films(seed=0):
    return films.assemble(POOL, [1, 2, 5], seed=seed, training=30, test=40)


def sentences_of(corpus):
    return [sentence for post in corpus.posts for sentence in post.split("\n")]


# ---- assembled films ------------------------------------------------------------------------------------------------


def test_no_sentence_is_in_a_training_and_in_a_test_document():
    train, test = small_films()
    assert (len(train), len(test)) == (30, 40)
    assert not set(sentences_of(train)) & set(sentences_of(test))
    assert max(Counter(sentences_of(train)).values()) == 1
    for post in test.posts:
        assert max(Counter(post.split("\n")).values()) == 1


def test_a_document_meets_a_criterion_if_one_of_its_sentences_is_rated_beyond_the_bound():
    rating = dict(zip(POOL.texts, RATINGS, strict=True))
    for corpus in small_films():
        for post, labels in zip(corpus.posts, corpus.labels, strict=True):
            ratings = [rating[sentence] for sentence in post.split("\n")]
            expected = [min(ratings) < -3, min(ratings) < -2.5, max(ratings) > 2.5, max(ratings) > 3]
            assert labels.tolist() == expected
        for item in corpus.evidence:
            assert abs(rating[corpus.posts[item.post][item.start : item.end]]) > 2.5
        assert {(item.post, item.criterion) for item in corpus.evidence} == set(
            zip(*map(np.ndarray.tolist, np.nonzero(corpus.labels)), strict=True)
        )


def test_the_same_seed_assembles_the_same_documents():
    assert [part.fingerprint() for part in small_films()] == [part.fingerprint() for part in small_films()]
    assert small_films(1)[0].fingerprint() != small_films(0)[0].fingerprint()


def test_too_few_sentences_are_noticed():
    with pytest.raises(AssertionError, match="too few sentences"):
        films.assemble(POOL, [5], seed=0, training=40, test=1)


def test_the_published_sentences():
    pool = films.sentences()
    assert len(pool.texts) == 10_603
    assert np.abs(pool.ratings).max() <= 4
    train, test = films.assemble(pool, films.editorial_lengths(), seed=0, training=500, test=1000)
    assert np.allclose(test.labels.mean(0), [0.22, 0.57, 0.57, 0.17], atol=0.06)
    lengths = [post.count("\n") + 1 for post in train.posts]
    assert np.mean(lengths) == pytest.approx(films.editorial_lengths().mean(), abs=0.5)


# ---- cases ----------------------------------------------------------------------------------------------------------


def test_the_table_of_a_corpus_is_read_as_the_same_corpus(tmp_path):
    for corpus in (small_films()[0], generate(posts=40, criteria=3, seed=0, sentences_mean=5, min_positives=5)):
        cases.write_pairs(corpus, tmp_path / "posts.csv")
        read = PairsSource(path="posts.csv").load(tmp_path)
        assert (read.posts, read.post_ids, read.groups, read.criteria) == (
            corpus.posts, corpus.post_ids, corpus.groups, corpus.criteria,
        )  # fmt: skip
        assert np.array_equal(read.labels, corpus.labels)
        assert set(read.evidence) == set(corpus.evidence)


def test_a_corpus_without_evidence_has_no_column_for_it(tmp_path):
    corpus = small_films()[0]
    cases.write_pairs(replace(corpus, evidence=()), tmp_path / "posts.csv")
    assert "evidence" not in (tmp_path / "posts.csv").read_text().partition("\n")[0]
    assert PairsSource(path="posts.csv").load(tmp_path).labels.tolist() == corpus.labels.tolist()


def test_groups_are_drawn_whole():
    corpus = generate(posts=60, criteria=2, seed=0, sentences_mean=5, min_positives=10)
    rows = cases.draw_groups(corpus, 20, seed=3)
    part, rest = cases.take(corpus, rows), cases.take(corpus, np.setdiff1d(np.arange(60), rows))
    assert len(part) >= 20
    assert not set(part.groups) & set(rest.groups)
    assert len(part.evidence) + len(rest.evidence) == len(corpus.evidence)
    assert [cases.draw_groups(corpus, 20, seed=3).tolist(), rows.tolist()] == [rows.tolist()] * 2


def test_permuted_labels_are_the_same_labels_on_other_posts():
    corpus = small_films()[0]
    permuted = cases.permute_labels(corpus, 1)
    assert permuted.posts == corpus.posts
    assert not permuted.evidence
    assert not np.array_equal(permuted.labels, corpus.labels)
    assert Counter(map(tuple, permuted.labels.tolist())) == Counter(map(tuple, corpus.labels.tolist()))


# ---- true scores ----------------------------------------------------------------------------------------------------


def test_parts_are_balanced_and_of_the_size_of_a_fold():
    generator = np.random.default_rng(0)
    labels = (generator.random((1000, 2)) < [0.1, 0.5]).astype(np.int8)
    part = truth.deal(labels, 10, 0)
    assert np.bincount(part).tolist() == [100] * 10
    rare = np.bincount(part, labels[:, 0])
    assert rare.max() - rare.min() <= 1
    assert not np.array_equal(part, truth.deal(labels, 10, 1))


def test_scores_at_the_size_of_a_fold_are_those_of_folds():
    """A random ranking shows it: its average precision is higher on few posts, and that is what a fold reports."""
    generator = np.random.default_rng(0)
    labels = (generator.random((4000, 1)) < 0.1).astype(np.int8)
    scores = generator.random((4000, 1))
    on_folds = np.mean([metrics.score("average_precision", labels[n : n + 80], scores[n : n + 80])
                        for n in range(0, 4000, 80)])  # fmt: skip
    same_size = truth.score_parts(labels, scores, 80, 0)
    whole = truth.score_parts(labels, scores, 4000, 0)
    assert whole == metrics.score("average_precision", labels, scores)
    assert same_size > whole + 0.02
    assert same_size == pytest.approx(on_folds, abs=0.015)


def grounds(tmp_path):
    """Ground without and with test posts, which are copies of the study's posts."""
    study = task(tmp_path)
    features = next(iter(study.embedded.values()))
    return truth.Ground(study, None), truth.Ground(study, features)


def test_joined_posts_keep_the_evidence_of_the_first(tmp_path):
    first = next(iter(task(tmp_path).embedded.values()))
    marks = np.zeros((len(first.embeddings), first.labels.shape[1]), dtype=np.bool_)
    marks[3, 1] = True
    marked = EmbeddedCorpus(first.embeddings, first.offsets, first.criteria, first.labels, marks)
    assert np.argwhere(truth.join(marked, first).evidence).tolist() == [[3, 1]]
    assert truth.join(marked, first).evidence.shape == (2 * len(marks), marks.shape[1])
    unmarked = EmbeddedCorpus(first.embeddings, first.offsets, first.criteria, first.labels)
    assert truth.join(unmarked, first).evidence is None


def test_a_member_that_was_picked_twice_weighs_twice(tmp_path):
    ground = grounds(tmp_path)[0]
    worths = truth.true_worth(ground, {"both": (member(0), member(0), member(1))}, splits=1, seed=0)
    judge = truth.Judge(ground, truth.stable_seed(0, "worth", 0))
    first, second = judge.train(member(0)), judge.train(member(1))
    mean = [(2 * a + b) / 3 for a, b in zip(first, second, strict=True)]
    assert worths["both"].value == pytest.approx(judge.score(mean)[0])


def member(number=0, epochs=3):
    return truth.Member(number, CandidateConfig(IRIS, replace(TRAINING, epochs=9), BCEConfig()), epochs)


def test_test_posts_change_no_model(tmp_path):
    """The fold models are the same with and without them: each predicts copies of its validation posts alike."""
    alone, tested = (truth.Judge(ground, 5) for ground in grounds(tmp_path))
    own, others = alone.train(member()), tested.train(member())
    for fold, rows in enumerate(alone.rows):
        assert len(others[fold]) == 60
        assert np.allclose(own[fold], others[fold][rows], atol=1e-5)
    own_baselines, other_baselines = alone.baselines(IRIS), tested.baselines(IRIS)
    for name in ("linear", "retrieval", "zero_shot"):
        for fold, rows in enumerate(alone.rows):
            assert np.allclose(own_baselines[name][fold], other_baselines[name][fold][rows], atol=1e-4)


def test_members_train_exactly_their_epochs_from_weights_of_their_own(tmp_path):
    judge = truth.Judge(grounds(tmp_path)[0], 5)
    first = judge.train(member())
    assert all(map(np.array_equal, first, judge.train(member())))
    for other in (member(number=1), member(epochs=2)):
        assert not np.allclose(first[0], judge.train(other)[0])


def test_an_ensemble_is_the_mean_of_its_members_logits(tmp_path):
    ground = grounds(tmp_path)[1]
    ensembles = {"both": (member(0), member(1)), "one": (member(0),)}
    worths = truth.true_worth(ground, ensembles, splits=2, seed=0)
    assert set(worths) == {"both", "one", "linear", "retrieval", "zero_shot", "chance"}
    assert worths["one"].value == pytest.approx(np.mean(worths["one"].splits))
    assert worths["one"].test is not None
    judge = truth.Judge(ground, truth.stable_seed(0, "worth", 0))
    mean = truth.mean_logits([judge.train(member(0)), judge.train(member(1))])
    assert worths["both"].splits[0] == judge.score(mean)[0]


def test_the_scripts_best_epoch_is_the_mean_over_its_folds():
    steps = {0: 0.1, 1: 0.3, 2: 0.2, 10: 0.5, 11: 0.4, 12: 0.6, 13: 0.7, 14: 0.1}
    trial = create_trial(state=TrialState.COMPLETE, value=0.5, intermediate_values=steps)
    assert script.best_epoch(trial, replace(TRAINING, epochs=10), 2) == 3  # 2 and 4


# ---- best.json and the summary --------------------------------------------------------------------------------------

BEST = {"claim": "Nothing can be claimed yet.", "trial": 8, "value": 0.5, "cv": {"floors": {"linear": 0.45}}}
ENSEMBLE = {
    "members": [{"trial": 8, "picks": 2}, {"trial": 3, "picks": 1}], "over_baseline": {"interval": [0.01, 0.05]},
    "corrected": {"value": 0.52, "interval": [0.48, 0.55]},
}  # fmt: skip
CONFIRMED = {
    "winner": "ensemble",
    "scores": {
        "ensemble": {"mean": 0.51, "interval": [0.49, 0.53]},
        "3": {"mean": 0.5, "interval": [0.4, 0.6]},
        "retrieval": {"mean": 0.52, "interval": [0.4, 0.6]},
    },
    "over_baseline": {"interval": [-0.01, 0.02]},
}


def test_the_most_honest_number_of_best_json_is_read():
    plain = worth.read_best(BEST | {"confirmed": None})
    assert (plain.winner, plain.members, plain.value, plain.interval) == ("single", (8,), 0.5, None)
    averaged = worth.read_best(BEST | {"ensemble": ENSEMBLE, "winner": "ensemble"})
    assert (averaged.winner, averaged.members, averaged.value) == ("ensemble", (8, 8, 3), 0.52)
    baseline = worth.read_best(BEST | {"ensemble": ENSEMBLE, "winner": "linear"})
    assert (baseline.winner, baseline.value) == ("linear", 0.45)
    confirmed = worth.read_best(BEST | {"ensemble": ENSEMBLE, "confirmed": CONFIRMED})
    assert (confirmed.winner, confirmed.value, confirmed.interval) == ("ensemble", 0.51, (0.49, 0.53))
    trial = worth.read_best(BEST | {"ensemble": ENSEMBLE, "confirmed": CONFIRMED | {"winner": "3"}})
    assert (trial.winner, trial.single, trial.value) == ("single", 3, 0.5)
    assert worth.read_best(BEST | {"confirmed": CONFIRMED | {"winner": None}}).winner == "single"


@pytest.mark.parametrize(
    ("claim", "beats"),
    [("The ensemble beats every baseline: ...", True), ("Not clearly better than every baseline: ...", False)],
)
def test_whether_the_baselines_are_beaten_is_what_the_claim_says(claim, beats):
    assert worth.read_best(BEST | {"claim": claim}).beats_baselines is beats


def line(repeat, exported, reported, interval, **others):
    true = {"exported": exported, "linear": 0.4, "retrieval": 0.5, "default": 0.45, "script": 0.47} | others
    return {
        "corpus": "films", "repeat": repeat, "permuted": False, "seconds": 60.0, "winner": "ensemble",
        "reported": reported, "interval": interval, "true": true, "test": dict.fromkeys(true, 0.3),
        "beats_baselines": True,
    }  # fmt: skip


def test_the_summary_is_arithmetic_on_the_lines():
    lines = [
        line(0, 0.50, 0.52, [0.45, 0.55], linear=0.51),
        line(1, 0.54, 0.60, [0.55, 0.65], retrieval=0.46),
        {"corpus": "films", "repeat": 0, "permuted": True, "beats_baselines": False, "reported": 0.2, "seconds": 9.0},
    ]
    figures = {key.removeprefix("worth.films."): value for key, value in worth.summarise(lines).items()}
    expected = {
        "exported": 0.52, "exported_se": 0.02, "reported": 0.56, "optimism": 0.04, "optimism_se": 0.02,
        "coverage": 0.5, "linear": 0.455, "retrieval": 0.48, "baseline": 0.48, "over_baseline": 0.04,
        "beats_linear": 0.5, "beats_retrieval": 0.5, "beats_default": 1.0, "beats_script": 1.0, "test": 0.3,
        "nothing": 1.0, "repeats": 2.0,
    }  # fmt: skip
    assert {key: figures[key] for key in expected} == pytest.approx(expected)
    assert "coverage_se" not in figures
    row = worth.table(worth.summarise(lines))[-1]
    assert "| films | 0.520 ± 0.020 | 0.560 ± 0.040 |" in row


def test_a_summary_of_permuted_lines_alone():
    lines = [{"corpus": "editorials", "permuted": True, "beats_baselines": beats} for beats in (False, False, True)]
    assert worth.summarise(lines) == {"worth.editorials.nothing": pytest.approx(2 / 3)}


def test_a_line_that_was_cut_off_counts_as_missing(tmp_path, capsys):
    file = tmp_path / "worth.jsonl"
    searched = {"corpus": "films", "repeat": 0, "permuted": False, "seconds": 9.0}
    judged = line(1, 0.5, 0.5, None)
    texts = [json.dumps(item) for item in (searched, judged | {"seconds": 1.0}, judged)]
    file.write_text("\n".join(texts) + '\n{"repeat": 2, "tr')
    lines = worth.read_lines([file, tmp_path / "missing.jsonl"])
    assert lines == [searched, judged]  # the last line of a repeat counts
    assert "was cut off" in capsys.readouterr().err
    assert worth.summarise(lines)["worth.films.repeats"] == 1  # only what has been judged


def test_what_was_searched_is_judged_later():
    found = member(number=3, epochs=5)
    assert worth._from_json(json.loads(json.dumps(worth._as_json(found)))) == found
