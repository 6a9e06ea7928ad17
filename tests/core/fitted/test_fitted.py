"""Fitted models on real text: they predict what their folds did, survive a move, and say which sentence decides."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sparse_evidence.core.config import (
    DEFAULT_ENCODER,
    BCEConfig,
    CandidateConfig,
    ChunksConfig,
    FocalConfig,
    InstanceConfig,
    IrisConfig,
    LinearConfig,
    RetrievalConfig,
    TrainingConfig,
)
from sparse_evidence.core.corpus.synthetic import SyntheticSource
from sparse_evidence.core.errors import NonFiniteLossError, UserError
from sparse_evidence.core.features.chunks import chunk, windows
from sparse_evidence.core.features.encoders import locate
from sparse_evidence.core.features.views import embed_corpus, select
from sparse_evidence.core.fitted import Recipe, fit, load_model, save_model
from sparse_evidence.core.fitted.fitting import Ground, calibrate
from sparse_evidence.core.metrics import sigmoid
from sparse_evidence.core.splits import kfold

CHUNKS = ChunksConfig()
TRAINING = TrainingConfig(epochs=30, batch_size=16, learning_rate=1e-2)


def recipe(model, weight=1.0, loss=None, **training):
    return Recipe(CandidateConfig(model, replace(TRAINING, **training), loss or BCEConfig()), 7, 5, weight, trial=3)


RECIPES = (
    recipe(RetrievalConfig(C=0.01), weight=3),
    recipe(InstanceConfig(hidden=16), loss=FocalConfig(), seeds=2),
    recipe(IrisConfig(hidden=8, num_queries=2)),
    recipe(RetrievalConfig(window=2)),
    recipe(LinearConfig()),
)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    corpus = SyntheticSource(posts=180, criteria=2, sentences_mean=5).load(tmp_path_factory.mktemp("data"))
    encoder, sentences = locate(DEFAULT_ENCODER), chunk(corpus.posts, CHUNKS)
    views = {window: embed_corpus(corpus, windows(corpus.posts, sentences, window), encoder)[0] for window in (1, 2)}
    include = np.arange(180) < 120  # the others are the hold-out
    names = [criterion.name for criterion in corpus.criteria]
    folds = kfold(corpus.groups, corpus.labels, 3, 0, criteria=names, include=include)
    return Ground(
        corpus,
        folds,
        CHUNKS,
        lambda model: views[model.window],
        {DEFAULT_ENCODER: encoder},
        "average_precision",
    )


@pytest.fixture(scope="module")
def fitted(ground):
    return fit(RECIPES, ground)


@pytest.fixture(scope="module")
def new_posts(ground):
    return [ground.corpus.posts[row] for row in range(120, 180)]


def test_the_folds_predict_their_validation_posts_as_they_did(ground, fitted):
    model = fitted.model
    expected = model.calibration.probabilities(fitted.logits)
    for fold in range(3):
        rows = ground.folds.validation(fold)[:10]
        posts = model.features([ground.corpus.posts[row] for row in rows])
        logits = sum(
            member.weight * member.logits(features)[fold]
            for member, features in zip(model.members, posts.features, strict=True)
        )
        assert np.allclose(model.calibration.probabilities(logits), expected[rows], atol=1e-4)


def test_the_weights_of_the_members_add_up_to_one(fitted):
    assert sum(member.weight for member in fitted.model.members) == pytest.approx(1)
    assert fitted.model.members[0].weight == pytest.approx(3 / 7)


def test_a_moved_folder_predicts_the_same_and_holds_no_post(fitted, new_posts, tmp_path, monkeypatch):
    save_model(fitted.model, tmp_path / "model", "# A card\n")
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(tmp_path / "model", tmp_path / "elsewhere" / "renamed")
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "no-cache"))
    loaded = load_model(moved)
    assert np.abs(loaded.probabilities(new_posts) - fitted.model.probabilities(new_posts)).max() < 1e-6
    assert loaded.threshold == fitted.model.threshold
    assert not (tmp_path / "no-cache").exists()
    assert sorted(path.name for path in moved.iterdir()) == ["README.md", "model.json", "weights.safetensors"]
    content = b"".join(path.read_bytes() for path in moved.iterdir())
    for post in new_posts:
        for sentence in chunk([post], CHUNKS).texts:
            assert sentence.encode() not in content


def test_the_same_recipes_give_the_same_files(ground, fitted, tmp_path):
    save_model(fitted.model, tmp_path / "first", "card")
    save_model(fit(RECIPES, ground).model, tmp_path / "second", "card")
    for name in ("model.json", "weights.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@contextmanager
def cores(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_members_that_train_side_by_side_are_those_that_train_one_after_the_other(ground, tmp_path):
    state = torch.get_rng_state()
    for count in (1, 3):
        with cores(count):
            save_model(fit(RECIPES, ground).model, tmp_path / str(count), "card")
            assert torch.get_num_threads() == count
    names = ("model.json", "weights.safetensors")
    one, three = ([(tmp_path / count / name).read_bytes() for name in names] for count in "13")
    assert one == three
    assert torch.equal(torch.get_rng_state(), state)


def test_a_member_that_diverges_ends_the_others(ground):
    """Which would otherwise train for hours."""
    diverging = recipe(IrisConfig(hidden=8, num_queries=2), learning_rate=1e30)
    endless = replace(recipe(InstanceConfig(hidden=16)), epochs=10**9)
    with cores(2), pytest.raises(NonFiniteLossError):
        fit([endless, diverging, endless], ground)


def test_predictions_are_a_row_per_post_and_criterion_with_the_sentence(fitted, new_posts):
    posts = pd.Series(new_posts[:3], index=["a", "b", "c"])
    frame = fitted.model.predict(posts)
    assert frame.columns.tolist() == ["post", "criterion", "probability", "decision", "evidence", "start", "end"]
    assert frame["post"].tolist() == ["a", "a", "b", "b", "c", "c"]
    for row in frame.itertuples():
        assert posts[row.post][row.start : row.end] == row.evidence
        assert row.decision == (row.probability >= fitted.model.threshold)
    assert np.allclose(
        frame["probability"].to_numpy().reshape(3, 2), fitted.model.probabilities(new_posts[:3]), atol=1e-6
    )


def test_a_contribution_is_what_the_post_loses_without_the_sentence(ground, new_posts):
    """Of a model that reads single sentences: the same as cutting the sentence from the text."""
    model = fit(RECIPES[:3], ground).model
    post = max(new_posts, key=len)
    (explanation,) = model.explain([post])

    def logit(text):
        posts = model.features([text])
        pairs = zip(model.members, posts.features, strict=True)
        return sum(member.weight * member.logits(features).mean(0)[0] for member, features in pairs)

    for (start, end), contribution in zip(explanation.spans, explanation.contribution, strict=True):
        assert np.allclose(logit(post) - logit(post[:start] + post[end:]), contribution, atol=1e-3)


def test_with_windows_a_sentence_takes_every_window_that_it_is_in(ground):
    model = fit([recipe(RetrievalConfig(window=2))], ground).model
    (explanation,) = model.explain(["One. Two. Three."])
    (member,), posts = model.members, model.features(["One. Two. Three."])
    first, second = (model.features([text]) for text in ("One. Two.", "Two. Three."))
    whole = member.logits(posts.features[0]).mean(0)[0]
    last = whole - member.logits(first.features[0]).mean(0)[0]
    middle = whole - member.models[0].empty_logits().mean(0)[0].numpy()  # both windows hold it
    expected = [whole - member.logits(second.features[0]).mean(0)[0], middle, last]
    assert np.allclose(explanation.contribution, expected, atol=1e-4)


def test_the_sentence_that_decides_is_the_planted_one(ground, fitted):
    corpus = ground.corpus
    planted = [item for item in corpus.evidence if item.post >= 120]
    explanations = fitted.model.explain([corpus.posts[item.post] for item in planted])
    hits = [
        start < item.end and item.start < end
        for item, explanation in zip(planted, explanations, strict=True)
        for start, end in [explanation.evidence(item.criterion)]
    ]
    chance = np.mean([1 / len(explanation.spans) for explanation in explanations])
    assert len(hits) >= 10
    assert np.mean(hits) > 0.3 + chance


def test_posts_without_text_get_the_prevalence_and_meet_nothing(ground, fitted):
    ground_positives = (ground.corpus.labels[:120] == 1).sum(0)
    frame = fitted.model.predict(["", "I slept badly again.", " \n "])
    empty = frame[frame["post"] != 1]
    assert empty["evidence"].isna().all()
    assert empty["start"].isna().all()
    prevalence = (ground_positives + 0.5) / 121
    assert np.allclose(empty["probability"].to_numpy().reshape(2, 2), prevalence)
    assert not empty["decision"].any()
    assert not fitted.model.decide(["", "\n"], np.ones((2, 2))).any()
    assert fitted.model.predict([]).empty


def test_predictions_do_not_depend_on_the_other_posts(fitted, new_posts):
    together = fitted.model.probabilities(new_posts)
    alone = np.concatenate([fitted.model.probabilities([post]) for post in new_posts])
    assert np.abs(together - alone).max() < 1e-5


def test_a_single_model_is_trained_on_every_search_post(ground, fitted):
    single = fit(RECIPES, ground, single=True)
    assert all(len(part.empty_logits()) == 1 for member in single.model.members[:1] for part in member.models)
    assert np.array_equal(single.logits, fitted.logits, equal_nan=True)  # calibrated by the folds
    linear = single.model.members[4].models[0]
    searched = ground.folds.assignment >= 0
    assert linear.bias.shape == (1, 2)
    labels = np.where(searched[:, None], ground.corpus.labels, 1 - ground.corpus.labels)
    changed = replace(ground, corpus=replace(ground.corpus, labels=labels))
    assert np.array_equal(fit(RECIPES[4:], changed, single=True).logits, fit(RECIPES[4:], ground).logits, True)


def test_calibrated_probabilities_have_the_prevalence_as_their_mean():
    generator = np.random.default_rng(0)
    true = generator.normal(-1, 2, (4000, 2))
    labels = (generator.random(true.shape) < sigmoid(true)).astype(np.int8)
    labels[:100, 0] = -1
    calibration = calibrate(labels, 3 * true + 1)
    assert np.allclose(calibration.slope, 1 / 3, rtol=0.1)
    assert np.allclose(calibration.probabilities(3 * true + 1).mean(0), sigmoid(true).mean(0), atol=0.02)


def test_a_criterion_that_logits_say_nothing_of_gets_its_prevalence():
    labels = np.array([[1], [0], [0], [0]], dtype=np.int8)
    calibration = calibrate(labels, np.array([[-1.0], [1.0], [2.0], [0.0]]))
    assert (calibration.slope > 0).all()
    assert np.allclose(calibration.probabilities(np.zeros((1, 1))), 0.3, atol=0.01)


def corrupt_weights(folder):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def change_threshold(folder):
    path = folder / "model.json"
    description = json.loads(path.read_text())
    description["threshold"] += 0.1
    path.write_text(json.dumps(description))


def write_nan(folder):
    path = folder / "model.json"
    path.write_text(path.read_text().replace('"threshold": ', '"threshold": NaN, "old": '))


def from_the_future(folder):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "weights.safetensors").unlink(), "is incomplete: weights.safetensors"),
        (lambda folder: (folder / "model.json").unlink(), "is no fitted model: model.json is missing"),
        (lambda folder: (folder / "model.json").write_text("[]"), "cannot be read as the description"),
        (corrupt_weights, "is damaged or was altered"),
        (change_threshold, "was altered after the model was fitted"),
        (write_nan, "cannot be read as the description"),
        (lambda folder: (folder / "model.json").write_text("[" * 100_000), "cannot be read as the description"),
        (from_the_future, "was written by a later version"),
    ],
)
def test_incomplete_and_altered_folders_are_refused(fitted, tmp_path, damage, sentence):
    save_model(fitted.model, tmp_path / "model", "card")
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=sentence):
        load_model(tmp_path / "model")


def test_only_a_fitted_model_is_replaced(fitted, tmp_path):
    folder = tmp_path / "model"
    save_model(fitted.model, folder, "first")
    save_model(fitted.model, folder, "second")
    assert (folder / "README.md").read_text() == "second"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "model.json").write_text("{}")
    with pytest.raises(UserError, match="holds something other than a fitted model, which would be lost"):
        save_model(fitted.model, tmp_path / "thesis", "card")
    (folder / "predictions.csv").write_text("words")
    with pytest.raises(UserError, match=r"holds 'predictions\.csv', which would be lost"):
        save_model(fitted.model, folder, "card")
    assert (folder / "predictions.csv").read_text() == "words"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        save_model(fitted.model, tmp_path / "file", "card")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model", "thesis"]


def test_posts_that_are_embedded_already_get_the_same_probabilities(ground, fitted):
    rows = np.array([170, 3, 121, 122])
    known = fitted.model.probabilities_of(lambda model: select(ground.features(model), rows))
    new = fitted.model.probabilities([ground.corpus.posts[row] for row in rows])
    np.testing.assert_allclose(known, new, atol=1e-6)


def test_a_link_is_followed_and_stays(fitted, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    for card in ("first", "second"):
        save_model(fitted.model, tmp_path / "model", card)
        assert (tmp_path / "model").is_symlink()
        assert (tmp_path / "disk" / "model" / "README.md").read_text() == card
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]


def test_an_encoder_in_a_folder_is_found_beside_the_model(ground, tmp_path, new_posts):
    """Its name is a path that starts at the study's folder, not at the model's."""
    shutil.copytree(ground.encoders[DEFAULT_ENCODER].folder, tmp_path / "study" / "encoder")
    encoder = locate("./encoder", tmp_path / "study")
    config = replace(LinearConfig(), encoder="./encoder")
    model = fit([recipe(config)], replace(ground, encoders={"./encoder": encoder})).model
    save_model(model, tmp_path / "study" / "models" / "first", "card")
    expected = model.probabilities(new_posts)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "study", tmp_path / "elsewhere" / "study")
    loaded = load_model(tmp_path / "elsewhere" / "study" / "models" / "first")
    assert np.abs(loaded.probabilities(new_posts) - expected).max() < 1e-6
    shutil.rmtree(tmp_path / "elsewhere" / "study" / "encoder")
    with pytest.raises(UserError, match="encoder"):
        load_model(tmp_path / "elsewhere" / "study" / "models" / "first")
