"""Training by hand: steps, epochs, schedules, early stopping and checkpoints of the `Trainer`."""

import io
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import training_by_hand
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset
from training_by_hand import network, rows

from sparse_evidence.core import metrics
from sparse_evidence.core.classic import BCELoss, FocalLoss, Trainer, create_loss_function, linear_warmup
from sparse_evidence.core.errors import CheckpointError, ConfigError, NonFiniteLossError, OutOfMemoryError
from sparse_evidence.core.training.batches import Batch, as_batch, logits_of

INPUTS, LABELS = rows()


def batches(size, count=44, *, labels=LABELS):
    ends = [(at, min(at + size, count)) for at in range(0, count, size)]
    return [(INPUTS[start:end], labels[start:end]) for start, end in ends]


def trainer(model=None, *, lr=0.1, loss_fn=None, optimizer=torch.optim.SGD, **options):
    model = model or network(dropout=0.0)
    return Trainer(model, optimizer(model.parameters(), lr=lr), loss_fn or BCELoss(), **{"progress": False, **options})


def parameters(trained):
    return torch.cat([value.detach().flatten() for value in trained.model.parameters()])


def assert_close(left, right, atol):
    torch.testing.assert_close(parameters(left), parameters(right), atol=atol, rtol=0)


# ---- learning, history ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bce", "weighted_bce", "focal", "asymmetric", "logit_adjusted"])
def test_sixteen_rows_are_memorized(name):
    one = batches(16, 16)
    loss = create_loss_function(name, LABELS[:16])
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 1))
    trained = trainer(model, loss_fn=loss, optimizer=torch.optim.AdamW, lr=0.03)
    history = trained.train(one, one, num_epochs=60, metric_fn=metrics.f1_from_logits)
    assert history["train_loss"][-1] < 0.2 * history["train_loss"][0]
    assert history["f1"][-1] == 1.0


def test_history_has_one_value_per_epoch():
    history = trainer().train(
        train_loader=batches(8),
        val_loader=batches(8),
        num_epochs=3,
        metric_fn=metrics.average_precision,
        metric_name="ap",
        higher_is_better=True,
    )
    assert {name: len(values) for name, values in history.items()} == dict.fromkeys(
        ("train_loss", "train_acc", "val_loss", "val_acc", "ap", "learning_rate"), 3
    )
    assert trainer().train(batches(8), num_epochs=1).keys() == {"train_loss", "train_acc", "learning_rate"}


def test_accuracies_are_the_share_of_labelled_items_with_the_right_sign():
    """With a learning rate of 0 and without dropout the model never changes, so both accuracies can be recomputed."""
    labels = LABELS.clone()
    labels[5:9] = -1
    frozen = trainer(lr=0.0)
    history = frozen.train(batches(8, labels=labels), batches(5, 20, labels=labels), num_epochs=2)
    positive = (frozen.predict(INPUTS).squeeze(1) >= 0).float()
    right = (positive == labels)[labels >= 0]
    assert 0 < right[:40].float().mean() < 1
    assert history["train_acc"] == [pytest.approx(right[:40].float().mean().item())] * 2
    assert history["val_acc"] == [pytest.approx(right[:16].float().mean().item())] * 2


@pytest.mark.parametrize("micro", [{}, {"gradient_accumulation_steps": 3}, {"use_amp": True, "amp_dtype": "float16"}])
def test_training_accuracy_reaches_one_on_memorized_rows(micro):
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 1))
    trained = trainer(model, optimizer=torch.optim.AdamW, lr=0.03, **micro)
    history = trained.train(batches(8, 16), batches(16, 16), num_epochs=80)
    assert history["train_acc"][-1] == history["val_acc"][-1] == 1.0
    assert history["train_acc"][0] < 1.0
    assert trained.evaluate(batches(4, 16)).accuracy == 1.0


