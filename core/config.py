"""The configuration of one candidate: every setting has a single value, no search ranges.

Frozen dataclasses only. Bounds are part of the annotations (`annotated_types`), so code that reads configurations from
files can check values and the ends of ranges against the same limits, and generate a JSON schema. The docstrings below
the fields are the user documentation of the settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

LARGEST = 1e38  # more does not fit into a 32-bit float
Positive = Annotated[float, Interval(gt=0, le=LARGEST)]
NonNegative = Annotated[float, Interval(ge=0, le=LARGEST)]
Share = Annotated[float, Interval(ge=0, lt=1)]
MOST = 2**31 - 1
Count = Annotated[int, Interval(ge=1, le=MOST)]

Window = Annotated[int, Interval(ge=1, le=3)]

DEFAULT_ENCODER = "all-MiniLM-L6-v2"


Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class ChunksConfig:
    """How a post is split into the chunks that are embedded."""

    max_words: Annotated[int, Interval(ge=4, le=512)] = 64
    """Sentences longer than this are cut after this many words."""
    precision: Precision = "float32"
    """Of the encoder's arithmetic. Vectors of bfloat16 differ by an angle of less than a degree, and are computed two
    to three times faster on a GPU or on a CPU with AMX or AVX512-BF16; on other CPUs it is slower."""


@dataclass(frozen=True)
class SplitConfig:
    """Which posts are used for training and validation, and which are held out."""

    folds: Annotated[int, Interval(ge=2, le=50)] = 5
    """Number of folds; all posts of a group are in the same fold."""
    stages: tuple[Count, ...] = ()
    """Number of folds trained together in each stage; must add up to `folds`. Default: two folds, then the rest."""
    holdout: Annotated[float, Interval(ge=0, le=0.5)] = 0.2
    """Share of the posts (in whole groups) held out until the final evaluation."""
    seed: int = 0
    """Seed for the hold-out and the folds."""
    merge_near_duplicates: bool = False
    """Groups whose posts have almost the same text become one group, so that no two folds share a text."""

    def stage_sizes(self) -> tuple[int, ...]:
        """Return the stages, with the default filled in: `(2, folds - 2)`, or `(1, 1)` for two folds."""
        return self.stages or ((2, self.folds - 2) if self.folds > 2 else (1, 1))


@dataclass(frozen=True)
class IrisConfig:
    """IRIS: learned queries retrieve the k nearest chunks of each post; the classifier uses only those."""

    name: Literal["iris"] = "iris"
    encoder: str = DEFAULT_ENCODER
    """A sentence-transformers name or a local folder; frozen."""
    window: Window = 1
    """Consecutive sentences embedded together as one chunk."""
    num_queries: Annotated[int, Interval(ge=1, le=64)] = 4
    """Learned queries per criterion."""
    k_retrieved: Annotated[int, Interval(ge=1, le=256)] = 4
    """Chunks that a query retrieves from each post. With 1 its attention cannot learn (top-k has no gradient)."""
    temperature: Positive = 0.2
    """Temperature of the softmax over the cosine similarities of the retrieved chunks."""
    hidden: Annotated[int, Interval(ge=2, le=1024)] = 64
    """Width of the head."""
    dropout: Share = 0.1
    query_noise: NonNegative = 0.5
    """Each query is initialised to the criterion's embedding plus a random vector of this length."""
    diversity_weight: NonNegative = 0.01
    """Weight of the penalty that keeps the queries of a criterion different from each other."""
    similarities: Annotated[int, Interval(ge=0, le=16)] = 3
    """How many of each query's highest similarities enter the logit directly, sorted, together with its mean similarity
    over the post. 0 = none, as published (with `mean_embedding = false`)."""
    similarity_weight: Positive = 4.0
    """What the standardised similarities are multiplied by: how fast their weights learn."""
    mean_embedding: bool = True
    """The mean embedding of the post, as a unit vector, enters the logit directly."""


@dataclass(frozen=True)
class AbmilConfig:
    """Gated attention over all chunks of a post (Ilse et al., ICML 2018): the control for IRIS, without retrieval."""

    name: Literal["abmil"] = "abmil"
    encoder: str = DEFAULT_ENCODER
    """A sentence-transformers name or a local folder; frozen."""
    window: Window = 1
    """Consecutive sentences embedded together as one chunk."""
    hidden: Annotated[int, Interval(ge=2, le=1024)] = 128
    """Width of the chunk features."""
    attention_hidden: Annotated[int, Interval(ge=2, le=1024)] = 32
    """Width of the gated layer that scores the chunks."""
    dropout: Share = 0.1


