"""Configurations: every default lies within its bounds, every field is documented."""

import ast
import inspect
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Interval

from sparse_evidence.core.config import (
    LOSSES,
    MODELS,
    CandidateConfig,
    ChunksConfig,
    LossConfig,
    ModelConfig,
    SplitConfig,
    TrainingConfig,
)

KINDS = [ChunksConfig, SplitConfig, TrainingConfig, *MODELS.values(), *LOSSES.values()]
OBVIOUS = {"name", "dropout", "epochs", "learning_rate", "weight_decay", "gamma", "encoder"}
"""Fields that may go without a docstring."""


def within(value, bounds):
    return (
        (bounds.ge is None or value >= bounds.ge)
        and (bounds.gt is None or value > bounds.gt)
        and (bounds.le is None or value <= bounds.le)
        and (bounds.lt is None or value < bounds.lt)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_lie_within_their_bounds(kind):
    config = kind()
    checked = 0
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if get_origin(hint) is Annotated:
            assert within(getattr(config, name), hint.__metadata__[0]), name
            checked += 1
    assert checked or kind.__name__ in {"BCEConfig", "WeightedBCEConfig"}


@pytest.mark.parametrize("kind", KINDS)
def test_fields_are_documented(kind):
    body = ast.parse(inspect.getsource(kind)).body[0].body
    documented = {
        field.target.id
        for field, following in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr)
    }
    assert {field.name for field in fields(kind)} - documented <= OBVIOUS
    assert kind.__doc__


def test_the_registries_have_every_member_of_their_unions():
    assert set(MODELS.values()) == set(get_args(ModelConfig))
    assert set(LOSSES.values()) == set(get_args(LossConfig))
    for registry in (MODELS, LOSSES):
        for name, kind in registry.items():
            first = fields(kind)[0]
            assert (first.name, first.default) == ("name", name)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (SplitConfig(), (2, 3)),
        (SplitConfig(folds=2), (1, 1)),
        (SplitConfig(folds=3), (2, 1)),
        (SplitConfig(folds=10), (2, 8)),
        (SplitConfig(folds=4, stages=(1, 1, 2)), (1, 1, 2)),
        (SplitConfig(folds=2, stages=(2,)), (2,)),
    ],
)
def test_default_stages_are_two_folds_and_then_the_others(config, sizes):
    assert config.stage_sizes() == sizes
    assert sum(config.stage_sizes()) == config.folds


def test_configurations_are_immutable_and_compare_by_value():
    candidate = CandidateConfig(MODELS["iris"](), TrainingConfig(), LOSSES["focal"]())
    assert candidate == CandidateConfig(MODELS["iris"](), TrainingConfig(), LOSSES["focal"]())
    assert hash(candidate) == hash(CandidateConfig(MODELS["iris"](), TrainingConfig(), LOSSES["focal"]()))
    with pytest.raises(FrozenInstanceError):
        candidate.training.epochs = 3


def test_the_smallest_split_and_its_bounds():
    bounds = get_type_hints(SplitConfig, include_extras=True)["folds"].__metadata__[0]
    assert bounds == Interval(ge=2, le=50)
    for folds in (bounds.ge, bounds.le):
        assert sum(SplitConfig(folds=folds).stage_sizes()) == folds