def test_a_logit_of_zero_counts_as_positive():
    model = nn.Linear(6, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    labels = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert trainer(model).evaluate([(INPUTS[:4], labels)]).accuracy == 0.75


def test_accuracy_is_nan_where_it_is_not_defined():
    """Without labelled items, and with one logit per class."""
    unlabelled = [(INPUTS[:4], torch.full((4,), -1.0))]
    assert math.isnan(trainer().evaluate(unlabelled).accuracy)
    classes = torch.tensor([0, 2, 1, 2])
    classifier = trainer(nn.Linear(6, 3), loss_fn=nn.CrossEntropyLoss())
    history = classifier.train([(INPUTS[:4], classes)], [(INPUTS[:4], classes)], num_epochs=2)
    assert all(map(math.isnan, history["train_acc"] + history["val_acc"]))
    assert history["train_loss"][1] < history["train_loss"][0]


def test_an_accuracy_can_be_monitored():
    flipped = batches(44, labels=1 - LABELS)  # validation gets worse while training gets better
    patient = {"lr": 0.5, "early_stopping_patience": 3}
    falling = trainer(early_stopping_metric="val_acc", **patient)
    assert len(falling.train(batches(44), flipped, 20)["val_acc"]) < 20
    assert falling.history["val_acc"][falling.best_epoch - 1] == max(falling.history["val_acc"])


def test_train_equals_a_loop_over_train_epoch_or_advance():
    by_hand, trained, streamed = trainer(), trainer(), trainer()
    losses = [by_hand.train_epoch(batches(8)) for _ in range(3)]
    ends = [streamed.advance(batches(8)) for _ in range(3)]
    assert trained.train(batches(8), num_epochs=3)["train_loss"] == losses == [end.train_loss[0] for end in ends]
    assert_close(by_hand, trained, 0)
    assert_close(by_hand, streamed, 0)


# ---- accumulation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_accumulated_batches_equal_one_large_batch(optimizer):
    """44 rows: 4 × 8 and then 8 + 4, against 32 and then 12."""
    small = trainer(gradient_accumulation_steps=4, optimizer=optimizer, lr=0.01)
    large = trainer(optimizer=optimizer, lr=0.01)
    for _ in range(3):
        assert small.train_epoch(batches(8)) == pytest.approx(large.train_epoch(batches(32)), abs=1e-6)
        assert_close(small, large, 1e-6)


def test_accumulation_weights_labelled_items_not_batches():
    """A batch with a single label counts as one item, not as eight."""
    labels = LABELS.clone()
    labels[1:8] = labels[20:30] = -1
    small, large = trainer(gradient_accumulation_steps=4), trainer()
    loss = small.train_epoch(batches(8, labels=labels))
    assert loss == pytest.approx(large.train_epoch(batches(32, labels=labels)), abs=1e-6)
    assert_close(small, large, 1e-6)
    only = trainer()
    known = labels[:44] >= 0
    only.train_epoch([(INPUTS[:32][known[:32]], labels[:32][known[:32]]), (INPUTS[32:44], labels[32:44])])
    assert_close(large, only, 1e-6)


def test_last_short_window_is_a_step():
    trained = trainer(optimizer=torch.optim.AdamW, gradient_accumulation_steps=4)
    trained.train_epoch(batches(8))  # six batches
    assert {int(state["step"]) for state in trained.optimizer.state.values()} == {2}


def test_batches_without_labels_do_not_change_the_weights():
    trained = trainer()
    before = parameters(trained).clone()
    assert trained.train_epoch([(INPUTS[:4], torch.full((4,), -1.0))]) == 0.0
    torch.testing.assert_close(parameters(trained), before, rtol=0, atol=0)


# ---- batches of a loader ----------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1)
        nn.init.constant_(self.layer.weight, 0.1)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x, scale):
        return {"logits": self.layer(x * scale), "more": None}


