"""Study files: studies/*.toml -> StudyDefinition, all mistakes reported together, and the hash that identifies it.

`.reader` checks the file against the frozen dataclasses that it fills, so nothing is declared twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_evidence.core.config import SOLVED
from sparse_evidence.core.errors import nearest

from ..errors import DefinitionError
from .document import to_toml
from .fields import Alternative, Choices, ParameterSpec, Range
from .reader import NESTED, read_outer_fold, read_study

if TYPE_CHECKING:
    from sparse_evidence.core.config import ChunksConfig, SplitConfig
    from sparse_evidence.core.corpus.sources import Source

    from .config import ConfirmConfig, OuterFold, SearchConfig, ServiceConfig


@dataclass(frozen=True)
class StudyDefinition:
    """A study file, checked, with every default filled in."""

    name: str
    path: Path
    data: Source
    """Its paths are as written, relative to the file: `definition.data.load(definition.path.parent)`."""
    chunks: ChunksConfig
    split: SplitConfig
    search: SearchConfig
    model: tuple[Alternative, ...]
    training: tuple[Alternative, ...]
    """The specs of `[training]` with each model, by the model's name: default spaces differ."""
    loss: tuple[Alternative, ...]
    confirm: ConfirmConfig
    service: ServiceConfig
    outer_fold: OuterFold | None = None
    """Of the child studies of a nested cross-validation: the outer fold whose posts are left out."""

    @property
    def trained(self) -> tuple[str, ...]:
        """The models that are trained in epochs. `[training]` and `[[loss]]` do not apply to the others."""
        return tuple(alternative.name for alternative in self.model if alternative.name not in SOLVED)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which `load` reads this definition in another process."""
        return {} if self.outer_fold is None else {NESTED: str(self.outer_fold)}

    def on_outer_fold(self, fold: OuterFold) -> StudyDefinition:
        """The child study that leaves out an outer fold.

        No study file can have its name, because of the slashes. Nothing is confirmed: the outer fold does that.
        """
        name = f"{self.name}/nested/{fold.count}/{fold.number}"
        return replace(self, name=name, outer_fold=fold, confirm=replace(self.confirm, leaders=0))

    def canonical(self) -> dict[str, Any]:
        """Return the study's identity as JSON: everything that can change a trial's result.

        Not part of it: where the file and its data are (the data have a hash of their own), how the study is run
        (`[service]`), for how long (`search.trials`), and how its result is confirmed (`[confirm]`).
        """
        search = asdict(self.search)
        del search["trials"]
        return {
            "name": self.name,
            "data": _without_locations(_used(asdict(self.data))),
            "chunks": asdict(self.chunks),
            "split": {**_used(asdict(self.split)), "stages": list(self.split.stages)},
            "search": search,
            "model": [_alternative_json(alternative) for alternative in self.model],
            "training": _training_json(
                [part for part in self.training if part.name in self.trained or not self.trained]
            ),
            "loss": [_alternative_json(alternative) for alternative in self.loss],
            **({} if self.outer_fold is None else {"outer_fold": str(self.outer_fold)}),
        }

    def sha256(self) -> str:
        """Return the hash of `canonical()`; the same for every way of writing the same study."""
        return _hash(self.canonical())

    def has_hash(self, stored: str) -> bool:
        """Whether a stored hash is that of this study: also one made when paths were a part of it."""
        canonical = self.canonical()
        return stored in (_hash(canonical), _hash({**canonical, "data": _used(asdict(self.data))}))


def load(path: Path, *, environ: Mapping[str, str] = os.environ) -> StudyDefinition:
    """Read and check a study file.

    `environ` may override the `[service]` table: `HPO_HEARTBEAT_SECONDS`, `HPO_GRACE_SECONDS`,
    `HPO_CHECKPOINT_SECONDS`, `HPO_STALL_SECONDS`; and the `[confirm]` table: `HPO_CONFIRM_LEADERS`,
    `HPO_CONFIRM_SPLITS`. `HPO_NESTED` makes it the child study of an outer fold of a nested cross-validation.

    Raises `DefinitionError`: why the file cannot be read, or every mistake in it.
    """
    path = Path(path)
    return _define(_parse(path), path, path.name, environ, [])


def from_document(
    document: Mapping[str, Any], *, folder: Path | None = None, environ: Mapping[str, str] = os.environ
) -> StudyDefinition:
    """Check a study that is given as a dict, as `load` checks a file. It must have a name.

    Relative paths in it start at `folder` (default: the current one). Its `path` is where a file of its name would be.

    Raises `DefinitionError`, as `load` does.
    """
    parsed = tomllib.loads(to_toml(document))
    missing = [] if "name" in parsed else ["name: missing, give the study a name, a dict has no file's name"]
    path = (folder or Path.cwd()) / f"{parsed.get('name', 'study')}.toml"
    return _define(parsed, path, "the study", environ, missing)


def _define(
    document: Mapping[str, Any], path: Path, called: str, environ: Mapping[str, str], problems: list[str]
) -> StudyDefinition:
    parts = read_study(document, path.stem, environ, problems)
    outer_fold = read_outer_fold(environ, problems)
    if problems:
        raise _invalid(called, problems)
    definition = StudyDefinition(path=path, **parts)
    return definition if outer_fold is None else definition.on_outer_fold(outer_fold)


def differences(local: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Describe every difference between the `canonical()` forms of a local file and of the study in the database."""
    local, stored = ({**form, "data": _without_locations(form.get("data", {}))} for form in (local, stored))
    lists = {key for form in (local, stored) for key, part in form.items() if isinstance(part, list) and len(part) > 1}
    ours, theirs = _flat(local, lists), _flat(stored, lists)
    pairs = {key: (ours.get(key, _UNSET), theirs.get(key, _UNSET)) for key in dict.fromkeys([*ours, *theirs])}
    return [f"{key} is {our} here and {their} in the study" for key, (our, their) in pairs.items() if our != their]


