"""What a page says of a model and of some posts, as plain values: numbers are text here, and nothing is HTML yet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_evidence.core.corpus.data import UNLABELLED
from sparse_evidence.core.fitted import Explanation, FittedModel
from sparse_evidence.core.fitted.queries import Queries, nearest_sentences

from ..database.record import BASELINE_NAMES, candidate_text
from ..results.wording import SCORE_KINDS, capitalized, interval_text, metric_text, short
from .posts import ShownPosts

LEVELS = {"strong": math.log(2.0), "clear": math.log(1.4), "weak": math.log(1.2)}
"""Log odds that a sentence must add to be strong, clear or weak evidence."""
AGAINST = -math.log(2.0)
"""Log odds at which a sentence speaks against a criterion."""
SHOWN_SENTENCES = 6
"""Sentences that are shown of a criterion, and of a query."""


@dataclass(frozen=True)
class Mark:
    """How a sentence is highlighted."""

    level: str
    """`strong`, `clear` or `weak` evidence; `against` if the sentence makes the criterion less likely."""
    label: str
    """`×3.2`: the factor by which the sentence changes the odds."""


@dataclass(frozen=True)
class Verdict:
    """What the model says of a post and a criterion."""

    criterion: int
    probability: float
    percent: str
    met: bool
    label: bool | None
    """The known label; None if there is none."""
    marks: dict[int, Mark]
    """By number of the sentence."""


@dataclass(frozen=True)
class Post:
    """A post, cut into sentences."""

    number: int
    name: str
    pieces: tuple[tuple[str, str], ...] = field(repr=False)
    """(what stands before the sentence, the sentence); together with `rest` they are the whole post."""
    rest: str = field(repr=False)
    verdicts: tuple[Verdict, ...]
    shown: int
    """The criterion that is highlighted at first: the most probable one."""


@dataclass(frozen=True)
class Sentence:
    """A sentence of a post that is shown as an example."""

    text: str = field(repr=False)
    post: int
    name: str
    """Of the post."""
    value: str
    """Its similarity or its factor."""
    level: str = ""


@dataclass(frozen=True)
class Query:
    """A learned query and the sentences nearest to it."""

    number: int
    overlap: str
    """How much of what it retrieves the other queries retrieve, too; empty if there is no other."""
    nearest: tuple[Sentence, ...]


@dataclass(frozen=True)
class Member:
    """The queries that one member of the ensemble has for a criterion."""

    title: str
    weight: str
    overlap: str
    """Mean overlap of two queries; empty if there is only one."""
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class CriterionFindings:
    """What the model looks for, and how often it finds it in the posts shown."""

    number: int
    name: str
    text: str
    positives: str
    """`14 of 60`: posts that met it when the model was trained; empty if unknown."""
    average_precision: str
    met: int
    sentences: tuple[Sentence, ...]
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Score:
    """A row of the table of scores; positions are percent of the axis."""

    name: str
    text: str
    kind: str
    value: float
    interval: tuple[float, ...]
    """Low and high end; empty if it is unknown."""
    is_model: bool


@dataclass(frozen=True)
class Findings:
    """Everything that a page shows."""

    model: FittedModel
    posts: tuple[Post, ...]
    criteria: tuple[CriterionFindings, ...]
    scores: tuple[Score, ...]
    axis: tuple[str, str]
    """The ends of the axis of the scores."""
    metric: str
    title: str
    shown: ShownPosts


def find(model: FittedModel, shown: ShownPosts) -> Findings:
    """Explain posts.

    Args:
        model: a fitted model; what its `info` does not say is not shown.
        shown: the posts, at least one.
    """
    explanations = model.explain(shown.texts)
    names = [_post_name(name) for name in shown.names]
    posts = tuple(
        _post(number, names[number], text, explanation, model, shown)
        for number, (text, explanation) in enumerate(zip(shown.texts, explanations, strict=True))
    )
    queries = list(nearest_sentences(model, shown.texts, 4 * SHOWN_SENTENCES))
    criteria = tuple(
        _criterion(number, model, posts, explanations, queries, shown.texts) for number in range(len(model.criteria))
    )
    scores, axis = _scores(model.info)
    metric = metric_text(str(model.info.get("metric", "average_precision")))
    title = str(model.info.get("study", "Fitted model"))
    return Findings(model, posts, criteria, scores, axis, metric, title, shown)


def readable(name: str) -> str:
    """A criterion's name as a heading: `Low mood`."""
    return capitalized(" ".join(name.replace("_", " ").split()))


