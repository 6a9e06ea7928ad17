"""The source "synthetic": generated posts with planted evidence, identical on every platform; no text by real people.

Sentences are small templates: `{a|b|c}` stands for one of its alternatives. All randomness comes from
`random.Random.random`, the only method whose sequence Python guarantees across versions, and no calculation depends on
the platform's mathematics library.
"""

# ruff: noqa: E501 - the templates are data, one sentence per line

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Interval

from .data import Corpus, Criterion, Evidence
from .redsm5 import DEPRESSION


@dataclass(frozen=True)
class Topic:
    """A criterion, its prevalence, and templates for sentences that meet it or only seem to."""

    criterion: Criterion
    rate: float
    """Share of posts that meet it."""
    evidence: tuple[str, ...]
    decoys: tuple[str, ...]
    """Sentences that use the criterion's words without meeting it: denied, about someone else, or long past."""


_TEXTS: tuple[tuple[int, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        328,
        (
            "I {feel|have been feeling} {sad|empty|hopeless|miserable} {all day|almost every day|from morning to night}",
            "I {cry|break down in tears|end up crying} {for no reason|in the shower|before work} {most days|every night}",
            "{everything|my whole life|the world} {feels|looks} {grey|dark|bleak|hopeless} and it does not lift",
            "this {heavy sadness|emptiness|low mood} {sits on my chest|follows me around|never goes away}",
        ),
        (
            "I was {sad|miserable} for a day when {the show ended|our team lost}, but I am {fine|cheerful} again",
            "my {sister|neighbour|old boss} {looks sad|cries a lot|seems hopeless} and I try to cheer {her|them} up",
            "I would not say that I am {sad|hopeless|down}, my mood is {good|steady|all right}",
        ),
    ),
    (
        124,
        (
            "I {do not enjoy|get no pleasure from|have lost all interest in} {music|games|painting|seeing friends} any more",
            "{nothing|not even my hobbies|not one thing I used to love} {is fun|excites me|interests me} these days",
            "I {stopped|gave up} {playing guitar|going out|reading} because it {feels pointless|gives me nothing}",
        ),
        (
            "I {still enjoy|really love|look forward to} {music|games|painting|seeing friends} every {week|weekend}",
            "my {husband|roommate} has {lost interest in|stopped enjoying} {football|cooking}, which is his business",
        ),
    ),
    (
        44,
        (
            "I {have no appetite|can hardly eat|forget to eat} and {lost ten pounds|live on crackers|my clothes hang off me}",
            "I {cannot stop eating|eat until it hurts|binge every night} and {gained|put on} {fifteen|twenty} pounds",
        ),
        (
            "my {brother|cat|grandfather} {lost his appetite|hardly eats}, so we {called the vet|changed the menu}",
            "I eat {well|normally|three meals a day} and my weight {has not changed|is the same as ever}",
        ),
    ),
    (
        102,
        (
            "I {lie awake|stare at the ceiling|cannot fall asleep} until {three|four|five} {every night|night after night}",
            "I {sleep|stay asleep for} {fourteen|twelve|sixteen} hours and {still cannot get up|miss the whole day}",
            "I {wake up|jolt awake} {five times a night|at two every night} and {never get back to sleep|that is it}",
        ),
        (
            "I sleep {fine|well|like a log} these days, {eight hours|straight through} and no {waking up|tossing about}",
            "the {baby|dog} {wakes up at four|does not sleep through}, as {babies|animals} do",
        ),
    ),
    (
        35,
        (
            "I {move|walk|talk} {so slowly|as if through mud} that {people ask what is wrong|others have noticed}",
            "I {cannot sit still|pace up and down|keep wringing my hands} {for hours|all evening}, others {see it|stare}",
        ),
        (
            "the {children|puppies} {cannot sit still|run up and down} {all evening|for hours} when it rains",
            "the {bus|queue|new computer} moves so slowly that {people complain|I could have walked}",
        ),
    ),
    (
        124,
        (
            "I am {exhausted|worn out|drained} {all the time|every single day} even though I {do nothing|rest a lot}",
            "{taking a shower|doing the dishes|getting dressed} {takes all the energy I have|wears me out completely}",
            "I have {no energy|no strength|nothing left} for {anything|the smallest chore|even a phone call}",
        ),
        (
            "I was {tired|worn out} after {the marathon|moving house}, then I slept and had {my energy back|no trouble}",
            "my {coworker|mother} says that she is {exhausted|drained} after {every shift|the holidays}",
        ),
    ),
    (
        311,
        (
            "I am {a failure|worthless|a waste of space|a burden} and {everyone knows it|I ruin everything}",
            "I {hate|despise|am disgusted by} {myself|who I am|everything about me} for {what I have become|being weak}",
            "{it is all my fault|I let everybody down|I deserve none of this}, and the guilt {eats me up|never stops}",
            "{my family|everybody|my friends} would be better off with {someone else|anybody but me}, I am {useless|no good}",
        ),
        (
            "my {teacher|uncle} used to call {me|us} {useless|a failure}, and I {know that he was wrong|laugh about it now}",
            "the {printer|old car|new phone} is {worthless|useless|a waste of money} and {ruins everything|I regret it}",
            "I am {proud of myself|good at what I do} even when {things fail|people blame me}",
        ),
    ),
    (
        59,
        (
            "I {cannot concentrate|cannot focus|lose the thread} {for five minutes|on a single page|in any conversation}",
            "my {head|brain} is {full of fog|like cotton wool} and I {forget everything|cannot make the simplest decision}",
        ),
        (
            "my {memory|concentration} is {as good as ever|quite all right}, I {read|study} for hours",
            "my {grandmother|boss} {forgets|mixes up} {names|appointments}, which {is her age|we are used to}",
        ),
    ),
    (
        165,
        (
            "I {think about|keep thinking of|imagine} {killing myself|ending my life|not waking up} {every day|at night}",
            "I {wish I were dead|want to die|do not want to be alive any more}, and I {have a plan|wrote the note}",
            "I {tried to end my life|took the pills} {last month|again this spring} and {wish it had worked|nobody knows}",
        ),
        (
            "I have {never|not once} thought about {dying|ending my life|suicide}, that is not {me|what this is about}",
            "a {character|singer} in the {film|series} {wants to die|kills himself}, and {the ending|the plot} is weak",
            "that {exam|workout} nearly {killed me|was the death of me}, as my {friends|teammates} like to say",
        ),
    ),
    (
        92,
        (
            "I was {diagnosed with|hospitalised for} {bipolar disorder|borderline|ptsd} {last year|when I was twenty}",
            "my {therapist|psychiatrist} {raised my dose|changed my medication|put me on lithium} {last week|in March}",
            "I {cut|burn} {myself|my arms} when {it gets too much|nobody is at home}",
        ),
        (
            "my {cousin|flatmate} {sees a therapist|takes medication|was diagnosed with ptsd}, I {never|do not}",
            "I {cut|burned} my {finger|hand} {on a tin|while cooking}, nothing {serious|to worry about}",
        ),
    ),
    (
        240,
        (
            "I {worry|panic|am on edge} {about everything|all day long} and my heart {races|pounds} for no reason",
            "I have {panic attacks|waves of dread} {on the train|at the office|every morning} and {cannot breathe|shake}",
        ),
        (
            "my {dog|son} {panics|shakes} when {there are fireworks|the vet comes near}",
            "I was {nervous|on edge} before the {interview|exam}, as anybody would be, and it {passed|went well}",
        ),
    ),
    (
        150,
        (
            "I have {nobody to talk to|no friends left|not spoken to anyone for weeks} and {feel so alone|nobody calls}",
            "I {hide from everybody|stay in my room|cancel on everyone} because I {cannot face people|do not belong}",
        ),
        (
            "I {like|enjoy} being alone {on Sundays|with a book}, and {my friends|my sisters} call {often|all the time}",
            "my {neighbour|aunt} has {nobody to talk to|no friends left}, so we {bring her soup|drop by}",
        ),
    ),
)
_MORE = (
    Criterion("anxiety", "Anxiety: constant worry, panic attacks, a racing heart, feeling on edge."),
    Criterion("loneliness", "Loneliness: nobody to talk to, no friends, withdrawing from everyone."),
)
_HOME_POSTS = 1484

