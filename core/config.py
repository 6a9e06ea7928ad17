"""A resolved configuration: everything that trains one candidate, and no ranges left.

Frozen dataclasses only. The bounds stand in the annotations (`annotated_types`), so that whoever reads a
configuration from a file (`hpo.study.definition`) checks values and range ends against the very same limits, and an
editor's JSON schema is generated from them. Field comments are the documentation of the study file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

Positive = Annotated[float, Interval(gt=0)]
NonNegative = Annotated[float, Interval(ge=0)]
Share = Annotated[float, Interval(ge=0, lt=1)]
Count = Annotated[int, Interval(ge=1)]

DEFAULT_ENCODER = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class ChunksConfig:
    """How a post is cut into the pieces that are embedded."""

    max_words: Annotated[int, Interval(ge=4, le=512)] = 64
    """A sentence longer than this is cut at this many words."""


@dataclass(frozen=True)
class SplitConfig:
    """Which posts train, which validate, and which are locked away."""

    folds: Annotated[int, Interval(ge=2, le=50)] = 5
    """Number of folds; groups never straddle them."""
    stages: tuple[Count, ...] = ()
    """Folds trained in lock-step, stage after stage; they add up to `folds`. Left out: two, then the rest."""
    holdout: Annotated[float, Interval(ge=0, le=0.5)] = 0.2
    """Share of the posts (in whole groups) locked away until the final evaluation."""
    seed: int = 0
    """Seed of the hold-out and the folds."""

    def stage_sizes(self) -> tuple[int, ...]:
        """The stages with the default filled in: `(2, folds - 2)`, or `(1, 1)` for two folds."""
        return self.stages or ((2, self.folds - 2) if self.folds > 2 else (1, 1))


@dataclass(frozen=True)
class IrisConfig:
    """IRIS: learned queries retrieve the k nearest chunks of each post, and only those are read."""

    name: Literal["iris"] = "iris"
    encoder: str = DEFAULT_ENCODER
    """A sentence-transformers name or a local folder; frozen."""
    num_queries: Annotated[int, Interval(ge=1, le=64)] = 4
    """Learned queries per criterion."""
    k_retrieved: Annotated[int, Interval(ge=1, le=256)] = 4
    """Chunks that a query reads of each post. With 1 the queries cannot learn (top-k has no gradient)."""
    temperature: Positive = 0.2
    """Softmax temperature over the retrieved chunks' cosine similarities."""
    hidden: Annotated[int, Interval(ge=2, le=1024)] = 64
    """Width of the head."""
    dropout: Share = 0.1
    query_noise: NonNegative = 0.5
    """Queries start at the criterion's embedding plus a random vector of this length."""
    diversity_weight: NonNegative = 0.01
    """Weight of the penalty that keeps the queries of a criterion apart."""


@dataclass(frozen=True)
class AbmilConfig:
    """Gated attention over all chunks of a post (Ilse et al., ICML 2018): IRIS without retrieval, its control."""

    name: Literal["abmil"] = "abmil"
    encoder: str = DEFAULT_ENCODER
    """A sentence-transformers name or a local folder; frozen."""
    hidden: Annotated[int, Interval(ge=2, le=1024)] = 128
    """Width of the chunks' features."""
    attention_hidden: Annotated[int, Interval(ge=2, le=1024)] = 32
    """Width of the gated layer that scores a chunk."""
    dropout: Share = 0.1


@dataclass(frozen=True)
class TokenConfig:
    """Any Hugging Face encoder, fine-tuned on (criterion, post) pairs; its folds train one at a time."""

    name: Literal["token"] = "token"
    encoder: str = DEFAULT_ENCODER
    """A hub name or a local folder; all its weights are trained unless the fields below say otherwise."""
    reads: Literal["pairs", "posts"] = "pairs"
    """`pairs`: a post is read once for every criterion, beside the criterion's text. `posts`: it is read once, and
    every criterion has an output of its own, which costs a fraction of the time."""
    strategy: Literal["head_tail", "windows"] = "windows"
    """What is read of a post that is too long: its beginning and end, or all of it, window by window."""
    max_length: Annotated[int, Interval(ge=16, le=32_768)] = 256
    """Tokens that the encoder reads at once: criterion, post and its own marks."""
    stride: Count = 192
    """Tokens from the start of one window to the start of the next; at most a window, so that nothing is skipped."""
    pooling: Literal["max", "mean", "logsumexp"] = "logsumexp"
    """How the logits of a post's windows become one. `logsumexp` is log mean exp, between the mean and the maximum."""
    readout: Literal["mean", "first"] = "mean"
    """What stands for a window: the mean of its tokens' states, or the state of the first token ([CLS])."""
    learning_rate_factor: Positive = 0.01
    """The encoder learns with this share of `learning_rate`, the new head with all of it."""
    head_epochs: Annotated[int, Interval(ge=0)] = 1
    """Epochs at the start in which only the new head learns: an untrained head would spoil the pretrained weights
    (Kumar et al., ICLR 2022)."""
    dropout: Share = 0.1
    """Of the head; the encoder has its own."""
    freeze_layers: Annotated[int, Interval(ge=0, le=1000)] = 0
    """The input embeddings and this many of the lowest layers stay as they are."""
    lora_rank: Annotated[int, Interval(ge=0, le=1024)] = 0
    """Above 0: only low-rank updates of this rank are trained (LoRA; needs the extra `lora`)."""
    micro_batch: Count = 4
    """Posts that are in memory at once; `batch_size` is reached by accumulation, to the same gradient."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` runs the encoder under autocast: two to three times faster on hardware that has it. Weights stay
    float32."""
    gradient_checkpointing: bool = False
    """Compute activations again instead of keeping them: less memory, a third more time."""


