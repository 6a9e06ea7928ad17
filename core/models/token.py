"""token: a transformer fine-tuned end to end on (criterion, post) pairs, long posts window by window.

Folds of it do not fuse, there is nothing to gain: one fold's matrix products already fill a device. It speaks the
interface of the others with `folds == 1`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import TokenConfig
from ..errors import ConfigError
from ..features.encoders import Encoder
from ..features.tokens import TokenBatch
from ..seeding import stable_seed
from .base import Model
from .dropout import FoldDropout

SEQUENCES = 32
"""Sequences per pass through the encoder: they are sorted by length, so each pass pads to its own longest only."""


class Token(Model):
    """Encoder → state of each window → logit of each window → pooled over the windows of a post.

    Args:
        config: encoder, reading and pooling.
        encoder: where the weights are.
        prior: float32 `[1, criteria]`, log-odds of each criterion in the fold's training part.
        seed: seed of the study.
        fold: fold number, which the new weights and the dropout depend on.

    Raises:
        ConfigError: the extra `lora` is missing, or there are fewer layers than are to be frozen.
    """

    stacked_folds = False

    def __init__(self, config: TokenConfig, encoder: Encoder, prior: Tensor, *, seed: int, fold: int) -> None:
        super().__init__()
        self.config = config
        with _seeded(stable_seed(seed, "model", fold), torch.device("cpu")):
            self.encoder: Any = _load(config, encoder)
        self.head = nn.Parameter(torch.zeros(prior.shape[1], self.encoder.config.hidden_size))
        self.bias = nn.Parameter(prior[0].clone())
        self.dropout = FoldDropout(config.dropout)
        self._seed: tuple[int | str, ...] = (seed, "dropout", fold, 0)
        self._passes = 0
        self.warmup_epochs = config.head_epochs
        self._head_alone = config.head_epochs > 0
        # a frozen weight is known from its file: neither checkpoints nor a trained model hold it
        self.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_forgive_frozen)  # type: ignore[no-untyped-call]

    def forward(self, batch: TokenBatch) -> Tensor:
        """Logits `[1, width, criteria]` of a batch of posts."""
        resting = self.training and self._head_alone
        self.encoder.train(self.training and not resting)
        with self._own_randomness(batch.ids.device), torch.set_grad_enabled(torch.is_grad_enabled() and not resting):
            states = torch.cat([self._read(batch, at) for at in range(0, len(batch.ids), SEQUENCES)])
        # unit vectors, as frozen embeddings are: the head then learns at the rate that heads learn at elsewhere
        states = self.dropout(functional.normalize(states, dim=-1)[None])[0]
        criteria = len(self.head)
        if self.config.reads == "pairs":
            own = batch.owner % criteria
            logits = (states * self.head[own]).sum(-1, keepdim=True) + self.bias[own, None]
        else:
            logits = states @ self.head.mT + self.bias
        pooled = pool(logits, batch.owner, batch.rows, self.config.pooling)
        return pooled.view(-1, criteria)[batch.back][None]

    def _read(self, batch: TokenBatch, at: int) -> Tensor:
        """States `[sequences, hidden]` of the sequences from `at`."""
        rows = slice(at, at + SEQUENCES)
        mask = batch.mask[rows, : int(batch.mask[at].sum())]  # the first is the longest
        length = mask.shape[1]
        inputs = {"input_ids": batch.ids[rows, :length], "attention_mask": mask.long()}
        if getattr(self.encoder.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = batch.types[rows, :length]
        # entered for every pass: autocast keeps the cast weights until it is left, and an optimizer step outdates them
        with torch.autocast(mask.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            states: Tensor = self.encoder(**inputs).last_hidden_state
        states = states.float()
        if self.config.readout == "first":
            return states[:, 0]
        present = mask[..., None].to(states.dtype)
        return (states * present).sum(1) / present.sum(1)

    @contextmanager
    def _own_randomness(self, device: torch.device) -> Iterator[None]:
        """The encoder's dropout draws from the global generator: lend it ours for this pass."""
        if not self.training:
            yield
            return
        self._passes += 1
        with _seeded(stable_seed(*self._seed, self._passes), device):
            yield

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed all dropout for the coming epoch, whose number is the last part of the key."""
        (self._seed,) = keys
        self._head_alone = int(self._seed[-1]) < self.config.head_epochs
        self._passes = 0
        self.dropout.reseed(keys)

    def penalty(self) -> Tensor:
        """No penalty: zeros `[1]`."""
        return torch.zeros_like(self.bias[:1])

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What is trained, and how fast: the pretrained weights slower than the new ones."""
        trained = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]
        return [
            {"params": [self.head, self.bias], "lr": learning_rate},
            *([{"params": trained, "lr": learning_rate * self.config.learning_rate_factor}] if trained else []),
        ]