TOPICS: tuple[Topic, ...] = tuple(
    Topic(criterion, count / _HOME_POSTS, evidence, decoys)
    for criterion, (count, evidence, decoys) in zip((*DEPRESSION, *_MORE), _TEXTS, strict=True)
)
"""The ten criteria of ReDSM5 with their prevalences there, then two more."""

_LEADS = (
    "{Honestly|To be honest|If you ask me|As far as I can tell}, {and I have thought about this for a while|looking back}, ",
    "Ever since {I moved to this town|the new year|we came back from the coast|I changed jobs}, ",
    "{The thing is|What I wanted to say is|My point is|The short version is} that ",
    "When {the others are asleep|I come home from work|the weekend comes around|I look at the last few months}, ",
    "I do not know {if this is the right place|who else to ask|how to put this}, but ",
    "{Maybe it is the season|Maybe it is this town|It may not sound like much}, but ",
)
_TAILS = (
    ", and {that is how it has been|it has been going on} since {about the spring|the holidays|last autumn|I can remember}",
    ", which {my partner|my mother|a friend of mine} {pointed out|brought up} {the other day|over dinner|on the phone}",
    ", even though {everything else is as usual|the rest of the week was quiet|I told nobody about it until now}",
    ", so I {thought I would write it down|wanted to hear what you think|am putting it here for what it is worth}",
    ", {at least|or so it seems} {when I compare it with last year|as far as I can remember|going by my diary}",
)
_FILLER = (
    "the {bus|train|tram} was {late|full|cancelled} again and I {walked|waited|took the other line} {home|to work}",
    "we {cooked|ordered|tried} {pasta|curry|soup|dumplings} and {watched|talked about} {a film|the match|old photographs}",
    "my {manager|colleague|supervisor} {moved|cancelled|forgot} the {meeting|deadline|review} {again|without a word}",
    "the {weather|garden|view from here} has been {lovely|strange|grey|better} {this week|lately|since Monday}",
    "I {started|finished|returned} a {book|course|podcast} about {history|birds|bread|space travel}",
    "my {brother|sister|cousin} {is visiting|moved in|called} and {brought|told me about} {the children|a new job|cake}",
    "the {landlord|plumber|electrician} {promised|refused|forgot} to {fix|look at|replace} the {sink|heating|window}",
    "{school|college|the course} {starts|ends|goes on} {next week|in June|soon} and there is {a lot to read|one exam left}",
    "I {bought|sold|repaired} a {bicycle|camera|desk|keyboard} for {less than I thought|forty pounds|a friend}",
    "our {dog|cat|parrot} {learned|refuses} to {open doors|stay off the table|come when called}",
    "{somebody|a man|a woman} at the {shop|library|gym} {asked|told} me {the way|about the sale|to move my bag}",
    "I {updated|lost|backed up} my {phone|laptop|notes} and {everything works|half the pictures are gone|it took hours}",
    "they {changed|closed|painted} the {café|office|playground} {on the corner|across the street|where we used to meet}",
    "I {have to|ought to|want to} {fill in|send off|look for} the {forms|tickets|papers} for {the move|the trip|taxes}",
    "the {update|new season|last episode} was {better than I expected|too long|fine}, and {the music helped|so it goes}",
    "my {roommate|neighbour} {practises the drums|vacuums|sings} {at six in the morning|on Sundays|through the wall}",
    "I was {annoyed|surprised|amused} that the {parcel|letter|bill} {went to the wrong house|took three weeks}",
    "we {drove|cycled|walked} to the {lake|market|museum} and it {rained|was crowded|was worth it}",
    "{this is a new account|I have read this forum for years|English is not my first language}, so {bear with me|sorry}",
    "I {play|watch|coach} {football|chess|tennis} with {people from work|my old school friends} {on Tuesdays|twice a month}",
)
_ENDS = (".", ".", ".", ".", ".", ".", "!", "...")

