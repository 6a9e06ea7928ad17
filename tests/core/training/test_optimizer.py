"""Optimizers: folds in one matrix of weights, clipping, and the results of torch's AdamW."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from sparse_evidence.core.config import IrisConfig, TrainingConfig
from sparse_evidence.core.models.base import Model
from sparse_evidence.core.models.iris import Iris
from sparse_evidence.core.training.optimizer import ClippedAdamW, FoldAdamW, linear_warmup, make_optimizer

SHAPES = ((2, 3, 4), (2, 5), (2, 4, 1, 2))


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def loss(parameters, step):
    return sum(((parameter - step / 7) ** 4).sum() * (position + 1) for position, parameter in enumerate(parameters))


def train(parameters, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss(parameters, step).backward()
        optimizer.step()


def test_fold_adamw_equals_torch_adamw():
    ours, theirs = weights(), weights()
    settings = {"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.95)}
    train(ours, FoldAdamW(ours, **settings), range(30))
    train(theirs, torch.optim.AdamW(theirs, **settings), range(30))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-5)


def test_weights_share_one_matrix_and_keep_shapes_and_values():
    parameters = weights()
    before = [parameter.detach().clone() for parameter in parameters]
    FoldAdamW(parameters, 0.1)
    for parameter, value in zip(parameters, before, strict=True):
        assert parameter.shape == value.shape
        assert torch.equal(parameter, value)
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1


def test_each_fold_is_clipped_by_its_own_norm():
    """After one step the first moment is a tenth of the gradient."""
    folds = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(3, 2, 2)), nn.Parameter(torch.zeros(3, 1))]
    optimizer = FoldAdamW(folds, 0.1, max_norm=1.0)
    folds[0].grad = torch.tensor([[3.0, 0, 0, 0], [0.1, 0, 0, 0], [0, 0, 0, 0]])
    folds[1].grad = torch.stack([torch.full((2, 2), 2.0), torch.full((2, 2), 0.1), torch.zeros(2, 2)])
    optimizer.step()  # the third has no gradient at all
    clipped = 10 * optimizer.state_dict()["first"]
    torch.testing.assert_close(clipped[0], torch.tensor([0.6, 0, 0, 0, 0.4, 0.4, 0.4, 0.4, 0]))  # norm 5 becomes 1
    torch.testing.assert_close(clipped[1], torch.tensor([0.1, 0, 0, 0, 0.1, 0.1, 0.1, 0.1, 0]))
    assert clipped[2].abs().max() == 0


def test_fold_adamw_continues_from_a_state():
    whole, half = weights(), weights()
    train(whole, FoldAdamW(whole, 0.05), range(10))
    first = FoldAdamW(half, 0.05)
    train(half, first, range(4))
    resumed = [nn.Parameter(parameter.detach().clone()) for parameter in half]
    second = FoldAdamW(resumed, 99.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(resumed, second, range(4, 10))
    for left, right in zip(whole, resumed, strict=True):
        assert torch.equal(left, right)
    with pytest.raises(ValueError, match=r"the optimizer's state is \(2, 25\), but the weights are \(2, 12\)"):
        FoldAdamW(weights()[:1], 0.1).load_state_dict(first.state_dict())


def test_a_schedule_sets_the_learning_rate():
    parameters = weights()
    optimizer = FoldAdamW(parameters, 1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1e-3)
    train(parameters, optimizer, [0])
    schedule.step()
    before = [parameter.detach().clone() for parameter in parameters]
    train(parameters, optimizer, [1])
    assert all(torch.equal(*pair) for pair in zip(parameters, before, strict=True))


def test_fold_adamw_does_not_import_the_compiler():
    """The import would cost every worker a second."""
    code = (
        "import sys, torch; from sparse_evidence.core.training.optimizer import FoldAdamW;"
        "o = FoldAdamW([torch.nn.Parameter(torch.ones(1, 2))], 0.1); o.zero_grad(); o.step(); o.state_dict();"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- a single model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e9], ids=["off", "clipped", "within the limit"])
def test_clipped_adamw_equals_clip_grad_norm_and_adamw_bit_for_bit(limit):
    ours, theirs = weights(), weights()
    groups = [[{"params": p[:1], "lr": 0.05}, {"params": p[1:], "lr": 0.01}] for p in (ours, theirs)]
    optimizer = ClippedAdamW(groups[0], weight_decay=0.1, max_norm=limit)
    reference = torch.optim.AdamW(groups[1], weight_decay=0.1)
    schedules = [linear_warmup(optimizer, 5), linear_warmup(reference, 5)]
    for step in range(20):
        train(ours, optimizer, [step])
        reference.zero_grad()
        loss(theirs, step).backward()
        if limit:
            nn.utils.clip_grad_norm_(theirs, limit)
        reference.step()
        for schedule in schedules:
            schedule.step()
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_clipped_adamw_has_the_state_of_adamw():
    """Checkpoints of either can be loaded by the other."""
    ours, theirs = weights(), weights()
    optimizer, reference = ClippedAdamW(ours, 0.05, max_norm=0.5), torch.optim.AdamW(theirs, 0.05)
    train(ours, optimizer, range(3))
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert reference.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(reference.state[theirs[1]]["exp_avg"], optimizer.state[ours[1]]["exp_avg"])


def test_clipping_limits_the_norm_of_all_gradients_together():
    """After one step the first moment is a tenth of the gradient."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    optimizer = ClippedAdamW(parameters, 0.1, max_norm=1.0)
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    optimizer.step()
    moments = torch.cat([10 * optimizer.state[parameter]["exp_avg"] for parameter in parameters])
    torch.testing.assert_close(moments, torch.tensor([0.6, 0.0, 0.8]))


# ---- the optimizer of a model -----------------------------------------------------------------------------------


class Single(Model):
    """A model of one fold whose head learns ten times faster than its body."""

    stacked_folds = False

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))

    @classmethod
    def build(cls, config, features, prior, *, seed, folds):
        return cls()

    def forward(self, batch):
        return batch @ self.body[:, None]

    def parameter_groups(self, learning_rate):
        return [{"params": [self.head], "lr": learning_rate}, {"params": [self.body], "lr": learning_rate / 10}]


TRAINING = TrainingConfig(learning_rate=0.02, weight_decay=0.3, clip_norm=0.7)


def test_stacked_folds_get_fold_adamw():
    model = Iris(IrisConfig(), torch.ones(2, 8), torch.zeros(3, 2), seed=0, folds=[0, 1, 2])
    optimizer = make_optimizer(model, TRAINING)
    assert isinstance(optimizer, FoldAdamW)
    settings = optimizer.state_dict()["settings"]
    assert (settings["lr"], settings["weight_decay"], settings["max_norm"]) == (0.02, 0.3, 0.7)
    assert optimizer.state_dict()["first"].shape == (3, sum(p[0].numel() for p in model.parameters()))


def test_a_single_model_gets_clipped_adamw_with_its_groups():
    optimizer = make_optimizer(Single(), TRAINING)
    assert isinstance(optimizer, ClippedAdamW)
    assert optimizer.max_norm == 0.7
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.002]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3]
