"""Batches of IRIS by hand: posts in any order and as often as a loader yields them."""

import pytest
import torch

from sparse_evidence.core.classic import IRISForCriterionMatching

POSTS = ["The town weeps. It rained. A bus went by.", "The garden blooms.", "It was Monday. Shops closed early."]


@pytest.fixture(scope="module")
def model():
    model = IRISForCriterionMatching(2, 2, criteria=("It rains.", "It is a weekday."), hidden=8, prior=(0.1, 0.4))
    model.build_retriever(POSTS)
    with torch.no_grad():
        model.iris.head.normal_(generator=torch.Generator().manual_seed(0))
    return model.eval()


def test_each_row_is_the_row_of_its_post(model):
    table = model(torch.arange(3))
    posts = torch.tensor([2, 0, 2, 2, 1])
    torch.testing.assert_close(model(posts), table[posts])
    assert (table[0] - table[1]).abs().min() > 1e-4


def test_each_criterion_starts_at_its_own_prior(model):
    torch.testing.assert_close(torch.sigmoid(model.iris.bias[0]), torch.tensor([0.1, 0.4]))


def test_the_gradient_of_a_repeated_post_adds_up(model):
    gradients = []
    for posts in (torch.tensor([1, 1, 1]), torch.tensor([1])):
        model.zero_grad()
        model(posts).sum().backward()
        gradients.append(model.iris.head.grad.clone())
    torch.testing.assert_close(gradients[0], 3 * gradients[1])