# Quantiles of the number of sentences per post, with linear interpolation: a few posts are very long.
_LENGTHS = ((0.0, 3.0), (0.25, 7.0), (0.5, 11.0), (0.75, 17.0), (0.9, 27.0), (0.97, 40.0), (1.0, 60.0))
_MEAN_LENGTH = 14.145
_DECOY_RATE = 0.06
_SLOT = re.compile(r"\{([^}]*)\}")


@dataclass(frozen=True)
class SyntheticSource:
    """Generated posts with planted evidence, similar in size and prevalence to ReDSM5; for tests and benchmarks."""

    source: Literal["synthetic"] = "synthetic"
    posts: Annotated[int, Interval(ge=20, le=1_000_000)] = 1484
    """Number of posts."""
    criteria: Annotated[int, Interval(ge=1, le=len(TOPICS))] = 10
    """Number of criteria."""
    seed: int = 0
    """Seed of the generator; the same settings give the same posts."""
    sentences_mean: Annotated[float, Interval(ge=3, le=200)] = 14.0
    """Mean number of sentences per post; lengths range from 3 to about four times this."""
    min_positives: Annotated[int, Interval(ge=1)] = 10
    """Minimum number of posts that meet each criterion (but at most half of the posts), so that small studies can be
    split into folds."""

    def load(self, base: Path) -> Corpus:  # noqa: ARG002 - all sources have the same interface
        """Return the corpus; the same fields give the same corpus on every machine."""
        return generate(
            posts=self.posts,
            criteria=self.criteria,
            seed=self.seed,
            sentences_mean=self.sentences_mean,
            min_positives=self.min_positives,
        )


