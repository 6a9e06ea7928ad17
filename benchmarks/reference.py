"""IRIS and its training loop, written in the most straightforward way: the reference for speed and for correctness.

Pairs (post, criterion) come from a DataLoader, every query gathers its top-k chunks, and folds are trained one after
another. It computes the same function as `core.models.iris`; nothing in it is optimised for speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from sparse_evidence.core.config import IrisConfig
from sparse_evidence.core.features.views import EmbeddedCorpus

Pair = tuple[Tensor, int, float]


class Pairs(Dataset[Pair]):
    """Every (post, criterion) pair of some posts: the post's chunk embeddings, the criterion's number, the label."""

    def __init__(self, corpus: EmbeddedCorpus, posts: Sequence[int]) -> None:
        self._corpus = corpus
        self._posts = list(posts)
        self._criteria: int = corpus.labels.shape[1]

    def __len__(self) -> int:
        return len(self._posts) * self._criteria

    def __getitem__(self, index: int) -> Pair:
        post, criterion = self._posts[index // self._criteria], index % self._criteria
        rows = self._corpus.embeddings[self._corpus.offsets[post] : self._corpus.offsets[post + 1]]
        return torch.from_numpy(np.asarray(rows)), criterion, float(self._corpus.labels[post, criterion])


def collate(pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pad to the longest: chunks [pairs, length, dim], mask [pairs, length], criterion [pairs], label [pairs]."""
    chunks, criteria, labels = zip(*pairs, strict=True)
    padded = nn.utils.rnn.pad_sequence(list(chunks), batch_first=True)
    lengths = torch.tensor([len(chunks_of_post) for chunks_of_post in chunks])
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return padded, mask, torch.tensor(criteria), torch.tensor(labels)


class PairIris(nn.Module):
    """The model of one fold, for batches of pairs."""

    def __init__(self, config: IrisConfig, criteria: Tensor, prior: Tensor) -> None:
        super().__init__()
        self.config = config
        count, dim = criteria.shape
        noise = config.query_noise / dim**0.5 * torch.randn(count, config.num_queries, dim)
        self.queries = nn.Parameter(functional.normalize(criteria, dim=-1)[:, None] + noise)
        self.value = nn.Linear(dim, config.hidden, bias=False)
        self.inner = nn.Linear(config.hidden, config.hidden)
        self.outer = nn.Linear(config.hidden, config.hidden, bias=False)
        self.norm = nn.LayerNorm(config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Parameter(torch.zeros(count, config.hidden))
        self.bias = nn.Parameter(prior.clone())

    def forward(self, chunks: Tensor, mask: Tensor, criterion: Tensor) -> Tensor:
        """Return the logits [pairs]."""
        queries = functional.normalize(self.queries[criterion], dim=-1)  # [pairs, queries, dim]
        similarity = torch.einsum("pqd,pld->pql", queries, chunks)
        similarity = similarity.masked_fill(~mask[:, None], float("-inf"))
        top = similarity.topk(min(self.config.k_retrieved, similarity.shape[-1]), dim=-1)
        index = top.indices[..., None].expand(-1, -1, -1, chunks.shape[-1])
        retrieved = chunks[:, None].expand(-1, queries.shape[1], -1, -1).gather(2, index)  # [pairs, queries, k, dim]
        weights = torch.softmax(top.values / self.config.temperature, dim=-1)
        values = self.value((weights[..., None] * retrieved).sum(2))  # [pairs, queries, hidden]
        values = values + self.outer(torch.relu(self.inner(values)))
        pooled = self.dropout(self.norm(values.mean(1)))
        logits: Tensor = (pooled * self.head[criterion]).sum(-1) + self.bias[criterion]
        return logits

    def penalty(self) -> Tensor:
        """Return the diversity penalty."""
        queries = functional.normalize(self.queries, dim=-1)
        overlap = queries @ queries.mT - torch.eye(self.config.num_queries)
        return self.config.diversity_weight * overlap.square().sum((-1, -2)).mean()


def train_epoch(
    model: PairIris,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Pair],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    accumulation_steps: int = 1,
) -> float:
    """Train one fold for one epoch; return the mean loss."""
    model.train()
    optimizer.zero_grad()
    total, count = 0.0, 0
    for step, (chunks, mask, criterion, label) in enumerate(loader, start=1):
        loss = loss_fn(model(chunks, mask, criterion), label)
        ((loss + model.penalty()) / accumulation_steps).backward()
        if step % accumulation_steps == 0 or step == len(loader):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        total += loss.item() * len(label)
        count += len(label)
    return total / count


@torch.no_grad()
def predict(model: PairIris, loader: DataLoader[Pair], criteria: int) -> Tensor:
    """Return logits [posts, criteria], in the loader's order."""
    model.eval()
    return torch.cat([model(chunks, mask, criterion) for chunks, mask, criterion, _ in loader]).view(-1, criteria)
