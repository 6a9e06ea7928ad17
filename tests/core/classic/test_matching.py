"""IRIS by hand: the numbers of the stacked model, retrieval within a post, error messages."""

import numpy as np
import pytest
import torch

from sparse_evidence.core import explain
from sparse_evidence.core.classic import FocalLoss, IRISForCriterionMatching
from sparse_evidence.core.config import IrisConfig
from sparse_evidence.core.corpus.data import Criterion
from sparse_evidence.core.errors import ConfigError, DataError
from sparse_evidence.core.models.iris import Iris

POSTS = [
    "The minister lied to us. The weather was mild. A bus went by. Nobody knew. It was Monday.",
    "Two children were killed. The town weeps. A bus went by. Shops closed early. It rained. It was Monday.",
    "A bus went by.",
    "The garden blooms. We were happy. The weather was mild. The bus was late. It was Monday.",
]
CRITERIA = ("Somebody was killed.", Criterion("weather", "It is about the weather."), "Something is beautiful.")


@pytest.fixture(scope="module")
def model():
    model = IRISForCriterionMatching(2, 2, 384, 0.2, criteria=CRITERIA, prior=[0.1, 0.2, 0.3], hidden=16, dropout=0.5)
    model.build_retriever(POSTS)
    with torch.no_grad():
        model.iris.head.normal_(generator=torch.Generator().manual_seed(0))
    return model.eval()


def test_logits_of_pairs_are_entries_of_the_full_table(model):
    table = model(torch.arange(4))
    assert table.shape == (4, 3)
    posts, criteria = torch.tensor([3, 0, 3, 1]), torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(model(posts, criteria), table[posts, criteria])


def test_logits_equal_those_of_a_stacked_model_with_one_fold(model):
    published = {"similarities": 0, "mean_embedding": False}
    config = IrisConfig(num_queries=2, k_retrieved=2, hidden=16, temperature=0.2, **published)
    starts = torch.from_numpy(model.queries)  # noise has moved them, but any queries will do
    assert starts.shape == (3, 2, 384)
    other = Iris(config, torch.ones(3, 384), torch.zeros(1, 3), seed=0, folds=[0]).eval()
    other.load_state_dict(model.iris.state_dict())
    torch.testing.assert_close(other(model.bags.batch(np.arange(4)[None]))[0], model(torch.arange(4)))


def test_an_untrained_model_predicts_the_prior():
    fresh = IRISForCriterionMatching(criteria=CRITERIA, prior=[0.1, 0.2, 0.3]).eval()
    fresh.build_retriever(POSTS)
    torch.testing.assert_close(torch.sigmoid(fresh(torch.arange(4)))[2], torch.tensor([0.1, 0.2, 0.3]))


def test_the_index_finds_the_chunks_that_the_model_attends_to(model):
    weights, _ = model.iris.attend(model.bags.batch(np.arange(4)[None]))  # [1, posts, criteria * queries, length]
    hits = model.retriever.within(model.queries.reshape(-1, 384), np.arange(4), 2)
    for post in range(4):
        for query in range(6):
            attended = np.flatnonzero(weights[0, post, query].detach() > 0) + model.retriever.offsets[post]
            assert set(attended) == set(hits.chunks[post, query][hits.present[post, query]])
    killed = model.retriever.search(model.queries[0, :1], 1).chunks[0, 0]
    assert model.chunks.texts[killed] == "Two children were killed."


def test_logits_depend_on_the_post_and_not_on_other_posts(model):
    before = model(torch.tensor([1]))
    assert (model(torch.tensor([0])) - before).abs().max() > 1e-3
    model.build_retriever([POSTS[1], "Something else entirely. And more of it."])
    torch.testing.assert_close(model(torch.tensor([0])), before)
    model.build_retriever(POSTS)


def test_every_parameter_learns_and_the_penalty_shrinks():
    model = IRISForCriterionMatching(2, 2, criteria=CRITERIA, diversity_weight=0.5, query_noise=0.1)
    model.build_retriever(POSTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    posts, criteria = torch.arange(4).repeat_interleave(3), torch.arange(3).repeat(4)
    labels = torch.tensor([0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1.0])
    start = {name: value.clone() for name, value in model.named_parameters()}
    torch.manual_seed(0)
    penalties, losses = [], []
    for _ in range(30):
        loss = FocalLoss(gamma=0.0)(model(posts, criteria), labels)
        penalties.append(model.penalty().item())
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss + model.penalty()).backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert penalties[-1] < 0.5 * penalties[0]
    assert all(not torch.equal(value, start[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding_dim": 768}, "embedding_dim is 768, but the embeddings of all-MiniLM-L6-v2 have 384 dimensions"),
        ({"num_queries": 0, "temperature": -1.0}, "num_queries is 0, temperature is -1.0; give numbers above 0"),
        ({"prior": 1.0}, "prior is 1.0; give a share above 0 and below 1"),
        ({"prior": [0.5, 0.5]}, "or one for each of 3 criteria"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        IRISForCriterionMatching(**{"criteria": CRITERIA, **arguments})


def test_the_index_suffices_for_an_explanation(model):
    (reading,) = explain.attribute(model.iris, model.retriever, [np.array([1, 2])])
    np.testing.assert_allclose(reading.logits, model(torch.tensor([1, 2])).detach(), rtol=1e-4, atol=1e-5)
    assert reading.chunks[1].tolist() == [11, -1, -1, -1, -1, -1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported(model):
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        model.build_retriever(POSTS, use_gpu=True)


def test_a_missing_retriever_and_empty_posts_are_reported():
    model = IRISForCriterionMatching(criteria=CRITERIA)
    with pytest.raises(ConfigError, match="call build_retriever"):
        model(torch.tensor([0]))
    with pytest.raises(DataError, match="post number 1 has no text"):
        model.build_retriever(["Fine.", "  "])