def generate(*, posts: int, criteria: int, seed: int, sentences_mean: float, min_positives: int) -> Corpus:
    """Return a corpus of generated posts; one to three sentences of evidence support each positive label.

    Each criterion is met by exactly `max(round(rate * posts), min(min_positives, posts // 2))` posts. The same
    arguments give the same corpus.

    Args:
        posts: number of posts.
        criteria: number of criteria, the first of `TOPICS`.
        seed: seed of all random choices.
        sentences_mean: mean number of sentences per post.
        min_positives: minimum number of posts that meet each criterion.
    """
    assert 1 <= criteria <= len(TOPICS)
    rng = random.Random(seed)
    topics = TOPICS[:criteria]
    users = _users(rng, posts)
    labels = _labels(rng, users, topics, min_positives)
    grammar = _Grammar(rng)
    texts, evidence = [], []
    for row in range(posts):
        text, spans = _post(rng, grammar, topics, labels[row], sentences_mean)
        texts.append(text)
        evidence += [Evidence(row, criterion, start, end) for criterion, start, end in spans]
    return Corpus(
        name="synthetic",
        post_ids=tuple(f"s_{user}_{row}" for row, user in enumerate(users)),
        posts=tuple(texts),
        criteria=tuple(topic.criterion for topic in topics),
        labels=labels,
        groups=tuple(f"user-{user}" for user in users),
        evidence=tuple(evidence),
        notes=(f"{posts} generated posts by {len(set(users))} generated users, seed {seed}",),
    )


