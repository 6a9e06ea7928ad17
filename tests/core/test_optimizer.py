"""One matrix of weights, and the numbers of torch's own AdamW."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from sparse_evidence.core.training.optimizer import FoldAdamW

SHAPES = ((2, 3, 4), (2, 5), (2, 4, 1, 2))


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def loss(parameters, step):
    return sum(((parameter - step / 7) ** 4).sum() * (place + 1) for place, parameter in enumerate(parameters))


def train(parameters, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss(parameters, step).backward()
        optimizer.step()


def test_it_steps_as_torchs_adamw_does():
    ours, theirs = weights(), weights()
    settings = {"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.95)}
    train(ours, FoldAdamW(ours, **settings), range(30))
    train(theirs, torch.optim.AdamW(theirs, **settings), range(30))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-5)


def test_the_weights_become_one_matrix_and_keep_their_shapes_and_values():
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


def test_it_goes_on_from_a_state():
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


def test_a_schedule_sets_its_rate():
    parameters = weights()
    optimizer = FoldAdamW(parameters, 1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1e-3)
    train(parameters, optimizer, [0])
    schedule.step()
    before = [parameter.detach().clone() for parameter in parameters]
    train(parameters, optimizer, [1])
    assert all(torch.equal(*pair) for pair in zip(parameters, before, strict=True))


def test_torchs_compiler_is_not_imported():
    """It takes a second, of every worker."""
    code = (
        "import sys, torch; from sparse_evidence.core.training.optimizer import FoldAdamW;"
        "o = FoldAdamW([torch.nn.Parameter(torch.ones(1, 2))], 0.1); o.zero_grad(); o.step(); o.state_dict();"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
