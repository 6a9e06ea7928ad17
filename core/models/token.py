"""token: a transformer fine-tuned end to end on (criterion, post) pairs; long posts are read window by window.

Its folds do not stack: the matrix products of one fold already fill a device. It has the interface of the other models
with `folds == 1`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import TokenConfig
from ..errors import ConfigError
from ..features.encoders import Encoder, loading
from ..features.tokens import TokenBatch
from ..features.views import TextCorpus
from ..seeding import torch_seeded
from .base import Model, enable_gradient_checkpointing
from .dropout import FoldDropout

SEQUENCES_PER_PASS = 32
"""Sequences per pass through the encoder. They are sorted by length, so a pass pads to its own longest only."""


class Token(Model):
    """Encoder → state of each window → logit of each window → pooled over the windows of a post.

    Args:
        config: encoder, windows and pooling.
        encoder: the pretrained weights.
        prior: float32 `[1, criteria]`, log-odds of each criterion in the fold's training part.
        seed: seeds the new weights and the dropout, together with the fold number.
        fold: fold number.

    Raises:
        ConfigError: the extra `lora` is missing, or `freeze_layers` exceeds the encoder's layers.
    """

    stacked_folds = False

    def __init__(self, config: TokenConfig, encoder: Encoder, prior: Tensor, *, seed: int, fold: int) -> None:
        super().__init__()
        self.config = config
        with torch_seeded(seed, "model", fold, device=torch.device("cpu")):
            self.encoder: Any = _load(config, encoder)
        self.head = nn.Parameter(torch.zeros(prior.shape[1], self.encoder.config.hidden_size))
        self.bias = nn.Parameter(prior[0].clone())
        self.dropout = FoldDropout(config.dropout)
        self._seed: tuple[int | str, ...] = (seed, "dropout", fold, 0)
        self._passes = 0
        self.warmup_epochs = config.head_epochs
        self._head_only = config.head_epochs > 0
        # frozen weights come from the encoder's own file: neither checkpoints nor a trained model contain them
        self.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_ignore_missing_frozen)  # type: ignore[no-untyped-call]

    @classmethod
    def build(
        cls,
        config: TokenConfig,
        features: TextCorpus,
        prior: Tensor,
        *,
        seed: int,
        folds: Sequence[int],
        train: Sequence[npt.NDArray[np.int64]],  # noqa: ARG003  (its start does not depend on the posts)
    ) -> Token:
        """The model of a single fold; the other arguments are those of the class."""
        (fold,) = folds
        return cls(config, features.encoder, prior, seed=seed, fold=fold)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Logits `[1, width, criteria]` of a batch of posts."""
        frozen = self.training and self._head_only
        self.encoder.train(self.training and not frozen)
        # One autocast context for all passes, so that they share the cast weights, and no longer: autocast caches these
        # until it exits, and an optimizer step invalidates them.
        autocast = torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")
        with (
            self._seeded_dropout(batch.ids.device),
            torch.set_grad_enabled(torch.is_grad_enabled() and not frozen),
            autocast,
        ):
            states = torch.cat([self._encode(batch, at) for at in range(0, len(batch.ids), SEQUENCES_PER_PASS)])
        # unit vectors, like frozen embeddings: the head then trains at the learning rate of the other models' heads
        states = self.dropout(functional.normalize(states, dim=-1)[None])[0]
        criteria = len(self.head)
        if self.config.reads == "pairs":
            criterion = batch.segment_ids % criteria
            logits = (states * self.head[criterion]).sum(-1, keepdim=True) + self.bias[criterion, None]
        else:
            logits = states @ self.head.mT + self.bias
        pooled = pool(logits, batch.segment_ids, batch.segments, self.config.pooling)
        return pooled.view(-1, criteria)[batch.inverse][None]

    def _encode(self, batch: TokenBatch, at: int) -> Tensor:
        """States `[sequences, hidden]` of one pass: the sequences from `at`."""
        rows = slice(at, at + SEQUENCES_PER_PASS)
        mask = batch.mask[rows, : int(batch.mask[at].sum())]  # the first is the longest
        length = mask.shape[1]
        inputs = {"input_ids": batch.ids[rows, :length], "attention_mask": mask.long()}
        if getattr(self.encoder.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = batch.types[rows, :length]
        states: Tensor = self.encoder(**inputs).last_hidden_state.float()
        if self.config.readout == "first":
            return states[:, 0]
        present = mask[..., None].to(states.dtype)
        return (states * present).sum(1) / present.sum(1)

    @contextmanager
    def _seeded_dropout(self, device: torch.device) -> Iterator[None]:
        """Seed torch's global generator, from which the encoder's dropout draws, for this pass."""
        if not self.training:
            yield
            return
        self._passes += 1
        with torch_seeded(*self._seed, self._passes, device=device):
            yield

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed all dropout for the coming epoch, whose number is the last part of the key."""
        (self._seed,) = keys
        self._head_only = int(self._seed[-1]) < self.config.head_epochs
        self._passes = 0
        self.dropout.reseed(keys)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The new weights at `learning_rate`, and the unfrozen pretrained ones at `learning_rate_factor` of it."""
        trained = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]
        return [
            {"params": [self.head, self.bias], "lr": learning_rate},
            *([{"params": trained, "lr": learning_rate * self.config.learning_rate_factor}] if trained else []),
        ]