class _Grammar:
    """Expands templates; each template is parsed only once."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._parsed: dict[str, list[list[str]]] = {}

    def expand(self, template: str) -> str:
        parts = self._parsed.get(template)
        if parts is None:
            # Splitting by a pattern with a group alternates text, slot, text, slot, …, text.
            pieces = _SLOT.split(template)
            parts = [piece.split("|") if index % 2 else [piece] for index, piece in enumerate(pieces)]
            self._parsed[template] = parts
        return "".join(part[0] if len(part) == 1 else _pick(self._rng, part) for part in parts)

    def sentence(self, core: str) -> str:
        """Return a sentence around `core`; with its lead and tail, evidence is only a part of it."""
        lead = self.expand(_pick(self._rng, _LEADS)) if self._rng.random() < 0.73 else ""
        tail = self.expand(_pick(self._rng, _TAILS)) if self._rng.random() < 0.73 else ""
        text = lead + self.expand(core) + tail + _pick(self._rng, _ENDS)
        return text[0].upper() + text[1:]


def _pick(rng: random.Random, items: Sequence[str]) -> str:
    return items[int(rng.random() * len(items))]


def _users(rng: random.Random, posts: int) -> list[int]:
    """Return the user number of each post: two users in three wrote one post, the others two to six."""
    users: list[int] = []
    user = 0
    while len(users) < posts:
        user += 1
        count = 1 if rng.random() < 2 / 3 else 2 + int(rng.random() * 5)
        users += [user] * min(count, posts - len(users))
    return users


def _labels(rng: random.Random, users: list[int], topics: Sequence[Topic], min_positives: int) -> npt.NDArray[np.int8]:
    """Return labels [posts, criteria] with exact counts; users with a higher severity meet more criteria."""
    posts = len(users)
    severity = {user: 0.5 + 0.5 * rng.random() for user in dict.fromkeys(users)}
    labels = np.zeros((posts, len(topics)), dtype=np.int8)
    for column, topic in enumerate(topics):
        exact = int(topic.rate * posts + 0.5)
        count = max(exact, min(min_positives, posts // 2))
        ranks = [(severity[user] * rng.random(), row) for row, user in enumerate(users)]
        labels[[row for _, row in sorted(ranks, reverse=True)[:count]], column] = 1
    return labels


def _post(
    rng: random.Random,
    grammar: _Grammar,
    topics: Sequence[Topic],
    labels: npt.NDArray[np.int8],
    sentences_mean: float,
) -> tuple[str, list[tuple[int, int, int]]]:
    """Return the text of one post, and (criterion, start, end) of every sentence of evidence in it."""
    planted: list[tuple[int | None, str]] = []
    for criterion, topic in enumerate(topics):
        if labels[criterion]:
            chance = rng.random()
            times = 1 if chance < 0.75 else 2 if chance < 0.95 else 3
            planted += [(criterion, _pick(rng, topic.evidence)) for _ in range(times)]
        elif rng.random() < _DECOY_RATE:
            planted.append((None, _pick(rng, topic.decoys)))
    length = max(_length(rng.random(), sentences_mean), len(planted) + 1)
    planted += [(None, _pick(rng, _FILLER)) for _ in range(length - len(planted))]
    _shuffle(rng, planted)
    text, spans = "", []
    for criterion_or_none, core in planted:
        if text:
            text += "\n\n" if rng.random() < 0.1 else " "
        start = len(text)
        text += grammar.sentence(core)
        if criterion_or_none is not None:
            spans.append((criterion_or_none, start, len(text)))
    return text, spans


def _shuffle(rng: random.Random, items: list[tuple[int | None, str]]) -> None:
    # Python does not guarantee that random.shuffle stays the same.
    for last in range(len(items) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        items[last], items[other] = items[other], items[last]


def _length(share: float, mean: float) -> int:
    """Return the number of sentences at the quantile `share` (0 to 1) of all posts."""
    for (low, shortest), (high, longest) in pairwise(_LENGTHS):
        if share <= high:
            between = shortest + (longest - shortest) * (share - low) / (high - low)
            return max(3, int(between * mean / _MEAN_LENGTH + 0.5))
    raise AssertionError(f"{share} is not a share")