@pytest.mark.parametrize(
    "make",
    [
        lambda x, s, y: {"x": x, "scale": s, "labels": y},
        lambda x, s, y: ({"x": x, "scale": s}, y),
        lambda x, s, y: (x, s, y),
        lambda x, s, y: [x, s, y],
        lambda x, s, y: Batch((x, s), y, torch.tensor(float(len(y)))),
        lambda x, s, y: Batch({"scale": s, "x": x}, y, torch.tensor(float(len(y)))),
    ],
)
def test_every_kind_of_batch_is_equivalent(make):
    scale = torch.full((44, 1), 2.0)
    trained, expected = trainer(TwoInputs()), trainer(nn.Sequential(TwoInputs().layer))
    trained.train_epoch([make(x, scale[: len(x)], y) for x, y in batches(8)])
    expected.train_epoch([(2 * x, y) for x, y in batches(8)])
    assert_close(trained, expected, 1e-6)


@pytest.mark.parametrize("item", [torch.ones(3), {"x": 1}, (torch.ones(2),), "text", None])
def test_invalid_batches_are_refused(item):
    with pytest.raises(TypeError, match=r"must yield a Batch, a dict with 'labels', or a pair \(inputs, labels\)"):
        as_batch(item, torch.device("cpu"))


def test_models_that_return_no_logits_are_refused():
    with pytest.raises(TypeError, match="LSTM returned a tuple, but must return a tensor of logits"):
        logits_of(nn.LSTM(2, 3), torch.ones(4, 2))


def test_inputs_that_are_no_tensors_reach_the_model_unchanged():
    batch = as_batch({"posts": ["a", "b"], "labels": [1, -1]}, torch.device("cpu"))
    assert batch.inputs == {"posts": ["a", "b"]}
    assert batch.weight == 1


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"logits are \(3, 2\), but targets are \(3,\)"):
        FocalLoss()(torch.ones(3, 2), torch.ones(3))


@pytest.mark.parametrize("loader", [[], iter([])])
def test_an_empty_loader_is_refused(loader):
    with pytest.raises(ValueError, match="no batches"):
        trainer().train_epoch(loader)
    with pytest.raises(ValueError, match="no batches"):
        trainer().evaluate(loader)


def test_an_exhausted_iterator_is_refused():
    with pytest.raises(ValueError, match="used up"):
        trainer().train(iter(batches(8)), num_epochs=2)


@pytest.mark.filterwarnings("default:.*fork.*:DeprecationWarning")
def test_worker_processes_change_nothing():
    data = TensorDataset(INPUTS, LABELS)
    alone, helped = trainer(), trainer()
    for trained, workers in ((alone, 0), (helped, 2)):
        trained.train(DataLoader(data, batch_size=8, shuffle=True, num_workers=workers), num_epochs=1)
    assert_close(alone, helped, 0)


# ---- clipping, penalty ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "moved"), [(1.0, 1.0), (0.25, 0.25), (0.0, None), (None, None), (1e9, None)])
def test_gradients_are_clipped_to_the_limit(limit, moved):
    """Plain SGD with rate 1 moves by the gradient itself."""
    trained = trainer(lr=1.0, loss_fn=lambda z, y: 1e4 * BCELoss()(z, y), max_grad_norm=limit)
    before = parameters(trained).clone()
    trained.train_epoch(batches(44))
    distance = (parameters(trained) - before).norm().item()
    assert distance == pytest.approx(moved, rel=1e-4) if moved else distance > 100


def test_clipping_is_on_by_default():
    trained = trainer(lr=1.0, loss_fn=lambda z, y: 1e4 * BCELoss()(z, y))
    before = parameters(trained).clone()
    trained.train_epoch(batches(44))
    assert (parameters(trained) - before).norm().item() == pytest.approx(1.0, rel=1e-4)


def test_clipping_applies_to_the_accumulated_gradient():
    """The norm of the accumulated gradient is limited, not each batch's."""
    small = trainer(lr=1.0, max_grad_norm=0.01, gradient_accumulation_steps=6)
    large = trainer(lr=1.0, max_grad_norm=0.01)
    small.train_epoch(batches(8))
    large.train_epoch(batches(44))
    assert_close(small, large, 1e-6)


class Penalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1)
        self.query = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.layer(x)

    def penalty(self):
        return 0.5 * self.query.square().sum()


def test_the_penalty_of_the_model_is_added_once_per_step():
    trained = trainer(Penalised(), lr=0.1, max_grad_norm=0, gradient_accumulation_steps=3)
    loss = trained.train_epoch(batches(8))  # two steps of several batches
    torch.testing.assert_close(trained.model.query.detach(), torch.full((3,), 0.9**2))
    assert loss < 1.0  # the reported loss is without it


def test_the_penalty_argument_replaces_the_penalty_of_the_model():
    model = Penalised()
    trained = trainer(model, max_grad_norm=0, penalty=model.query.sum)
    trained.train_epoch(batches(44))
    torch.testing.assert_close(model.query.detach(), torch.full((3,), 0.9))


# ---- half precision ---------------------------------------------------------------------------------------------


class Watched(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network(dropout=0.0)
        self.seen = set()

    def forward(self, x):
        logits = self.net(x)
        self.seen.add(logits.dtype)
        return logits


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_runs_the_model_in_half_and_the_loss_in_full_precision(dtype):
    losses_saw = set()

    def loss(z, y):
        losses_saw.add(z.dtype)
        return BCELoss()(z, y)

    half, full = trainer(Watched(), loss_fn=loss, use_amp=True, amp_dtype=dtype), trainer(Watched())
    ends = [half.train(batches(8), batches(8), num_epochs=3), full.train(batches(8), batches(8), num_epochs=3)]
    assert half.model.seen == {getattr(torch, dtype)}
    assert half.predict(INPUTS[:3]).dtype == torch.float32
    assert losses_saw == {torch.float32}
    assert full.model.seen == {torch.float32}
    assert ends[0]["val_loss"] == pytest.approx(ends[1]["val_loss"], abs=0.02)
    assert ends[0]["val_loss"] != ends[1]["val_loss"]
    assert_close(half, full, 0.03)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}


def test_float16_gradients_are_scaled_against_underflow():
    """A loss of 1e-9 is zero in float16, and so would be its gradients."""
    tiny = {"loss_fn": lambda z, y: 1e-9 * BCELoss()(z, y), "lr": 1e9, "max_grad_norm": 0}
    half, full = trainer(use_amp=True, amp_dtype="float16", **tiny), trainer(**tiny)
    start = parameters(trainer())
    for trained in (half, full):
        trained.train_epoch(batches(44))
    assert (parameters(half) - start).norm() > 0.1
    assert_close(half, full, 0.02)


def test_float16_gradients_are_unscaled_before_clipping():
    half = trainer(use_amp=True, amp_dtype="float16", lr=1.0, max_grad_norm=0.05)
    before = parameters(half).clone()
    half.train_epoch(batches(44))
    assert (parameters(half) - before).norm().item() == pytest.approx(0.05, rel=1e-3)