# --- the file -----------------------------------------------------------------------------------------------------


def _invalid(file: str, problems: list[str]) -> DefinitionError:
    overrides = [problem.startswith("HPO_") for problem in problems]
    if all(overrides):
        return DefinitionError.listing("the environment", problems)
    if any(overrides):
        return DefinitionError.listing(f"{file} and the environment", problems, verb="have")
    return DefinitionError.listing(file, problems)


def _parse(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise DefinitionError(f"{path} is a folder, not a study file; give the path of a .toml file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        meant = nearest(path.name, [sibling.name for sibling in path.parent.glob("*.toml")])
        hint = f"did you mean {path.parent / meant}?" if meant else "check the path"
        raise DefinitionError(f"{path} does not exist; {hint}") from None
    except UnicodeDecodeError as error:
        raise DefinitionError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DefinitionError(f"{path} cannot be read ({reason}); check its name and permissions") from None
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DefinitionError(f"{path} is not valid TOML: {error}; fix that first") from None


# --- identity -----------------------------------------------------------------------------------------------------


LOCATIONS = ("path", "posts", "annotations")
"""Settings of `[data]` that say where the data are. What they are decides, so each machine may keep its own copy."""
_UNSET = "not set"
_ONLY_IF_USED = ("columns", "criteria", "evidence", "merge_near_duplicates")
"""Settings that are part of the identity only where they are used: studies that do not know them keep their hash."""


def _hash(canonical: Mapping[str, Any]) -> str:
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_locations(data: Mapping[str, Any]) -> dict[str, Any]:
    """The table `[data]` without paths. Of generated posts, `posts` is a number."""
    return {key: value for key, value in data.items() if key not in LOCATIONS or not isinstance(value, str)}


def _used(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of the file without the settings that are not used; the tables in it become lists."""
    used = {key: value for key, value in table.items() if value or key not in _ONLY_IF_USED}
    return {key: _listed(key, value) if isinstance(value, Mapping) else value for key, value in used.items()}


def _listed(key: str, texts: Mapping[str, str]) -> list[str]:
    """Return a table of texts as a list: sorted, but for criteria, whose order is that of the corpus."""
    listed = [f"{name} = {text}" for name, text in texts.items()]
    return listed if key == "criteria" else sorted(listed)


def _alternative_json(alternative: Alternative) -> dict[str, object]:
    return {"name": alternative.name, **{key: _spec_json(spec) for key, spec in alternative.specs.items()}}


def _training_json(parts: Sequence[Alternative]) -> dict[str, object]:
    """Return the specs of `[training]`; where they depend on the model, its name is part of the key."""
    merged: dict[str, object] = {}
    for key in parts[0].specs:
        specs = {part.name: _spec_json(part.specs[key]) for part in parts}
        first = specs[parts[0].name]
        same = all(spec == first for spec in specs.values())
        merged |= {key: first} if same else {f"{name}.{key}": spec for name, spec in specs.items()}
    return merged


def _spec_json(spec: ParameterSpec) -> object:
    if isinstance(spec, Range):
        return {key: value for key, value in asdict(spec).items() if key != "integer"}
    if isinstance(spec, Choices):
        return {"choices": list(spec.values), "default": spec.default}
    return spec


def _flat(value: object, lists: set[str], prefix: str = "") -> dict[str, str]:
    """Return a canonical form as dotted keys and readable values; keys in `lists` carry the alternative's name."""
    if isinstance(value, Mapping) and not {"low", "choices"} & set(value):
        dotted = f"{prefix}." if prefix else ""
        return {key: text for part in value for key, text in _flat(value[part], lists, f"{dotted}{part}").items()}
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        names = [str(item.get("name")) for item in value]
        flat = {prefix: ", ".join(names)}
        for name, item in zip(names, value, strict=True):
            specs = {key: spec for key, spec in item.items() if key != "name"}
            flat |= _flat(specs, lists, f"{prefix}.{name}" if prefix in lists else prefix)
        return flat
    return {prefix: _spec_text(value)}


def _spec_text(spec: object) -> str:
    """Describe a spec of a canonical form."""
    if isinstance(spec, Mapping) and "low" in spec:
        parts = {key: spec.get(key) for key in ("low", "high", "log", "step")}
        return f"{Range(**parts)}, default {spec.get('default')}"  # type: ignore[arg-type]
    if isinstance(spec, Mapping):
        return f"{Choices(tuple(spec['choices']))}, default {spec.get('default')}"
    return _UNSET if spec is None else str(spec)