def pool(logits: Tensor, owner: Tensor, rows: int, how: str) -> Tensor:
    """Logits of windows `[sequences, columns]` to logits of their owners `[rows, columns]`, each with one at least.

    `logsumexp` is log((1/n) Σ exp z) (Pinheiro and Collobert, CVPR 2015, with r = 1): a post does not score higher
    for having more windows.
    """
    index = owner[:, None].expand_as(logits)
    if how == "max":
        return logits.new_full((rows, logits.shape[1]), -torch.inf).scatter_reduce(0, index, logits, "amax")
    count = torch.zeros(rows, 1, dtype=logits.dtype, device=logits.device).index_add(
        0, owner, torch.ones_like(logits[:, :1])
    )
    if how == "mean":
        return torch.zeros_like(logits[:1]).expand(rows, -1).index_add(0, owner, logits) / count
    top = pool(logits.detach(), owner, rows, "max")  # taken out, so that no exponential overflows
    sums = torch.zeros_like(top).index_add(0, owner, torch.exp(logits - top[owner]))
    return top + torch.log(sums / count)


def _load(config: TokenConfig, encoder: Encoder) -> Any:  # noqa: ANN401  (a transformer has what its class has)
    """The pretrained encoder, with what is to stay as it is frozen."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model: Any = transformers.AutoModel.from_pretrained(encoder.folder, local_files_only=True).float()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # it would only be weight that nothing trains
    if config.freeze_layers:
        _freeze(model, config, encoder)
    if config.gradient_checkpointing:
        # the method was renamed within transformers 5
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return _with_lora(model, config) if config.lora_rank else model


def _freeze(model: Any, config: TokenConfig, encoder: Encoder) -> None:  # noqa: ANN401
    count: int = model.config.num_hidden_layers
    if config.freeze_layers > count:
        raise ConfigError(
            f"[model] freeze_layers is {config.freeze_layers}, but {encoder.name} has {count} layers; give at most that"
        )
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    below = getattr(model, "embeddings", None) or model.get_input_embeddings()
    for part in (below, *layers[: config.freeze_layers]):
        part.requires_grad_(requires_grad=False)


def _with_lora(model: Any, config: TokenConfig) -> Any:  # noqa: ANN401
    """Freeze everything and add low-rank updates to every linear layer (Hu et al., ICLR 2022; scaled by 2)."""
    try:
        import peft
    except ImportError:
        raise ConfigError(
            "[model] lora_rank needs the package peft, which is not installed; "
            "install it with `pip install 'sparse-evidence-hpo[lora]'`, or leave lora_rank out"
        ) from None
    lora = peft.LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls transformers by names that are about to go
        return peft.get_peft_model(model, lora)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators seeded, and afterwards as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _drop_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            state.pop(prefix + name, None)


def _forgive_frozen(module: nn.Module, keys: Any) -> None:  # noqa: ANN401  (torch's own pair of lists)
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    keys.missing_keys[:] = [name for name in keys.missing_keys if name not in frozen]
