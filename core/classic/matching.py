"""IRIS for training by hand: scores (post, criterion) pairs, with an index of the chunks that it retrieves from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import DEFAULT_ENCODER, ChunksConfig, IrisConfig
from ..corpus.data import Criterion
from ..corpus.redsm5 import DEPRESSION
from ..errors import ConfigError
from ..features.bags import ChunkBags
from ..features.chunks import Chunks, chunk
from ..features.embeddings import embed
from ..features.encoders import locate
from ..features.lengths import within
from ..features.retrieval import ChunkIndex
from ..models.iris import Iris


class IRISForCriterionMatching(nn.Module):
    """Scores whether posts meet criteria: IRIS as published (`core.models.iris.Iris` without direct inputs), one fold.

    Call `build_retriever` first, then the model with post and criterion numbers. A batch of the `Trainer` is therefore
    `{"posts": int64 [batch], "criteria": int64 [batch], "labels": float [batch]}`.

    Args:
        num_queries: learned queries per criterion.
        k_retrieved: chunks that a query retrieves from each post.
        embedding_dim: expected width of the encoder's embeddings; default: not checked.
        temperature: of the softmax over the retrieved chunks' cosine similarities.
        encoder_name: a sentence-transformers name or a local folder; frozen.
        criteria: names and texts, or only texts; the queries start at the texts' embeddings. Default: the ten criteria
            of ReDSM5.
        prior: share of positives that an untrained model predicts; one number, or one per criterion.
        hidden: width of the head.
        dropout: of the head.
        query_noise: length of the random vector that is added to a criterion's embedding to initialise a query.
        diversity_weight: weight of `penalty`, which `core.classic.Trainer` adds to the loss.
        seed: seed of the initial weights.

    Raises:
        ConfigError: `embedding_dim` is not the encoder's, or a number is out of range.
        EncoderError: the encoder is not found.
    """

    def __init__(
        self,
        num_queries: int = 4,
        k_retrieved: int = 4,
        embedding_dim: int | None = None,
        temperature: float = 0.2,
        encoder_name: str = DEFAULT_ENCODER,
        *,
        criteria: Sequence[Criterion | str] = DEPRESSION,
        prior: float | Sequence[float] = 0.5,
        hidden: int = 64,
        dropout: float = 0.1,
        query_noise: float = 0.5,
        diversity_weight: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_positive(num_queries=num_queries, k_retrieved=k_retrieved, temperature=temperature, hidden=hidden)
        config = IrisConfig(
            encoder=encoder_name,
            num_queries=num_queries,
            k_retrieved=k_retrieved,
            temperature=temperature,
            hidden=hidden,
            dropout=dropout,
            query_noise=query_noise,
            diversity_weight=diversity_weight,
            similarities=0,
            mean_embedding=False,
        )
        self.encoder = locate(encoder_name)
        texts = [criterion.text if isinstance(criterion, Criterion) else criterion for criterion in criteria]
        starts = torch.from_numpy(np.array(embed(texts, self.encoder).vectors))
        if embedding_dim not in {None, starts.shape[1]}:
            raise ConfigError(
                f"embedding_dim is {embedding_dim}, but the embeddings of {self.encoder.name} have {starts.shape[1]} "
                f"dimensions; give {starts.shape[1]}, or omit it"
            )
        self.iris = Iris(config, starts, _log_odds(prior, len(texts)), seed=seed, folds=[0])
        self.retriever: ChunkIndex | None = None
        self.chunks: Chunks | None = None

    def build_retriever(
        self, posts: Sequence[str], batch_size: int | None = None, *, use_gpu: bool = False
    ) -> ChunkIndex:
        """Cut all posts into sentences, embed them (with the cache of `core.features.embeddings`) and index them.

        The posts may include validation posts: a post is only ever compared with its own chunks, and the index holds no
        labels.

        Args:
            posts: texts; a post's number is its position in this list.
            batch_size: maximum number of texts per pass through the encoder; default: as many as its token budget
                holds.
            use_gpu: embed on the GPU, and keep the index there if the installed FAISS can.

        Returns:
            The index, which is also the attribute `retriever`.

        Raises:
            DataError: some posts have no text; the message names them.
            ConfigError: `use_gpu` is true, but there is no GPU.
        """
        if use_gpu and not torch.cuda.is_available():
            raise ConfigError("use_gpu is true, but torch finds no GPU; omit it, or pass torch.cuda.is_available()")
        self.chunks, _ = within(posts, chunk(posts, ChunksConfig()), self.encoder)
        device = "cuda" if use_gpu else "cpu"
        vectors = embed(self.chunks.texts, self.encoder, device=device, batch_size=batch_size).vectors
        self.retriever = ChunkIndex(vectors, self.chunks.offsets, use_gpu=use_gpu)
        return self.retriever

    def forward(self, posts: Tensor, criteria: Tensor | None = None) -> Tensor:
        """Logits `[batch]` of the pairs of `posts` and `criteria`, both int64 `[batch]`.

        Without `criteria`: logits `[batch, criteria]` of every criterion for each post.
        """
        distinct, inverse = torch.unique(posts, return_inverse=True)
        logits: Tensor = self.iris(self.bags.batch(distinct.cpu().numpy()[None]))[0]
        return logits[inverse] if criteria is None else logits[inverse, criteria]

    @property
    def queries(self) -> npt.NDArray[np.float32]:
        """The queries as unit vectors, float32 `[criteria, num_queries, dim]`."""
        return functional.normalize(self.iris.queries[0].detach(), dim=-1).cpu().numpy()

    def penalty(self) -> Tensor:
        """Diversity penalty, a scalar: `diversity_weight` · mean over criteria of ‖Q̂Q̂ᵀ − I‖²."""
        return self.iris.penalty()[0]

    @property
    def bags(self) -> ChunkBags:
        """The chunk embeddings of all posts, on the device of the model: the inputs of `iris`.

        Raises:
            ConfigError: `build_retriever` has not been called.
        """
        if self.retriever is None:
            raise ConfigError("there are no posts to retrieve from yet; call build_retriever(posts) first")
        return self.retriever.bags.chunks(self.iris.bias.device)


def _log_odds(prior: float | Sequence[float], criteria: int) -> Tensor:
    """The log-odds of a prior, float32 `[1, criteria]`; `criteria` is their number."""
    shares = [prior] * criteria if isinstance(prior, (int, float)) else list(prior)
    if len(shares) != criteria or not all(0 < share < 1 for share in shares):
        raise ConfigError(f"prior is {prior}; give a share above 0 and below 1, or one for each of {criteria} criteria")
    return torch.tensor([[math.log(share / (1 - share)) for share in shares]])


def _check_positive(**arguments: float) -> None:
    errors = [f"{name} is {value}" for name, value in arguments.items() if not value > 0]
    if errors:
        raise ConfigError(f"{', '.join(errors)}; give {'a number' if len(errors) == 1 else 'numbers'} above 0")