# --- posts ------------------------------------------------------------------------------------------------------------


def _post(number: int, name: str, text: str, explanation: Explanation, model: FittedModel, shown: ShownPosts) -> Post:
    ends = [0, *explanation.spans[:, 1].tolist()]
    pieces = tuple(
        (text[before:start], text[start:end])
        for before, (start, end) in zip(ends, explanation.spans.tolist(), strict=False)
    )
    log_odds = model.calibration.slope * explanation.contribution
    known = None if shown.labels is None else shown.labels[number]
    verdicts = tuple(
        Verdict(
            criterion,
            float(explanation.probability[criterion]),
            percent(float(explanation.probability[criterion])),
            bool(explanation.decision[criterion]),
            None if known is None or known[criterion] == UNLABELLED else bool(known[criterion]),
            {row: found for row, value in enumerate(log_odds[:, criterion].tolist()) if (found := mark(value))},
        )
        for criterion in range(len(model.criteria))
    )
    return Post(number, name, pieces, text[ends[-1] :], verdicts, int(explanation.probability.argmax()))


def _post_name(name: str) -> str:
    return f"Post {name}" if name.isdecimal() else name


def mark(log_odds: float) -> Mark | None:
    """How a sentence is highlighted that adds this much to the log odds; None if it hardly matters."""
    for level, least in LEVELS.items():
        if log_odds >= least:
            return Mark(level, factor(log_odds))
    return Mark("against", factor(log_odds)) if log_odds <= AGAINST else None


def factor(log_odds: float) -> str:
    """`×3.2`, or `÷1.5` for log odds below 0; `×100+` beyond what a number can mean."""
    times, sign = math.exp(min(abs(log_odds), math.log(100.0))), "×" if log_odds >= 0 else "÷"
    if times > 99.5:
        return f"{sign}100+"
    return f"{sign}{times:.0f}" if times >= 9.95 else f"{sign}{times:.1f}"


def percent(probability: float) -> str:
    """`43 %`; never 0 or 100."""
    if probability < 0.01:
        return "< 1 %"
    return "> 99 %" if probability > 0.99 else f"{100 * probability:.0f} %"


# --- criteria ---------------------------------------------------------------------------------------------------------


def _criterion(
    number: int,
    model: FittedModel,
    posts: Sequence[Post],
    explanations: Sequence[Explanation],
    queries: Sequence[Queries],
    texts: Sequence[str],
) -> CriterionFindings:
    criterion, info = model.criteria[number], model.info
    positives, labelled = info.get("positives", {}), info.get("labelled", {})
    scores = info.get("out_of_fold", {}).get("per_criterion", {}).get(criterion.name, {})
    return CriterionFindings(
        number,
        readable(criterion.name),
        criterion.text,
        f"{positives[criterion.name]} of {labelled[criterion.name]}" if criterion.name in positives else "",
        short(scores["average_precision"]) if "average_precision" in scores else "",
        sum(post.verdicts[number].met for post in posts),
        tuple(_weightiest(number, model, posts, explanations)),
        tuple(_member(found, number, model, posts, texts) for found in queries),
    )