@dataclass(frozen=True)
class LinearConfig:
    """Logistic regression on the mean chunk embedding of a post: the floor every reader must beat."""

    name: Literal["linear"] = "linear"
    encoder: str = DEFAULT_ENCODER


@dataclass(frozen=True)
class BCEConfig:
    """Binary cross-entropy."""

    name: Literal["bce"] = "bce"


@dataclass(frozen=True)
class WeightedBCEConfig:
    """Binary cross-entropy with the positive term weighted."""

    name: Literal["weighted_bce"] = "weighted_bce"
    pos_weight: Annotated[float, Interval(gt=0, le=1000)] | None = None
    """Left out: negatives / positives of the fold's training part."""


@dataclass(frozen=True)
class FocalConfig:
    """Focal loss (Lin et al., ICCV 2017)."""

    name: Literal["focal"] = "focal"
    gamma: Annotated[float, Interval(ge=0, le=10)] = 2.0
    alpha: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """Weight of the positive class. Left out: the share of negatives in the fold's training part."""


@dataclass(frozen=True)
class AsymmetricConfig:
    """Asymmetric loss (Ridnik et al., ICCV 2021): positives and negatives focus apart, easy negatives drop out."""

    name: Literal["asymmetric"] = "asymmetric"
    gamma_pos: Annotated[float, Interval(ge=0, le=10)] = 0.0
    """Focusing of the positives."""
    gamma_neg: Annotated[float, Interval(ge=0, le=10)] = 4.0
    """Focusing of the negatives; at least `gamma_pos`, as a rule."""
    clip: Annotated[float, Interval(ge=0, le=0.5)] = 0.05
    """Negatives with a probability up to this cost nothing."""


@dataclass(frozen=True)
class LogitAdjustedConfig:
    """Binary cross-entropy of logits shifted by each criterion's log-odds in training (Menon et al., ICLR 2021)."""

    name: Literal["logit_adjusted"] = "logit_adjusted"
    tau: Annotated[float, Interval(ge=0, le=10)] = 1.0
    """How far the logits are shifted; 0 is plain binary cross-entropy."""


@dataclass(frozen=True)
class TrainingConfig:
    """How one candidate is trained; AdamW throughout."""

    epochs: Annotated[int, Interval(ge=1, le=10_000)] = 40
    patience: Count = 6
    """A stage stops when its folds' mean score has not improved for this many epochs."""
    batch_size: Count = 32
    """Posts per batch (each with all its criteria)."""
    accumulation_steps: Count = 1
    """Batches per optimizer step: it learns from `batch_size * accumulation_steps` posts of similar length, which are
    read together where they fit into memory."""
    learning_rate: Positive = 3e-3
    weight_decay: NonNegative = 0.01
    clip_norm: NonNegative = 1.0
    """Largest gradient norm of a fold; 0 switches clipping off."""
    warmup_steps: Annotated[int, Interval(ge=0)] = 0
    """Optimizer steps over which the learning rate rises linearly from zero."""


EmbeddingModelConfig = IrisConfig | AbmilConfig | LinearConfig
"""Models that read chunk embeddings of a frozen encoder; their folds train as one batched model."""
ModelConfig = EmbeddingModelConfig | TokenConfig
LossConfig = BCEConfig | WeightedBCEConfig | FocalConfig | AsymmetricConfig | LogitAdjustedConfig

MODELS: dict[str, type[ModelConfig]] = {
    "iris": IrisConfig,
    "abmil": AbmilConfig,
    "linear": LinearConfig,
    "token": TokenConfig,
}
LOSSES: dict[str, type[LossConfig]] = {
    "bce": BCEConfig,
    "weighted_bce": WeightedBCEConfig,
    "focal": FocalConfig,
    "asymmetric": AsymmetricConfig,
    "logit_adjusted": LogitAdjustedConfig,
}


@dataclass(frozen=True)
class CandidateConfig:
    """What one trial trains: a model, how it is trained, and against which loss."""

    model: ModelConfig
    training: TrainingConfig
    loss: LossConfig
