"""The corpora of `benchmarks.worth`: for every repeat a study to run, and where there is one, a test set.

All searches are the quickstart study's, on other data. The repeats of a corpus differ in seeds, folds and hold-out, and

* editorials: in nothing else; there is no test set;
* films: in their documents, assembled from one pool of sentences (`benchmarks.films`), half of which are for testing;
  the searches do not see which sentences meet a criterion (editorials and home have such marks);
* home: in their posts, drawn from one pool of generated posts by whole users; all other posts are for testing. Posts
  are fewer and shorter than in `home.toml`, so that a repeat takes minutes.

Training and test texts of all repeats come from pools, so that every embedding is computed once (`prepare`).
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import films
from benchmarks.variants import write_variant
from sparse_evidence.core.config import DEFAULT_ENCODER, ChunksConfig
from sparse_evidence.core.corpus import synthetic
from sparse_evidence.core.corpus.data import Corpus
from sparse_evidence.core.corpus.editorials import EditorialsSource
from sparse_evidence.core.features.chunks import chunk
from sparse_evidence.core.features.embeddings import embed
from sparse_evidence.core.features.encoders import locate
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.seeding import numpy_generator

SEARCH = Path(__file__).parents[1] / "studies" / "quickstart.toml"
SCRIPT_SEARCH = Path(__file__).with_name("script.toml")
"""What the plain script searches."""

FILMS = (500, 3000)
"""Training documents, of which a fifth is the hold-out, as in the demo, and test documents."""
HOME_POOL = synthetic.SyntheticSource(posts=3000, sentences_mean=8)
HOME_TRAINING_POSTS = 700
"""So many that every fold has a positive of the rarest criterion."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Case:
    """One repeat on one corpus."""

    study: Path
    script: Path
    """The study file of the plain script: the same data, splits, number of trials and seed."""
    test: Corpus | None
    """Posts that neither search sees; None: the true worth is measured on fresh splits."""
    pool: tuple[str, ...]
    """Texts among which are all chunks of `test`."""


def make_case(
    corpus: str, repeat: int, folder: Path, *, trials: int, permuted: bool = False, training: int | None = None
) -> Case:
    """Write the study files of a repeat and the table that they read into `folder`.

    Args:
        corpus: a name in `CORPORA`.
        repeat: number of the repeat, which seeds everything.
        folder: an empty folder.
        trials: trials of the search.
        permuted: exchange the labels of the posts at random, so that there is nothing to find.
        training: number of training posts; default: the corpus's own.
    """
    train, test, pool = CORPORA[corpus](repeat, training)
    if permuted:
        train = permute_labels(train, repeat)
    data = {"source": '"editorials"'}
    if permuted or test is not None:
        write_pairs(train, folder / "posts.csv")
        data = {"source": '"pairs"', "path": '"posts.csv"'}
    changes = {
        "": {"name": f'"{corpus}-{repeat}"'},
        "data": data,
        "split": {"seed": str(repeat)},
        "search": {"trials": str(trials), "seed": str(repeat)},
    }
    study, script = (
        write_variant(path, folder / f"{name}.toml", changes)
        for path, name in ((SEARCH, "study"), (SCRIPT_SEARCH, "script"))
    )
    return Case(study, script, test, pool)


def _editorials(repeat: int, training: int | None) -> tuple[Corpus, None, tuple[str, ...]]:  # noqa: ARG001
    return EditorialsSource().load(Path()), None, ()


def _films(repeat: int, training: int | None) -> tuple[Corpus, Corpus, tuple[str, ...]]:
    pool = films.sentences()
    lengths = films.editorial_lengths()
    train, test = films.assemble(pool, lengths, seed=repeat, training=training or FILMS[0], test=FILMS[1])
    return replace(train, evidence=()), test, _chunks(pool.texts)


def _home(repeat: int, training: int | None) -> tuple[Corpus, Corpus, tuple[str, ...]]:
    pool = _home_pool()
    rows = draw_groups(pool, training or HOME_TRAINING_POSTS, repeat)
    rest = np.setdiff1d(np.arange(len(pool)), rows)
    return take(pool, rows), take(pool, rest), _chunks(pool.posts)