def test_a_step_that_overflows_is_skipped_by_the_schedule_too():
    """The scale is halved, the weights do not change, and the schedule does not advance."""
    model = network(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = linear_warmup(optimizer, 10)
    half = Trainer(
        model,
        optimizer,
        lambda z, y: 1e6 * BCELoss()(z, y),
        use_amp=True,
        amp_dtype="float16",
        scheduler=schedule,
        progress=False,
    )
    before = parameters(half).clone()
    half.train_epoch(batches(44))
    assert half.scaler.get_scale() == 2.0**15
    torch.testing.assert_close(parameters(half), before, rtol=0, atol=0)
    assert schedule.last_epoch == 0
    for _ in range(20):
        half.train_epoch(batches(44))
    assert 0 < schedule.last_epoch < 20
    assert not torch.equal(parameters(half), before)


def test_the_penalty_is_scaled_as_well():
    half = trainer(Penalised(), max_grad_norm=0, use_amp=True, amp_dtype="float16")
    half.train_epoch(batches(44))
    torch.testing.assert_close(half.model.query.detach(), torch.full((3,), 0.9))


# ---- schedules --------------------------------------------------------------------------------------------------


def rates(interval, schedule, epochs=3, **options):
    model = network(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trained = Trainer(
        model,
        optimizer,
        BCELoss(),
        scheduler=schedule(optimizer),
        scheduler_interval=interval,
        progress=False,
        **options,
    )
    return trained.train(batches(8), batches(8), num_epochs=epochs)["learning_rate"]


def test_schedules_advance_per_step_or_per_epoch():
    def halving(optimizer):
        return StepLR(optimizer, 1, 0.5)

    assert rates("epoch", halving) == [0.5, 0.25, 0.125]
    assert rates("step", halving) == [0.5**6, 0.5**12, 0.5**18]
    assert rates("step", halving, gradient_accumulation_steps=4) == [0.5**2, 0.5**4, 0.5**6]


def test_warm_up_counts_optimizer_steps():
    """Six batches, accumulated in pairs, are three steps per epoch; the warm-up of ten steps ends in the fourth."""
    warming = rates("step", lambda optimizer: linear_warmup(optimizer, 10), epochs=4, gradient_accumulation_steps=2)
    assert warming == pytest.approx([4 / 11, 7 / 11, 10 / 11, 1.0])


def test_warm_up_starts_low():
    optimizer = torch.optim.SGD(network().parameters(), lr=1.0)
    linear_warmup(optimizer, 4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


def test_a_plateau_schedule_follows_the_monitored_value():
    values = iter([0.1, 0.2, 0.15, 0.3, 0.2, 0.2])
    model = network(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0)
    trained = Trainer(model, optimizer, BCELoss(), scheduler=schedule, progress=False)
    history = trained.train(batches(8), batches(8), 6, metric_fn=lambda y, z: next(values))
    assert history["learning_rate"] == [1, 1, 1, 0.5, 0.5, 0.25]  # as each epoch was trained
    assert optimizer.param_groups[0]["lr"] == 0.125


# ---- stopping ---------------------------------------------------------------------------------------------------


def scripted(values, *, higher, patience, **options):
    """Train with a metric that takes these values, one per epoch; returns the epochs trained and the best one."""
    source = iter(values)
    trained = trainer(early_stopping_patience=patience, **options)
    history = trained.train(
        batches(44), batches(44), len(values), lambda y, z: next(source), "m", higher_is_better=higher
    )
    return len(history["m"]), trained.best_epoch


@pytest.mark.parametrize(
    ("values", "higher", "patience", "expected"),
    [
        ([1, 2, 3, 4, 5], True, 1, (5, 5)),
        ([1, 2, 3, 4, 5], False, 1, (2, 1)),
        ([5, 4, 3, 2, 1], False, 1, (5, 5)),
        ([5, 4, 3, 2, 1], True, 2, (3, 1)),
        ([1, 3, 2, 4, 3, 2, 1], True, 2, (6, 4)),
        ([3, 1, 2, 0, 1, 2, 3], False, 2, (6, 4)),
        ([1, 1, 1, 1], True, 2, (3, 1)),
        ([0.5, math.nan, math.nan, 1], True, 2, (3, 1)),
        ([1, 2, 1, 1, 1], True, None, (5, 2)),
    ],
)
def test_training_stops_when_the_metric_is_stale(values, higher, patience, expected):
    assert scripted(values, higher=higher, patience=patience) == expected


def test_a_monitored_loss_is_better_when_lower():
    """A rising loss is worse, even if the metric is better when higher."""
    climbing = {"lr": 0.5, "loss_fn": BCELoss()}
    flipped = batches(44, labels=1 - LABELS)  # validation gets worse from epoch to epoch
    for name in ("loss", "val_loss"):
        trained = trainer(early_stopping_patience=2, early_stopping_metric=name, **climbing)
        history = trained.train(batches(44), flipped, 20, metrics.f1_from_logits)
        assert len(history["val_loss"]) == 3
        assert trained.best_epoch == 1
        assert history["val_loss"] == sorted(history["val_loss"])
    patient = trainer(early_stopping_patience=2, early_stopping_metric="train_loss", **climbing)
    assert len(patient.train(batches(44), flipped, 20, metrics.f1_from_logits)["val_loss"]) == 20


def test_default_is_to_monitor_the_validation_loss():
    flipped = batches(44, labels=1 - LABELS)
    assert len(trainer(early_stopping_patience=2, lr=0.5).train(batches(44), flipped, 20)["val_loss"]) == 3
    assert len(trainer(early_stopping_patience=2, lr=0.5).train(batches(44), num_epochs=20)["train_loss"]) == 20


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"early_stopping_metric": "auc"}, {}, "metric is 'auc', but the measured values are train_loss, "),
        (
            {"early_stopping_metric": "val_loss"},
            {"val_loader": None, "metric_fn": None},
            "measured values are train_loss, train_acc$",
        ),
        ({}, {"val_loader": None}, "'f1' needs a val_loader"),
        ({}, {"metric_name": "val_loss"}, "a name other than that of a loss"),
        ({}, {"metric_name": "train_acc"}, "a name other than that of a loss, an accuracy"),
    ],
)
def test_monitoring_an_unmeasured_value_is_refused(options, arguments, message):
    defaults = {"val_loader": batches(8), "num_epochs": 1, "metric_fn": metrics.f1_from_logits}
    with pytest.raises(ConfigError, match=message):
        trainer(**options).train(batches(8), **{**defaults, **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_accumulation_steps": 0},
        {"amp_dtype": "float8"},
        {"scheduler_interval": "batch"},
        {"save": "last"},
        {"early_stopping_patience": 0},
    ],
)
def test_invalid_arguments_are_named(arguments):
    with pytest.raises(ConfigError, match=f"{next(iter(arguments))} is .*, but must be"):
        trainer(**arguments)