def pool(logits: Tensor, segment_ids: Tensor, segments: int, pooling: str) -> Tensor:
    """Pool the logits of windows `[sequences, columns]` over their segments, `[segments, columns]`.

    `logsumexp` is log((1/n) Σ exp z) (Pinheiro and Collobert, CVPR 2015, with r = 1): a post does not score higher
    for having more windows.

    Args:
        logits: one row per window.
        segment_ids: int64 `[sequences]`, the segment of each window; every segment has at least one.
        segments: number of segments.
        pooling: "max", "mean" or "logsumexp".
    """
    index = segment_ids[:, None].expand_as(logits)
    if pooling == "max":
        return logits.new_full((segments, logits.shape[1]), -torch.inf).scatter_reduce(0, index, logits, "amax")
    count = torch.zeros(segments, 1, dtype=logits.dtype, device=logits.device).index_add(
        0, segment_ids, torch.ones_like(logits[:, :1])
    )
    if pooling == "mean":
        return torch.zeros_like(logits[:1]).expand(segments, -1).index_add(0, segment_ids, logits) / count
    top = pool(logits.detach(), segment_ids, segments, "max")  # subtracted, so that no exponential overflows
    sums = torch.zeros_like(top).index_add(0, segment_ids, torch.exp(logits - top[segment_ids]))
    return top + torch.log(sums / count)


def _load(config: TokenConfig, encoder: Encoder) -> Any:  # noqa: ANN401  (any class of transformers)
    """Load the pretrained encoder; freeze layers or add LoRA as configured."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with loading(encoder):
        model: Any = transformers.AutoModel.from_pretrained(encoder.folder, local_files_only=True).float()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # unused weights
    if config.freeze_layers:
        _freeze(model, config, encoder)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(model, {"use_reentrant": False})
    return _with_lora(model, config) if config.lora_rank else model


def _freeze(model: Any, config: TokenConfig, encoder: Encoder) -> None:  # noqa: ANN401
    count: int = model.config.num_hidden_layers
    if config.freeze_layers > count:
        raise ConfigError(
            f"freeze_layers is {config.freeze_layers}, but {encoder.name} has {count} layers; give at most {count}"
        )
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    embeddings = getattr(model, "embeddings", None) or model.get_input_embeddings()
    for part in (embeddings, *layers[: config.freeze_layers]):
        part.requires_grad_(requires_grad=False)


def _with_lora(model: Any, config: TokenConfig) -> Any:  # noqa: ANN401
    """Freeze everything and add low-rank updates to every linear layer (Hu et al., ICLR 2022; scaled by 2)."""
    try:
        import peft
    except ImportError:
        raise ConfigError(
            "lora_rank needs the package peft, which is not installed; "
            "install it with `pip install 'sparse-evidence-hpo[lora]'`, or omit lora_rank"
        ) from None
    lora = peft.LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses deprecated names of transformers
        return peft.get_peft_model(model, lora)


def _drop_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            state.pop(prefix + name, None)


def _ignore_missing_frozen(module: nn.Module, keys: Any) -> None:  # noqa: ANN401  (torch's own pair of lists)
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    keys.missing_keys[:] = [name for name in keys.missing_keys if name not in frozen]