CORPORA = {"editorials": _editorials, "films": _films, "home": _home}


@cache
def _home_pool() -> Corpus:
    return HOME_POOL.load(Path())


@cache
def _chunks(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The distinct chunks of some texts; lines that are joined have the same chunks as before."""
    return tuple(dict.fromkeys(chunk(texts, ChunksConfig()).texts))


def draw_groups(corpus: Corpus, count: int, seed: int) -> Rows:
    """Return the rows of at least `count` posts, drawn group by group, in order."""
    sizes = Counter(corpus.groups)
    names = list(sizes)
    chosen: set[str] = set()
    total = 0
    for number in numpy_generator(seed, "groups").permutation(len(names)).tolist():
        if total >= count:
            break
        chosen.add(names[number])
        total += sizes[names[number]]
    return np.flatnonzero([group in chosen for group in corpus.groups])


def take(corpus: Corpus, rows: Rows) -> Corpus:
    """Return the posts `rows` of a corpus, in that order, with their evidence."""
    new = {old: row for row, old in enumerate(rows.tolist())}
    return replace(
        corpus,
        post_ids=tuple(corpus.post_ids[row] for row in new),
        posts=tuple(corpus.posts[row] for row in new),
        labels=corpus.labels[rows],
        groups=tuple(corpus.groups[row] for row in new),
        evidence=tuple(replace(item, post=new[item.post]) for item in corpus.evidence if item.post in new),
        notes=(),
    )


def permute_labels(corpus: Corpus, seed: int) -> Corpus:
    """Return the corpus with its rows of labels in another order, without evidence."""
    order = numpy_generator(seed, "permuted labels").permutation(len(corpus))
    return replace(corpus, labels=corpus.labels[order], evidence=())


def write_pairs(corpus: Corpus, path: Path) -> None:
    """Write a corpus as a table that the source "pairs" reads; a pair with more evidence has more rows.

    A corpus without evidence has no column for it.
    """
    passages: dict[tuple[int, int], list[str]] = {}
    for item in corpus.evidence:
        passages.setdefault((item.post, item.criterion), []).append(corpus.posts[item.post][item.start : item.end])
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        columns = ["post_id", "post", "group", "criterion", "criterion_text", "label", *["evidence"] * bool(passages)]
        writer.writerow(columns)
        for row, (post_id, post, group) in enumerate(zip(corpus.post_ids, corpus.posts, corpus.groups, strict=True)):
            for column, criterion in enumerate(corpus.criteria):
                writer.writerows(
                    [post_id, post, group, criterion.name, criterion.text, corpus.labels[row, column], passage][
                        : len(columns)
                    ]
                    for passage in passages.get((row, column), [""])
                )


def embed_test(case: Case) -> EmbeddedCorpus:
    """Embed the test posts of a case, looking their chunks up among those of its pool."""
    assert case.test is not None
    encoder = locate(DEFAULT_ENCODER)
    row_of = {text: row for row, text in enumerate(case.pool)}
    chunks = chunk(case.test.posts, ChunksConfig())
    vectors = embed(case.pool, encoder).vectors[[row_of[text] for text in chunks.texts]]
    criteria = embed(tuple(criterion.text for criterion in case.test.criteria), encoder).vectors
    return EmbeddedCorpus(vectors, chunks.offsets, criteria, case.test.labels)


def prepare(corpora: tuple[str, ...]) -> None:
    """Download the data and embed every text of the corpora, so that their repeats need neither network nor encoder.

    Raises:
        UserError: the data cannot be downloaded, or the cache cannot be written.
    """
    encoder = locate(DEFAULT_ENCODER)
    for name in corpora:
        train, _, pool = CORPORA[name](0, None)
        for texts in (pool or chunk(train.posts, ChunksConfig()).texts, tuple(item.text for item in train.criteria)):
            done = embed(texts, encoder)
            print(f"{name}: {len(texts)} texts, {done.computed} of them embedded now")