# ---- evaluation -------------------------------------------------------------------------------------------------


def test_evaluation_is_the_mean_over_labelled_items_without_dropout():
    labels = LABELS.clone()
    labels[3:9] = -1
    trained = trainer(network(dropout=0.5))
    trained.model.train()
    results = [trained.evaluate(batches(size, labels=labels), metrics.f1_from_logits) for size in (8, 44)]
    assert results[0].loss == pytest.approx(results[1].loss, abs=1e-6)
    np.testing.assert_allclose(results[0].logits, results[1].logits, atol=1e-6)
    np.testing.assert_array_equal(results[0].labels, labels[:44].numpy())
    with torch.no_grad():  # without dropout, one row at a time gives the same
        one_by_one = [trained.model.eval()(row).numpy() for row in INPUTS[:44]]
    np.testing.assert_allclose(results[0].logits, np.concatenate(one_by_one), atol=1e-6)
    expected = BCELoss()(torch.from_numpy(results[0].logits), labels[:44]).item()
    assert results[0].loss == pytest.approx(expected, abs=1e-6)
    assert results[0].metric == metrics.f1_from_logits(results[0].labels, results[0].logits)
    assert trained.evaluate(batches(8)).metric is None


def test_evaluation_does_not_affect_training():
    looking, blind = trainer(network()), trainer(network())
    for _ in range(3):
        looking.train_epoch(batches(8))
        looking.evaluate(batches(8))
        blind.train_epoch(batches(8))
    assert_close(looking, blind, 0)
    assert all(parameter.grad is not None for parameter in looking.model.parameters())


# ---- randomness -------------------------------------------------------------------------------------------------


def test_global_random_generators_are_restored():
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=8, shuffle=True)
    trainer(network()).train(loader, loader, num_epochs=2)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_order_and_dropout_follow_from_the_seed_alone():
    def run(seed, world):
        torch.manual_seed(world)
        loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=8, shuffle=True)
        trained = trainer(network(), seed=seed)
        trained.train(loader, num_epochs=2)
        return parameters(trained)

    assert torch.equal(run(0, 1), run(0, 2))
    assert not torch.equal(run(0, 1), run(1, 1))


