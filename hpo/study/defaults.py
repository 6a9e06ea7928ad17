"""The default search space of every model: what is searched where the study file says nothing.

The tables below are all there is to tune. A key that they do not name has its single default of `core.config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sparse_evidence.core.config import LOSSES, MODELS, SOLVED, TrainingConfig

from .fields import Choices, ParameterSpec, Range, fields_of, read_spec

Specs = Mapping[str, Range | Choices]


@dataclass(frozen=True)
class Space:
    """What is searched with one model."""

    model: Specs = field(default_factory=dict)
    training: Specs = field(default_factory=dict)
    """Of `[training]`; nothing where the model is solved."""


SPACES: dict[str, Space] = {
    "iris": Space(
        model={
            "num_queries": Choices((2, 4, 8)),
            "k_retrieved": Range(2, 6),
            "temperature": Range(0.05, 1.0, log=True),
            "hidden": Choices((32, 64, 128)),
        },
        training={
            "learning_rate": Range(3e-4, 3e-3, log=True, default=1e-3),
            "accumulation_steps": Choices((1, 2)),
        },
    ),
    "abmil": Space(
        model={"hidden": Choices((64, 128, 256))},
        training={"learning_rate": Range(3e-4, 1e-2, log=True)},
    ),
    "instance": Space(
        model={"hidden": Choices((32, 64, 128)), "sharpness": Range(0.5, 4.0, log=True)},
        training={"learning_rate": Range(1e-3, 1e-2, log=True)},
    ),
    "token": Space(
        model={"pooling": Choices(("max", "logsumexp"))},
        training={"learning_rate": Range(1e-3, 1e-2, log=True)},
    ),
    "linear": Space(model={"C": Range(0.3, 300.0, log=True)}),
    "retrieval": Space(
        model={
            "C": Range(1e-4, 1e-2, log=True),
            "top_k": Range(1, 6),
            "similarity_weight": Range(2.0, 8.0, log=True),
            "pooling": Choices(("each", "mean")),
        },
    ),
}
"""By the model's name. A spec without a default has that of `core.config` if it can be drawn, else the middle of the
range or the first choice."""

LOSS_SPACES: dict[str, Specs] = {"bce": {}}
"""The losses that the search chooses from if the file has no `[[loss]]`, the first in trial 0, and what of them is
searched. A loss that the file names has its keys searched as here, if it is here."""


def model_space(name: str) -> Mapping[str, ParameterSpec]:
    """Return what is searched by default of the model's own settings, every default filled in."""
    return _filled_in(MODELS[name], SPACES[name].model) if name in SPACES else {}


def training_space(name: str) -> Mapping[str, ParameterSpec]:
    """Return what is searched by default of `[training]` with this model; nothing if it is solved."""
    return _filled_in(TrainingConfig, SPACES[name].training) if name in SPACES and name not in SOLVED else {}


def loss_space(name: str) -> Mapping[str, ParameterSpec]:
    """Return what is searched by default of a loss."""
    return _filled_in(LOSSES[name], LOSS_SPACES.get(name, {}))


def _filled_in(cls: type, specs: Specs) -> dict[str, ParameterSpec]:
    """Return the specs as if a study file had written them: checked, and with the default that trial 0 uses."""
    known = fields_of(cls)
    return {key: read_spec(known[key], _as_written(spec)) for key, spec in specs.items()}


def _as_written(spec: Range | Choices) -> dict[str, Any]:
    if isinstance(spec, Choices):
        return {"choices": list(spec.values)} | ({} if spec.default is None else {"default": spec.default})
    return {key: value for key, value in asdict(spec).items() if value is not None and key != "integer"}
