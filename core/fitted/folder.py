"""A fitted model as a folder: `model.json` says what it is, `weights.safetensors` holds its numbers; no pickle.

A folder is complete in itself but for the encoders, which are found by name (or path) and must have the same weights as
when the model was fitted. It holds no post. The description and the weights have checksums, so that an altered or
incomplete folder is refused; `README.md`, the model card, is for people, and nothing reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..cache import write_atomically
from ..config import LOSSES, MODELS, READ_TEXT, CandidateConfig, ChunksConfig, TrainingConfig
from ..corpus.data import Criterion
from ..errors import UserError
from ..features.encoders import Encoder, locate
from ..features.views import EmbeddedCorpus, Features, TextCorpus
from ..models import build_model
from .member import Member
from .model import Calibration, FittedModel

FORMAT = 1
DESCRIPTION, WEIGHTS, CARD = FILES = ("model.json", "weights.safetensors", "README.md")


def save_model(model: FittedModel, folder: Path | str, card: str) -> None:
    """Write a model into a new folder; a folder that is a fitted model already is replaced.

    The folder appears at once, complete.

    Args:
        model: what to save.
        folder: does not exist, is empty, or is a fitted model.
        card: the model card, Markdown; written as README.md.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    check_free(Path(folder))
    folder = Path(os.path.realpath(folder))  # the folder that a link points to, not the link
    weights = safetensors.torch.save(_tensors(model))
    description = _describe(model, hashlib.sha256(weights).hexdigest(), folder)
    content = {WEIGHTS: weights, DESCRIPTION: _json(description).encode(), CARD: card.encode()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            new, old = Path(temporary) / "new", Path(temporary) / "old"
            new.mkdir(mode=0o700)
            for file, data in content.items():
                write_atomically(new / file, data)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
    except OSError as error:
        raise UserError(f"the model folder {folder} cannot be written ({error.strerror}); name another one") from error


def check_free(folder: Path) -> None:
    """Check that a model may be saved there.

    Raises:
        UserError: `folder` is a file, or holds anything besides a fitted model.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a new folder for the model")
    found = sorted(path.name for path in folder.iterdir())
    if found and (others := [name for name in found if name not in FILES] or not _is_model(folder)):
        what = f"{others[0]!r}" if isinstance(others, list) else "something other than a fitted model"
        raise UserError(f"the folder {folder} holds {what}, which would be lost; name a new folder for the model")


def _is_model(folder: Path) -> bool:
    """True if the folder has the description of a fitted model, intact or not."""
    try:
        return "weights_sha256" in json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, TypeError):
        return False


def load_model(folder: Path | str) -> FittedModel:
    """Load a model that `save_model` has written, wherever its folder is now.

    Raises:
        UserError: the folder is no fitted model, is incomplete or altered, was written by a later version, or its
            encoder is not installed here with the same weights.
    """
    folder = Path(folder)
    description = _read_description(folder)
    tensors = _read_weights(folder, description)
    encoders = {entry["name"]: _locate(entry, folder) for entry in description["encoders"]}
    embeddings = {name: tensors[f"criteria.{name}"].numpy() for name in encoders if f"criteria.{name}" in tensors}
    criteria = tuple(Criterion(**entry) for entry in description["criteria"])
    members = [
        _load_member(entry, f"members.{number}.", tensors, _features(entry, criteria, encoders, embeddings))
        for number, entry in enumerate(description["members"])
    ]
    calibration = description["calibration"]
    return FittedModel(
        criteria,
        ChunksConfig(**description["chunks"]),
        tuple(members),
        encoders,
        embeddings,
        Calibration(np.array(calibration["slope"]), np.array(calibration["intercept"])),
        np.array(description["prevalence"]),
        description["threshold"],
        description["info"],
    )


def checksum(folder: Path | str) -> str:
    """The SHA-256 (hex) that identifies a model, weights and all.

    Raises:
        UserError: the folder is no fitted model, or was altered.
    """
    return _checksum(_read_description(Path(folder)))


# ---- description -----------------------------------------------------------------------------------------------------


def _describe(model: FittedModel, weights: str, folder: Path) -> dict[str, Any]:
    description = {
        "format": FORMAT,
        "criteria": [asdict(criterion) for criterion in model.criteria],
        "chunks": asdict(model.chunks),
        "encoders": [
            {
                "name": name,
                "revision": encoder.revision,
                "folder": os.path.relpath(encoder.folder, folder) if encoder.is_local else None,
            }
            for name, encoder in model.encoders.items()
        ],
        "members": [
            {
                "trial": member.trial,
                "weight": member.weight,
                "seed": member.seed,
                "epochs": member.epochs,
                "models": [len(part.empty_logits()) for part in member.models],
                "config": asdict(member.candidate),
            }
            for member in model.members
        ],
        "calibration": {
            "slope": model.calibration.slope.tolist(),
            "intercept": model.calibration.intercept.tolist(),
        },
        "prevalence": model.prevalence.tolist(),
        "threshold": model.threshold,
        "info": dict(model.info),
        "weights_sha256": weights,
    }
    return {**description, "sha256": _checksum(description)}


def _json(description: Mapping[str, Any]) -> str:
    return json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _checksum(description: Mapping[str, Any]) -> str:
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stored = content.pop("sha256")
        version = content["format"]
        expected = _checksum(content)
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no fitted model: {DESCRIPTION} is missing; give the folder that `hpo fit` wrote"
        ) from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} cannot be read as the description of a fitted model; fit it again") from None
    if isinstance(version, int) and version > FORMAT:
        raise UserError(f"{folder} was written by a later version of this program (format {version}); upgrade it")
    if stored != expected:
        raise UserError(f"{path} was altered after the model was fitted (its checksum differs); fit it again")
    assert isinstance(content, dict)
    return content


def _read_weights(folder: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the model {folder} is incomplete: {path.name} cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).hexdigest() != description["weights_sha256"]:
        raise UserError(f"{path} is damaged or was altered (its checksum differs); fit the model again")
    try:
        return safetensors.torch.load(content)
    except SafetensorError:
        raise UserError(f"{path} is damaged; fit the model again") from None


def _locate(entry: Mapping[str, str | None], folder: Path) -> Encoder:
    name = str(entry["name"])
    encoder = replace(locate(entry["folder"] or name, folder.resolve()), name=name)
    if encoder.revision != entry["revision"]:
        raise UserError(
            f"the encoder {name} here has other weights than the one that the model {folder} was fitted with; "
            "install the version that it was fitted with, or fit it again"
        )
    return encoder


# ---- weights ---------------------------------------------------------------------------------------------------------


def _tensors(model: FittedModel) -> dict[str, Tensor]:
    tensors = {
        f"members.{number}.{part}.{name}": tensor.contiguous()
        for number, member in enumerate(model.members)
        for part, network in enumerate(member.models)
        for name, tensor in network.state_dict().items()
    }
    criteria = {
        f"criteria.{name}": torch.from_numpy(np.ascontiguousarray(vectors))
        for name, vectors in model.criteria_embeddings.items()
    }
    return tensors | criteria


def _load_member(entry: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor], features: Features) -> Member:
    candidate = _candidate(entry["config"])
    models = []
    for part, folds in enumerate(entry["models"]):
        network, _ = build_model(
            candidate.model, features, [np.zeros(1, dtype=np.int64)] * folds, folds=range(folds), seed=0
        )
        start = f"{prefix}{part}."
        state = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        network.load_state_dict(state)
        models.append(network.eval().requires_grad_(requires_grad=False))
    return Member(candidate, tuple(models), entry["weight"], entry["trial"], entry["seed"], entry["epochs"])


def _candidate(config: Mapping[str, Any]) -> CandidateConfig:
    model, loss = config["model"], config["loss"]
    return CandidateConfig(
        MODELS[model["name"]](**model), TrainingConfig(**config["training"]), LOSSES[loss["name"]](**loss)
    )


def _features(
    entry: Mapping[str, Any],
    criteria: tuple[Criterion, ...],
    encoders: Mapping[str, Encoder],
    embeddings: Mapping[str, Any],
) -> Features:
    """A corpus of one post, which a model is built for before its weights are loaded."""
    model = entry["config"]["model"]
    labels = np.zeros((1, len(criteria)), dtype=np.int8)
    if model["name"] in READ_TEXT:
        texts = tuple(criterion.text for criterion in criteria)
        return TextCorpus(("-",), texts, encoders[model["encoder"]], labels)
    vectors = embeddings[model["encoder"]]
    return EmbeddedCorpus(np.zeros((1, vectors.shape[1]), dtype=np.float32), np.array([0, 1]), vectors, labels)