def test_epochs_differ_in_order_and_dropout():
    seen = []

    class Order(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 1)

        def forward(self, x):
            seen.append((x[:, 0].tolist(), torch.rand(1).item()))
            return self.layer(x)

    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=52, shuffle=True, generator=torch.Generator())
    trainer(Order()).train(loader, num_epochs=2)
    assert seen[0][0] != seen[1][0]
    assert sorted(seen[0][0]) == sorted(seen[1][0])
    assert seen[0][1] != seen[1][1]


# ---- checkpoints and resuming -----------------------------------------------------------------------------------


def run_script(*arguments):
    script = Path(training_by_hand.__file__)
    subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        check=True,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )


def test_resuming_in_a_new_process_is_bit_identical(tmp_path):
    """The files are compared byte by byte: parameters, moments, schedule, scaler, history."""
    variants, last = ",".join(training_by_hand.VARIANTS), training_by_hand.EPOCHS
    training_by_hand.main(tmp_path, variants, [])
    run_script(tmp_path, variants, *range(1, last))
    for variant in training_by_hand.VARIANTS:
        folder = tmp_path / variant
        expected = (folder / f"epoch-{last:04d}.safetensors").read_bytes()
        for epoch in range(1, last):
            assert (folder / f"resumed-{epoch}.safetensors").read_bytes() == expected, (variant, epoch)
        assert (folder / "epoch-0004.safetensors").read_bytes() != expected


def test_only_the_best_epoch_is_kept(tmp_path):
    values = iter([1, 3, 2, 5, 4])
    trained = trainer(checkpoint_dir=tmp_path / "kept")
    states = []

    def metric(labels, logits):
        states.append(parameters(trained).clone())
        return next(values)

    trained.train(batches(8), batches(8), 5, metric)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["best.safetensors"]
    assert trained.best_checkpoint == tmp_path / "kept" / "best.safetensors"
    assert trained.best_epoch == 4
    assert not torch.equal(parameters(trained), states[3])  # as it was after the last epoch
    trained.load_checkpoint(trained.best_checkpoint)
    assert torch.equal(parameters(trained), states[3])
    assert trained.history["f1"] == [1, 3, 2, 5]


def test_the_best_of_all_saved_epochs_is_known(tmp_path):
    values = iter([3, 1, 2])
    trained = trainer(checkpoint_dir=tmp_path, save="every")
    trained.train(batches(8), batches(8), 3, lambda y, z: next(values), higher_is_better=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"epoch-000{n}.safetensors" for n in (1, 2, 3)]
    assert trained.best_checkpoint == tmp_path / "epoch-0002.safetensors"


def test_a_resumed_run_stops_at_the_same_epoch(tmp_path):
    values = [1, 5, 4, 3, 2, 1]
    whole = scripted(values, higher=True, patience=3, checkpoint_dir=tmp_path, save="every")
    assert whole == (5, 2)
    remaining = iter(values[3:])
    resumed = trainer(early_stopping_patience=3)
    resumed.load_checkpoint(tmp_path / "epoch-0003.safetensors")
    history = resumed.train(batches(44), batches(44), 6, lambda y, z: next(remaining), "m")
    assert history["m"] == values[:5]
    stopped = trainer(early_stopping_patience=3)
    stopped.load_checkpoint(tmp_path / "epoch-0005.safetensors")
    assert stopped.train(batches(44), batches(44), 6, metrics.f1_from_logits, "m")["m"] == values[:5]