@dataclass(frozen=True)
class InstanceConfig:
    """A score for every chunk and criterion from a small network, pooled over the post by log-mean-exp."""

    name: Literal["instance"] = "instance"
    encoder: str = DEFAULT_ENCODER
    """A sentence-transformers name or a local folder; frozen."""
    window: Window = 1
    """Consecutive sentences embedded together as one chunk."""
    hidden: Annotated[int, Interval(ge=2, le=1024)] = 64
    """Width of the network."""
    dropout: Share = 0.1
    """All chunks of a post share one draw."""
    sharpness: Annotated[float, Interval(gt=0, le=100)] = 1.0
    """r of (1/r) log mean exp(r s): near 0 the mean of a post's scores, large their maximum."""
    similarities: bool = True
    """The cosines of a chunk with the texts of all criteria enter its score."""
    evidence_weight: Annotated[float, Interval(ge=0, le=100)] = 1.0
    """Weight of a loss on the scores of chunks, for training posts whose evidence is marked; without marks it changes
    nothing."""


@dataclass(frozen=True)
class TokenConfig:
    """Any Hugging Face encoder, fine-tuned on (criterion, post) pairs; folds train one after another."""

    name: Literal["token"] = "token"
    encoder: str = DEFAULT_ENCODER
    """A hub name or a local folder; all weights are trained unless the fields below say otherwise."""
    reads: Literal["pairs", "posts"] = "pairs"
    """Input of the encoder. `pairs`: each post once per criterion, together with the criterion's text. `posts`: each
    post once, with one output per criterion, which takes a fraction of the time."""
    strategy: Literal["head_tail", "windows"] = "windows"
    """How posts that are too long are handled: use only the beginning and the end, or all of it in windows."""
    max_length: Annotated[int, Interval(ge=16, le=32_768)] = 256
    """Maximum tokens per encoder input: criterion, post and special tokens."""
    stride: Count = 192
    """Tokens between the starts of consecutive windows; at most the window size, so that no token is skipped."""
    pooling: Literal["max", "mean", "logsumexp"] = "logsumexp"
    """How the logits of a post's windows are combined. `logsumexp` is log-mean-exp, between mean and maximum."""
    readout: Literal["mean", "first"] = "mean"
    """What represents a window: the mean of its token states, or the state of the first token ([CLS])."""
    learning_rate_factor: Positive = 0.01
    """The encoder's learning rate is `learning_rate` times this; the new head uses `learning_rate` itself."""
    head_epochs: Annotated[int, Interval(ge=0)] = 1
    """Epochs at the start in which only the new head is trained: gradients through an untrained head would damage the
    pretrained weights (Kumar et al., ICLR 2022)."""
    dropout: Share = 0.1
    """Dropout of the head; the encoder keeps its own."""
    freeze_layers: Annotated[int, Interval(ge=0, le=1000)] = 0
    """Above 0: freeze the input embeddings and this many of the lowest layers."""
    lora_rank: Annotated[int, Interval(ge=0, le=1024)] = 0
    """Above 0: train only low-rank updates of this rank (LoRA; needs the extra `lora`)."""
    micro_batch: Count = 4
    """Posts per forward pass; gradients are accumulated up to `batch_size`, which gives the same gradient."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` runs the encoder under autocast: two to three times faster on hardware that supports it. Weights
    stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, a third more time."""


@dataclass(frozen=True)
class LinearConfig:
    """Logistic regression on the mean chunk embedding of a post; solved, so `[training]` and `[loss]` do not apply."""

    name: Literal["linear"] = "linear"
    encoder: str = DEFAULT_ENCODER
    """A sentence-transformers name or a local folder; frozen."""
    window: Window = 1
    """Consecutive sentences embedded together as one chunk."""
    C: Positive = 3.0
    """Inverse strength of the L2 penalty, as in scikit-learn: larger fits the training posts more closely."""


@dataclass(frozen=True)
class RetrievalConfig:
    """Logistic regression on the mean embedding and the similarities of the nearest chunks; solved, as `linear` is."""

    name: Literal["retrieval"] = "retrieval"
    encoder: str = DEFAULT_ENCODER
    """A sentence-transformers name or a local folder; frozen."""
    window: Window = 1
    """Consecutive sentences embedded together as one chunk."""
    C: Positive = 0.001
    """Inverse strength of the L2 penalty, as in scikit-learn, on standardised inputs."""
    top_k: Annotated[int, Interval(ge=1, le=16)] = 3
    """How many of a post's highest similarities to each criterion are used; a post with fewer chunks repeats its
    lowest."""
    similarity_weight: NonNegative = 4.0
    """Standardised similarities are multiplied by this, the mean embedding is not; 0 leaves the similarities out."""
    pooling: Literal["each", "mean"] = "each"
    """`each`: every one of the `top_k` similarities is an input, the highest first. `mean`: their mean is one."""


@dataclass(frozen=True)
class BCEConfig:
    """Binary cross-entropy."""

    name: Literal["bce"] = "bce"


