"""instance: scores and pooling against a loop, and a loss on marked sentences that never sees a validation post."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import assert_same_bits, candidate, planted, uneven, unit

from sparse_evidence.core.config import BCEConfig, InstanceConfig
from sparse_evidence.core.features.bags import Bag
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.models import build_model
from sparse_evidence.core.training.stack import FoldStack

CONFIG = InstanceConfig(hidden=6, sharpness=1.7)
TRAIN = np.arange(10, 50)


def noisy(config, corpus, folds=(0,), train=TRAIN):
    """A model with noise on all its weights, in evaluation mode, and its inputs."""
    model, inputs = build_model(config, corpus, [train] * len(folds), folds=folds, seed=0)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.add_(0.5 * torch.randn(weight.shape[1:], generator=torch.Generator().manual_seed(number)))
    return model.eval(), inputs


def marked(share=0.5, **settings):
    """A planted corpus; the chunk closest to the criterion is marked in a share of the posts that meet it."""
    corpus = planted(**settings)
    source = np.random.default_rng(0)
    evidence = np.zeros((len(corpus.embeddings), 3), dtype=bool)
    for post, criterion in np.argwhere(corpus.labels == 1):
        start, end = corpus.offsets[post], corpus.offsets[post + 1]
        closest = start + np.argmax(corpus.embeddings[start:end] @ corpus.criteria[criterion])
        evidence[closest, criterion] = source.random() < share
    return replace_evidence(corpus, evidence)


def replace_evidence(corpus, evidence):
    return EmbeddedCorpus(corpus.embeddings, corpus.offsets, corpus.criteria, corpus.labels, evidence)


def chunks_of(corpus, post):
    return slice(corpus.offsets[post], corpus.offsets[post + 1])


def slow_scores(model, config, corpus, post):
    """Scores of a post's chunks without the bias, `[chunks, criteria]`, in float64."""
    w = {name: value[0].numpy().astype(np.float64) for name, value in model.state_dict().items()}
    rows = np.concatenate([np.arange(corpus.offsets[p], corpus.offsets[p + 1]) for p in TRAIN])
    x = corpus.embeddings[chunks_of(corpus, post)].astype(np.float64)
    scores = np.maximum(x @ w["weight"] + w["weight_bias"], 0) @ w["head"] + 4 * x @ w["linear"]
    if config.similarities:
        cosines = corpus.embeddings.astype(np.float64) @ unit(corpus.criteria).T
        standard = (cosines - cosines[rows].mean(0)) / cosines[rows].std(0)
        scores += standard[chunks_of(corpus, post)] @ w["similarity_head"]
    return scores


# ---- scores and pooling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarities", [True, False])
def test_logits_equal_their_slow_reference(similarities):
    config, corpus = replace(CONFIG, similarities=similarities), planted()
    model, inputs = noisy(config, corpus)
    logits = model(inputs.batch(np.arange(20)[None])).detach()[0]
    for post in range(20):
        pooled = np.log(np.exp(1.7 * slow_scores(model, config, corpus, post)).mean(0)) / 1.7
        np.testing.assert_allclose(logits[post], pooled + model.bias.detach()[0].numpy(), atol=1e-4)


@pytest.mark.parametrize(("sharpness", "pooled"), [(1e-3, np.mean), (100.0, np.max)])
def test_the_sharpness_goes_from_the_mean_to_the_maximum(sharpness, pooled):
    config, corpus = replace(CONFIG, sharpness=sharpness), planted()
    model, inputs = noisy(config, corpus)
    with torch.no_grad():
        model.bias.zero_()
    logits = model(inputs.batch(np.arange(20)[None])).detach()[0]
    expected = [pooled(slow_scores(model, config, corpus, post), axis=0) for post in range(20)]
    np.testing.assert_allclose(logits, expected, atol=0.05)