def test_continuing_with_another_metric_is_refused(tmp_path):
    first = trainer()
    first.train(batches(8), batches(8), 1, metrics.f1_from_logits)
    first.save_checkpoint(tmp_path / "it")
    second = trainer()
    second.load_checkpoint(tmp_path / "it")
    with pytest.raises(
        ConfigError, match="has measured train_loss, train_acc, val_loss, val_acc, f1, learning_rate so far"
    ):
        second.train(batches(8), batches(8), 2)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    trainer().save_checkpoint(tmp_path / "it")
    with pytest.raises(CheckpointError, match="of another model, optimizer or schedule"):
        trainer(nn.Linear(6, 1)).load_checkpoint(tmp_path / "it")
    with pytest.raises(CheckpointError, match="cannot be read"):
        trainer().load_checkpoint(tmp_path / "absent")


def test_state_dict_is_a_snapshot():
    trained = trainer(optimizer=torch.optim.AdamW)
    trained.train(batches(8), num_epochs=1)
    state, before = trained.state_dict(), parameters(trained).clone()
    trained.train(batches(8), num_epochs=2)
    trained.load_state_dict(state)
    assert torch.equal(parameters(trained), before)
    assert len(trained.history["train_loss"]) == trained.epoch == 1


# ---- errors -----------------------------------------------------------------------------------------------------


def test_non_finite_losses_raise():
    with pytest.raises(NonFiniteLossError, match="learning rate"):
        trainer().train_epoch([(torch.full((4, 6), math.nan), LABELS[:4])])
    with pytest.raises(NonFiniteLossError):
        trainer().train(batches(8), [(torch.full((4, 6), math.inf), LABELS[:4])], 1)


class Greedy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x):
        return self.layer(x) + torch.empty(2**50)


@pytest.mark.parametrize("what", ["train_epoch", "evaluate", "predict"])
def test_out_of_memory_raises_a_named_error(what):
    """Allocating a petabyte fails."""
    greedy = trainer(Greedy())
    with pytest.raises(OutOfMemoryError, match="smaller batches") as refused:
        getattr(greedy, what)(INPUTS[:4] if what == "predict" else batches(8))
    assert isinstance(refused.value, MemoryError)


def test_other_errors_are_not_renamed():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trainer().train_epoch([(torch.ones(4, 5), LABELS[:4])])


def test_out_of_memory_on_the_device_raises_the_same_error():
    class OnDevice(Greedy):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore lines")

    with pytest.raises(OutOfMemoryError, match=r"\(CUDA out of memory. Tried to allocate 2.00 GiB\)$"):
        trainer(OnDevice()).train_epoch(batches(8))


# ---- transformers, progress -------------------------------------------------------------------------------------


def test_gradient_checkpointing_recomputes_activations():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
        hidden_dropout_prob=0.1,
    )
    batch = {"input_ids": torch.arange(24).reshape(4, 6), "labels": LABELS[:4]}
    results, calls = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
        trained = trainer(model, gradient_checkpointing=recompute)
        counted = []
        model.bert.encoder.layer[0].intermediate.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        results.append(trained.train_epoch([batch]))
        calls.append(len(counted))
        results.append(parameters(trained))
    assert calls == [1, 2]  # computed again for the gradient
    assert results[0] == results[2]
    torch.testing.assert_close(results[1], results[3], atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="Sequential does not support it"):
        trainer(gradient_checkpointing=True)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("progress", "stream", "shown"),
    [(None, Terminal, True), (None, io.StringIO, False), (True, io.StringIO, True), (False, Terminal, False)],
)
def test_progress_is_shown_on_a_terminal(monkeypatch, progress, stream, shown):
    screen = stream()
    monkeypatch.setattr(sys, "stderr", screen)
    trainer(progress=progress).train(batches(8), batches(8), 2, metrics.f1_from_logits)
    written = screen.getvalue()
    for part in ("training", "2/2", "epoch 2", "train_loss=", "val_loss=", "f1="):
        assert (part in written) is shown


def test_warm_up_schedule_is_a_lambda_schedule():
    optimizer = torch.optim.SGD(network().parameters(), lr=1.0)
    assert isinstance(linear_warmup(optimizer, 3), LambdaLR)
