"""The engine: the order of a training step, and what belongs to the caller."""

import copy
import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from training_by_hand import network, rows

from sparse_evidence.core.classic import BCELoss, Trainer
from sparse_evidence.core.errors import NonFiniteLossError, OutOfMemoryError
from sparse_evidence.core.seeding import seeded
from sparse_evidence.core.training.batches import Batch, windows
from sparse_evidence.core.training.engine import Engine, translate_memory_errors
from sparse_evidence.core.training.optimizer import PlainUpdate

INPUTS, LABELS = rows()
CPU = torch.device("cpu")


def batches(size=8, count=44):
    return [
        (INPUTS[start : min(start + size, count)], LABELS[start : min(start + size, count)])
        for start in range(0, count, size)
    ]


def engine(model=None, *, lr=0.1, loss_fn=None, **options):
    model = model or network(dropout=0.0)
    return Engine(model, torch.optim.SGD(model.parameters(), lr=lr), loss_fn or BCELoss(), device=CPU, **options)


def weights(trained):
    return torch.cat([value.detach().flatten() for value in trained.model.parameters()])


# ---- a step -----------------------------------------------------------------------------------------------------


def test_an_epoch_equals_a_loop_written_by_hand():
    """Accumulation over three batches, a penalty, a schedule: forward, share, backward, step, schedule."""
    trained = engine(
        network(dropout=0.3),
        batches_per_step=3,
        seed=7,
    )
    trained.penalty = lambda: 0.1 * next(trained.model.parameters()).square().sum()
    trained.scheduler = StepLR(trained.optimizer, 1, 0.5)
    reference = network(dropout=0.3)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    schedule = StepLR(optimizer, 1, 0.5)

    total = 0.0
    with seeded(7, "epoch", 0):
        for window in ([0, 1, 2], [3, 4, 5]):
            items = sum(len(batches()[index][1]) for index in window)
            optimizer.zero_grad()
            for index in window:
                inputs, labels = batches()[index]
                loss = BCELoss()(reference(inputs).squeeze(-1), labels) * (torch.tensor(float(len(labels))) / items)
                total += loss.item() * items
                if index == window[-1]:
                    loss = loss + 0.1 * next(reference.parameters()).square().sum()
                loss.backward()
            optimizer.step()
            schedule.step()
    end = trained.advance(batches())
    assert end.epoch == trained.epoch == 1
    assert end.train_loss[0] == pytest.approx(total / 44, abs=1e-6)
    assert torch.equal(weights(trained), torch.cat([value.detach().flatten() for value in reference.parameters()]))
    assert trained.optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.025


class Recorder:
    """An update that logs its calls and passes them on; with `skips` it skips every step."""

    def __init__(self, optimizer, log, *, skips=False):
        self.plain, self.log, self.skips = PlainUpdate(optimizer), log, skips

    def backward(self, loss):
        self.log.append("backward")
        self.plain.backward(loss)

    def step(self):
        self.log.append("step")
        return False if self.skips else self.plain.step()


def recorded(*, skips=False, batches_per_step=2):
    log = []

    @contextmanager
    def autocast():
        log.append("enter")
        yield
        log.append("leave")

    def gather(inputs):
        log.append("gather")
        return inputs

    model = network(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, 1, 0.5)
    trained = Engine(
        model, optimizer, BCELoss(), device=CPU, batches_per_step=batches_per_step, scheduler=scheduler,
        gather=gather, autocast=autocast, update=Recorder(optimizer, log, skips=skips),
    )  # fmt: skip
    return trained, log


def test_inputs_are_gathered_for_one_batch_at_a_time():
    """In the autocast context, immediately before the model is called."""
    trained, log = recorded()
    trained.advance(batches(22))
    assert log == [*["enter", "gather", "leave", "backward"] * 2, "step"]


def test_the_schedule_follows_steps_that_were_taken():
    for skips, rate in ((False, 0.0125), (True, 0.1)):
        trained, log = recorded(skips=skips)
        before = weights(trained).clone()
        trained.advance(batches())
        assert log.count("step") == 3
        assert trained.optimizer.param_groups[0]["lr"] == rate
        assert torch.equal(weights(trained), before) is skips


def test_the_penalty_is_added_once_per_step_and_not_reported():
    calls = []

    def penalty():
        calls.append(1)
        return torch.tensor(100.0)

    assert engine(batches_per_step=3, penalty=penalty).advance(batches()).train_loss[0] < 1.0
    assert len(calls) == 2


def test_a_loss_may_be_a_vector_with_one_entry_per_fold():
    def loss(logits, targets):
        return torch.stack([BCELoss()(logits, targets), 2 * BCELoss()(logits, targets)])

    items = [Batch(inputs, labels, torch.full((2,), float(len(labels)))) for inputs, labels in batches()]
    first, second = engine(loss_fn=loss, batches_per_step=2).advance(items).train_loss
    assert second == pytest.approx(2 * first)


def test_the_hand_trainer_runs_the_same_engine():
    model = network()
    by_hand = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), BCELoss(), max_grad_norm=0, progress=False)
    plain = engine(network())
    for _ in range(2):
        assert by_hand.advance(batches()) == plain.advance(batches())
    assert torch.equal(weights(by_hand), weights(plain))


def test_windows_cut_batches_into_lists():
    assert list(windows(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(windows([], 3)) == []


# ---- errors -----------------------------------------------------------------------------------------------------


def test_an_epoch_without_batches_is_refused():
    with pytest.raises(ValueError, match="no batches"):
        engine().advance([])


def test_a_diverged_epoch_does_not_count():
    trained = engine()
    with pytest.raises(NonFiniteLossError, match="learning rate"):
        trained.advance([(torch.full((4, 6), math.inf), LABELS[:4])])
    assert trained.epoch == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory\nmore lines"), r"\(CUDA out of memory\)$"),
        (MemoryError("no memory"), r"\(no memory\)$"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "can't allocate memory"),
    ],
)
def test_every_memory_error_becomes_an_out_of_memory_error(error, message):
    with pytest.raises(OutOfMemoryError, match=message), translate_memory_errors():
        raise error


def test_other_errors_are_not_changed():
    error = RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError) as raised, translate_memory_errors():
        raise error
    assert raised.value is error


# ---- prediction, state ------------------------------------------------------------------------------------------


def test_predictions_have_neither_dropout_nor_gradients():
    trained = engine(network(dropout=0.9))
    trained.advance(batches())
    first, second = trained.predict(INPUTS), trained.predict(INPUTS)
    assert torch.equal(first, second)
    assert not first.requires_grad


def test_the_state_is_by_reference_and_resumes_bit_for_bit():
    whole, half = engine(network(), batches_per_step=2), engine(network(), batches_per_step=2)
    for _ in range(4):
        whole.advance(batches())
    for _ in range(2):
        half.advance(batches())
    assert half.state_dict()["model"]["0.weight"].data_ptr() == half.model[0].weight.data_ptr()
    resumed = engine(network(seed=5), batches_per_step=2)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    assert resumed.epoch == 2
    assert [resumed.advance(batches()).epoch for _ in range(2)] == [3, 4]
    assert torch.equal(weights(resumed), weights(whole))


def test_an_epoch_follows_from_the_seed_and_its_number():
    ends = {
        seed: engine(nn.Sequential(nn.Dropout(0.5), network(dropout=0.0)), seed=seed).advance(batches())
        for seed in (0, 1)
    }
    torch.manual_seed(123)
    again = engine(nn.Sequential(nn.Dropout(0.5), network(dropout=0.0)), seed=0).advance(batches())
    assert again == ends[0] != ends[1]