def test_a_post_does_not_score_higher_for_repeating_itself():
    model, _ = noisy(CONFIG, planted())
    chunks = torch.from_numpy(planted().embeddings[:4])[None, None]
    once = model(Bag(chunks, torch.ones(1, 1, 4, dtype=torch.bool)))
    twice = model(Bag(chunks.repeat(1, 1, 2, 1), torch.ones(1, 1, 8, dtype=torch.bool)))
    torch.testing.assert_close(once, twice)


def test_attention_is_the_share_of_a_chunk_in_the_pooled_score():
    corpus = planted()
    model, inputs = noisy(CONFIG, corpus)
    attention = model.attention(inputs.batch(np.arange(20)[None])).detach()[0].numpy()
    for post in range(20):
        weights = np.exp(1.7 * slow_scores(model, CONFIG, corpus, post))
        length = len(weights)
        np.testing.assert_allclose(attention[post, :, :length], (weights / weights.sum(0)).T, atol=1e-4)
        assert (attention[post, :, length:] == 0).all()


def test_all_chunks_of_a_post_share_the_dropout():
    """So a fold's draws do not depend on how long the posts of other folds are."""
    model, inputs = noisy(replace(CONFIG, dropout=0.5), planted())
    short, long = inputs.batch(np.array([[3, 4]])), inputs.batch(np.array([[3, 4]]))
    padding = (0, 0, 0, 7)
    long = Bag(torch.nn.functional.pad(long.embeddings, padding), torch.nn.functional.pad(long.present, padding[2:]))
    model.train()
    draws = []
    for bag, epoch in ((short, 0), (long, 0), (short, 1)):
        model.reseed([(0, "dropout", 0, epoch)])
        draws.append(model(bag))
    torch.testing.assert_close(draws[0], draws[1])
    assert not torch.allclose(draws[0], draws[2])


# ---- marked sentences -------------------------------------------------------------------------------------------


def test_without_any_mark_an_evidence_weight_changes_nothing():
    nothing = replace_evidence(planted(), np.zeros((len(planted().embeddings), 3), dtype=bool))
    for corpus in (planted(), nothing):
        runs = [trained(corpus, uneven(corpus), evidence_weight=weight)[0] for weight in (0.0, 0.5)]
        assert_same_bits(*(dict(run.model.named_parameters()) for run in runs))


def test_a_fold_without_marks_has_no_such_loss():
    corpus = marked()
    (unmarked,) = np.nonzero(~np.logical_or.reduceat(corpus.evidence.any(1), corpus.offsets[:-1]))
    model, _ = build_model(replace(CONFIG, evidence_weight=0.5), corpus, [unmarked, TRAIN], folds=[0, 1], seed=0)
    assert model.evidence_scale[0] == 0 < model.evidence_scale[1]


def slow_evidence_loss(model, config, corpus, posts):
    """Mean cross-entropy over the chunks of the posts that meet a criterion and have marks for it."""
    bias, losses = model.bias.detach()[0].double().numpy(), []
    for post in posts:
        scores, marks = slow_scores(model, config, corpus, post) + bias, corpus.evidence[chunks_of(corpus, post)]
        for criterion in range(3):
            if corpus.labels[post, criterion] == 1 and marks[:, criterion].any():
                signed = np.where(marks[:, criterion], -scores[:, criterion], scores[:, criterion])
                losses.extend(np.logaddexp(0, signed))
    return np.mean(losses)


def test_the_evidence_loss_equals_its_formula():
    corpus = marked(unlabelled=0.2)
    corpus.evidence[corpus.offsets[20] : corpus.offsets[30]] = True  # also of pairs that are negative or unlabelled
    config = replace(CONFIG, evidence_weight=0.3, dropout=0.0)
    model, inputs = noisy(config, corpus)
    expected = slow_evidence_loss(model, config, corpus, TRAIN)
    model.train()
    assert model.auxiliary_loss(None) is None  # there was no batch
    weighted, labelled = 0.0, 0
    for part in np.array_split(TRAIN, 3):
        model(inputs.batch(part[None]))
        targets = torch.from_numpy(corpus.labels[part][None])
        weighted += model.auxiliary_loss(targets).item() * (targets >= 0).sum().item()
        labelled += (targets >= 0).sum().item()
    assert weighted / labelled == pytest.approx(0.3 * expected, rel=1e-4)
    model.eval()(inputs.batch(TRAIN[None]))
    assert model.auxiliary_loss(None) is None  # nothing but training adds to the loss