@dataclass(frozen=True)
class WeightedBCEConfig:
    """Binary cross-entropy with the positive term weighted."""

    name: Literal["weighted_bce"] = "weighted_bce"
    pos_weight: Annotated[float, Interval(gt=0, le=1000)] | None = None
    """Weight of the positive class. Default: negatives / positives in the fold's training part."""


@dataclass(frozen=True)
class FocalConfig:
    """Focal loss (Lin et al., ICCV 2017)."""

    name: Literal["focal"] = "focal"
    gamma: Annotated[float, Interval(ge=0, le=10)] = 2.0
    alpha: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """Weight of the positive class. Default: the share of negatives in the fold's training part."""


@dataclass(frozen=True)
class AsymmetricConfig:
    """Asymmetric loss (Ridnik et al., ICCV 2021): focuses positives and negatives separately, drops easy negatives."""

    name: Literal["asymmetric"] = "asymmetric"
    gamma_pos: Annotated[float, Interval(ge=0, le=10)] = 0.0
    """Focusing parameter of the positives."""
    gamma_neg: Annotated[float, Interval(ge=0, le=10)] = 4.0
    """Focusing parameter of the negatives; usually at least `gamma_pos`."""
    clip: Annotated[float, Interval(ge=0, le=0.5)] = 0.05
    """Negatives with a predicted probability up to this do not contribute to the loss."""


@dataclass(frozen=True)
class LogitAdjustedConfig:
    """Binary cross-entropy on logits shifted by each criterion's training log-odds (Menon et al., ICLR 2021)."""

    name: Literal["logit_adjusted"] = "logit_adjusted"
    tau: Annotated[float, Interval(ge=0, le=10)] = 1.0
    """How far the logits are shifted; 0 is plain binary cross-entropy."""


@dataclass(frozen=True)
class TrainingConfig:
    """How one candidate is trained, by AdamW; solved models (`linear`, `retrieval`) use none of it."""

    epochs: Annotated[int, Interval(ge=1, le=10_000)] = 40
    patience: Count = 6
    """A stage stops when the mean score of its folds has not improved for this many epochs."""
    batch_size: Count = 32
    """Posts per batch, each with all criteria."""
    accumulation_steps: Count = 1
    """Batches per optimizer step. A step uses `batch_size * accumulation_steps` posts of similar length, processed
    together where they fit into memory."""
    learning_rate: Positive = 3e-3
    weight_decay: NonNegative = 0.01
    clip_norm: NonNegative = 1.0
    """Maximum gradient norm per fold; 0 disables clipping."""
    warmup_steps: Annotated[int, Interval(ge=0, le=MOST)] = 0
    """Optimizer steps over which the learning rate rises linearly from zero."""
    seeds: Count = 1
    """Models per fold, which differ in their seed and train together; the prediction is the mean of their
    probabilities. Time and memory grow with their number."""


EmbeddingModelConfig = IrisConfig | AbmilConfig | InstanceConfig | LinearConfig | RetrievalConfig
"""Models on chunk embeddings of a frozen encoder; their folds train as one batched model."""
ModelConfig = EmbeddingModelConfig | TokenConfig
LossConfig = BCEConfig | WeightedBCEConfig | FocalConfig | AsymmetricConfig | LogitAdjustedConfig

MODELS: dict[str, type[ModelConfig]] = {
    "iris": IrisConfig,
    "abmil": AbmilConfig,
    "instance": InstanceConfig,
    "linear": LinearConfig,
    "retrieval": RetrievalConfig,
    "token": TokenConfig,
}
SOLVED = frozenset(("linear", "retrieval"))
"""By name, models that solve a convex problem. They have no epochs; `[training]` and `[[loss]]` do not apply."""
READ_TEXT = frozenset(("token",))
"""By name, models that read the texts of the posts (`TextCorpus`); the others read embeddings (`EmbeddedCorpus`)."""
LOSSES: dict[str, type[LossConfig]] = {
    "bce": BCEConfig,
    "weighted_bce": WeightedBCEConfig,
    "focal": FocalConfig,
    "asymmetric": AsymmetricConfig,
    "logit_adjusted": LogitAdjustedConfig,
}


def is_solved(config: ModelConfig) -> bool:
    """True if this model is solved rather than trained: `[training]`, `[loss]` and seeds do not apply to it."""
    return config.name in SOLVED


def reads_text(config: ModelConfig) -> bool:
    """True if this model trains on a `TextCorpus` rather than on an `EmbeddedCorpus`."""
    return config.name in READ_TEXT


@dataclass(frozen=True)
class CandidateConfig:
    """What one trial trains: a model, its training settings and a loss."""

    model: ModelConfig
    training: TrainingConfig
    loss: LossConfig
