"""A trainer that resumes with every kind of schedule and sampler, and what its checkpoints refuse."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, TensorDataset
from training_by_hand import network, rows

from sparse_evidence.core.classic import BCELoss, Trainer
from sparse_evidence.core.errors import CheckpointError

INPUTS, LABELS = rows()
DATA = TensorDataset(INPUTS, LABELS)
SCHEDULES = {
    "none": lambda optimizer: None,
    "step": lambda optimizer: StepLR(optimizer, 3, 0.5),
    "plateau": lambda optimizer: ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0.5),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def trainer(schedule="none", model=None, **options):
    model = model or network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return Trainer(model, optimizer, BCELoss(), scheduler=SCHEDULES[schedule](optimizer), progress=False, **options)


def loader():
    return DataLoader(DATA, batch_size=10, shuffle=True)


def parameters(trained):
    return nn.utils.parameters_to_vector(trained.model.parameters()).detach().clone()


# ---- schedules --------------------------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_run_in_two_parts_equals_an_undisturbed_one(schedule, interval, tmp_path):
    """Weights, history and learning rates; a plateau schedule remembers the best value before the interruption."""
    whole = trainer(schedule, scheduler_interval=interval)
    history = whole.train(loader(), loader(), 6)
    first = trainer(schedule, scheduler_interval=interval)
    first.train(loader(), loader(), 3)
    first.save_checkpoint(tmp_path / "half.safetensors")
    second = trainer(schedule, scheduler_interval=interval)
    second.load_checkpoint(tmp_path / "half.safetensors")
    assert second.epoch == 3
    assert second.train(loader(), loader(), 6) == history
    assert torch.equal(parameters(second), parameters(whole))
    assert (len(set(history["learning_rate"])) > 1) is (schedule != "none")


def test_a_checkpoint_of_another_schedule_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    trainer("none").save_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"a\.safetensors is of another model, optimizer or schedule"):
        trainer("step").load_checkpoint(path)


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    trainer().save_checkpoint(path)
    model = network()
    optimizer = torch.optim.SGD([{"params": [part]} for part in model.parameters()], lr=0.1)
    with pytest.raises(CheckpointError, match="another model, optimizer or schedule"):
        Trainer(model, optimizer, BCELoss(), progress=False).load_checkpoint(path)


# ---- the best checkpoint ----------------------------------------------------------------------------------------


def test_before_training_and_without_a_folder_there_is_no_best_checkpoint(tmp_path):
    fresh = trainer(checkpoint_dir=tmp_path)
    assert (fresh.best_epoch, fresh.best_checkpoint) == (0, None)
    keeps_none = trainer()
    keeps_none.train(loader(), num_epochs=1)
    assert (keeps_none.best_epoch, keeps_none.best_checkpoint) == (1, None)


def test_the_best_epoch_counts_the_epochs_before_train():
    """Epochs of `train_epoch` have no history; the numbers of the checkpoints count them."""
    trained = trainer()
    trained.train_epoch(loader())
    trained.train_epoch(loader())
    trained.train(loader(), num_epochs=3)
    assert (trained.epoch, trained.best_epoch) == (3, 3)


# ---- samplers ---------------------------------------------------------------------------------------------------


def orders(loader, epochs):
    """The first inputs in the order in which each epoch trains on them."""
    seen = []

    class Recording(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 1)

        def forward(self, x):
            seen.extend(x[:, 0].tolist())
            return self.layer(x)[:, 0]

    trained = trainer(model=Recording())
    per_epoch = []
    for _ in range(epochs):
        seen.clear()
        trained.train_epoch(loader)
        per_epoch.append(list(seen))
    return per_epoch


def samplers():
    return {
        "shuffle": DataLoader(DATA, batch_size=10, shuffle=True),
        "generator of the loader": DataLoader(DATA, batch_size=10, shuffle=True, generator=torch.Generator()),
        "generator of the sampler": DataLoader(DATA, 10, sampler=RandomSampler(DATA, generator=torch.Generator())),
        "epoch of the sampler": DataLoader(DATA, 10, sampler=DistributedSampler(DATA, num_replicas=1, rank=0)),
    }


@pytest.mark.parametrize("kind", samplers())
def test_the_order_of_any_sampler_follows_from_the_epoch(kind):
    """New in every epoch, complete, and the same in a second run with a new loader."""
    first, second = (orders(samplers()[kind], 3) for _ in range(2))
    assert first == second
    assert len({tuple(order) for order in first}) == 3
    assert all(sorted(order) == sorted(INPUTS[:, 0].tolist()) for order in first)