def test_padding_of_a_batch_has_no_evidence_loss():
    corpus = marked()
    model, inputs = noisy(replace(CONFIG, evidence_weight=0.3, dropout=0.0), corpus)
    model.train()
    posts = np.array([[*TRAIN, TRAIN[0], TRAIN[0]]])
    targets = torch.from_numpy(corpus.labels[posts])
    targets[:, -2:] = -1
    losses = []
    for count in (len(TRAIN), len(TRAIN) + 2):
        model(inputs.batch(posts[:, :count]))
        losses.append(model.auxiliary_loss(targets[:, :count]))
    torch.testing.assert_close(*losses)


def trained(corpus, folds, fold_ids=(1,), max_posts=None, **settings):
    config = candidate(replace(CONFIG, **{"evidence_weight": 2.0, **settings}), BCEConfig())
    stack = FoldStack(corpus, folds, fold_ids, config, seed=0, max_posts_per_pass=max_posts)
    ends = [stack.advance() for _ in range(3)]
    return stack, ends


def test_marks_of_validation_posts_change_nothing_and_those_of_training_posts_do():
    corpus = marked(share=1.0)
    folds = uneven(corpus)
    rows = {
        name: np.concatenate([np.arange(corpus.offsets[p], corpus.offsets[p + 1]) for p in posts])
        for name, posts in (
            ("unseen", [*folds.validation(1), *np.flatnonzero(folds.assignment < 0)]),
            ("training", folds.train(1)[:10]),
        )
    }
    changed = {}
    for name, part in rows.items():
        evidence = corpus.evidence.copy()
        evidence[part] = ~evidence[part]
        changed[name] = replace_evidence(corpus, evidence)
    plain, unseen, training = (trained(data, folds) for data in (corpus, changed["unseen"], changed["training"]))
    assert plain[1] == unseen[1] != training[1]
    assert_same_bits(plain[0].state_dict(), unseen[0].state_dict())
    assert not torch.equal(plain[0].model.head, training[0].model.head)
    for ours, theirs in zip(plain[0].validate()[0], unseen[0].validate()[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert plain[0].validate()[1] == unseen[0].validate()[1]


def test_without_a_weight_marks_change_nothing():
    corpus = marked()
    folds = uneven(corpus)
    runs = [trained(data, folds, evidence_weight=0.0)[0] for data in (corpus, planted())]
    assert_same_bits(runs[0].state_dict(), runs[1].state_dict())


def test_the_reported_loss_is_that_of_the_posts_alone():
    corpus = marked()
    folds = uneven(corpus)
    config = candidate(replace(CONFIG, evidence_weight=50.0), BCEConfig(), batch_size=1000, learning_rate=1e-12)
    heavy = FoldStack(corpus, folds, [1], config, seed=0).advance().train_loss[0]
    light = FoldStack(corpus, folds, [1], replace(config, model=CONFIG), seed=0).advance().train_loss[0]
    assert heavy == pytest.approx(light)


def test_small_passes_have_the_gradient_of_whole_steps():
    corpus = marked()
    folds = uneven(corpus)
    whole, cut = (trained(corpus, folds, (0, 1, 2), max_posts, dropout=0.0)[0] for max_posts in (None, 2))
    for left, right in zip(whole.validate()[0], cut.validate()[0], strict=True):
        np.testing.assert_allclose(left, right, atol=1e-3)


def test_marks_teach_which_sentence_counts():
    """On posts that were not trained on."""
    corpus = marked(share=1.0, posts=150)
    folds = uneven(corpus)
    losses = []
    for weight in (0.0, 3.0):
        stack, _ = trained(corpus, folds, (2,), evidence_weight=weight, similarities=False)
        losses.append(slow_evidence_loss(stack.model, stack.model.config, corpus, folds.validation(2)))
    assert losses[1] < 0.9 * losses[0]