def _weightiest(
    criterion: int, model: FittedModel, posts: Sequence[Post], explanations: Sequence[Explanation]
) -> Iterator[Sentence]:
    """The sentences with the highest contribution to a criterion, each text once."""
    slope = float(model.calibration.slope[criterion])
    added = [(slope * value, post, row) for post, explanation in enumerate(explanations)
             for row, value in enumerate(explanation.contribution[:, criterion].tolist())]  # fmt: skip
    seen: set[str] = set()
    for value, post, row in sorted(added, key=lambda entry: (-entry[0], entry[1:])):
        found, text = mark(value), posts[post].pieces[row][1]
        if found is None or len(seen) == SHOWN_SENTENCES:
            return
        if text not in seen:
            seen.add(text)
            yield Sentence(text, post, posts[post].name, found.label, found.level)


def _member(found: Queries, criterion: int, model: FittedModel, posts: Sequence[Post], texts: Sequence[str]) -> Member:
    member = model.members[found.member]
    overlap = found.overlap[criterion]
    others = overlap - np.diag(np.full(len(overlap), np.inf))
    several = len(overlap) > 1
    queries = tuple(
        Query(
            row + 1,
            _overlap_text(others[row]) if several else "",
            tuple(_nearest(found, (criterion, row), posts, texts)),
        )
        for row in range(len(overlap))
    )
    mean = float(overlap[~np.eye(len(overlap), dtype=bool)].mean()) if several else 0.0
    return Member(
        f"Trial {member.trial}" if member.trial is not None else "Baseline",
        f"{100 * member.weight:.0f} %",
        f"{100 * mean:.0f} %" if several else "",
        queries,
    )


def _overlap_text(others: npt.NDArray[np.floating]) -> str:
    nearest = int(others.argmax())
    return f"shares {100 * float(others[nearest]):.0f} % with query {nearest + 1}"


def _nearest(found: Queries, query: tuple[int, int], posts: Sequence[Post], texts: Sequence[str]) -> Iterator[Sentence]:
    """The sentences nearest to a query, each text once."""
    seen: set[str] = set()
    hits = zip(found.post[query].tolist(), found.span[query].tolist(), found.similarity[query].tolist(), strict=True)
    for post, (start, end), similarity in hits:
        text = texts[post][start:end]
        if text not in seen and len(seen) < SHOWN_SENTENCES:
            seen.add(text)
            yield Sentence(text, post, posts[post].name, f"{similarity:.2f}")


# --- scores -----------------------------------------------------------------------------------------------------------


def _scores(info: Mapping[str, Any]) -> tuple[tuple[Score, ...], tuple[str, str]]:
    """The scores of the model and of the baselines, and the ends of the axis that they are drawn on."""
    named = [(candidate_text(str(info.get("fitted"))), info.get("score"), True)]
    for name, found in info.get("baselines", {}).items():
        exact = {**found, "interval": None} if name == "chance" else found  # chance is not estimated
        named.append((BASELINE_NAMES.get(name, name), exact, False))
    rows = [(name, found, is_model) for name, found, is_model in named if found is not None]
    if not rows:
        return (), ("", "")
    ends = [end for _, found, _ in rows for end in (found["value"], *(found["interval"] or ()))]
    low = math.floor(10 * min(ends)) / 10
    width = max(math.ceil(10 * max(ends)) / 10 - low, 0.1)
    scores = tuple(_score(capitalized(name), found, is_model, low, width) for name, found, is_model in rows)
    return scores, (short(low), short(low + width))


def _score(name: str, found: Mapping[str, Any], is_model: bool, low: float, width: float) -> Score:
    """A row; the axis starts at `low` and is `width` long."""
    interval = found["interval"]
    value, *ends = (round(100 * (end - low) / width, 2) for end in (found["value"], *(interval or ())))
    text = short(found["value"]) + ("" if interval is None else f" ({interval_text(interval)})")
    return Score(name, text, SCORE_KINDS.get(str(found["kind"]), ""), value, tuple(ends), is_model)
