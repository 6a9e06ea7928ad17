"""The baselines for any training and test rows, written in the most straightforward way.

*Linear* and *retrieval* are L2-regularised logistic regressions, one per criterion. Linear sees the mean embedding of a
post, and its C is chosen inside the training part. Retrieval sees the unit mean embedding and the similarities of the
nearest sentences to every criterion's text, all standardised on the training part, with fixed settings. *Zero-shot* is
the mean similarity of these sentences, and *chance* a random ranking.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sparse_evidence.core import metrics
from sparse_evidence.core.errors import SplitError
from sparse_evidence.core.features.bags import mean_embeddings
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.seeding import numpy_generator
from sparse_evidence.core.splits import kfold

METRIC = "average_precision"
C_OF_LINEAR = (0.3, 1.0, 3.0, 10.0)
INNER_FOLDS = 3
C_OF_RETRIEVAL, TOP_K, SIMILARITY_WEIGHT = 0.001, 3, 4.0

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int8]
Rows = npt.NDArray[np.int64]


def logits(features: EmbeddedCorpus, groups: Sequence[str], train: Rows, rows: Rows) -> dict[str, Floats]:
    """Logits, similarities or random numbers `[rows, criteria]` of every baseline, by name.

    Args:
        features: embeddings and labels of all posts.
        groups: the group of each post of `train`.
        train: the posts to fit.
        rows: the posts to predict.
    """
    shape = (len(features.labels), TOP_K + 1, features.labels.shape[1])
    return {
        "linear": linear(features, groups, train, rows),
        "retrieval": retrieval(features, train, rows),
        "zero_shot": similarities(features).reshape(shape)[rows, :TOP_K].mean(1),
        "chance": numpy_generator("chance", len(train)).random((len(rows), shape[2])),
    }


def linear(features: EmbeddedCorpus, groups: Sequence[str], train: Rows, rows: Rows) -> Floats:
    """Logits of the tuned linear baseline; the arguments are those of `logits`."""
    means, labels = mean_embeddings(features.embeddings, features.offsets), features.labels[train]
    return regress(means[train], labels, means[rows], _choose_c(means[train], labels, groups))


def retrieval(features: EmbeddedCorpus, train: Rows, rows: Rows) -> Floats:
    """Logits of the retrieval baseline."""
    means = mean_embeddings(features.embeddings, features.offsets)
    means = means / np.linalg.norm(means, axis=1, keepdims=True)
    inputs = np.concatenate([means, similarities(features)], axis=1)
    inputs = (inputs - inputs[train].mean(0)) / (inputs[train].std(0) + 1e-9)
    inputs[:, means.shape[1] :] *= SIMILARITY_WEIGHT
    return regress(inputs[train], features.labels[train], inputs[rows], C_OF_RETRIEVAL)


def similarities(features: EmbeddedCorpus) -> Floats:
    """Return per post and criterion the `TOP_K` highest cosines of a sentence with the criterion's text, and the mean.

    Shape `[posts, (TOP_K + 1) * criteria]`; of a post with fewer sentences the lowest is repeated.
    """
    criteria = features.criteria / np.linalg.norm(features.criteria, axis=1, keepdims=True)
    cosines = np.split(features.embeddings @ criteria.T, features.offsets[1:-1])
    rows = []
    for post in cosines:
        top = -np.sort(-post, axis=0)[:TOP_K]
        rows.append(np.concatenate([np.pad(top, ((0, TOP_K - len(top)), (0, 0)), mode="edge"), post.mean(0)[None]]))
    return np.stack(rows).reshape(len(rows), -1)


def regress(inputs: Floats, labels: Labels, new: Floats, strength: float) -> Floats:
    """Logits `[new, criteria]` of one regression per criterion with C = `strength`; every label is known."""
    from sklearn.linear_model import LogisticRegression

    regressions = (LogisticRegression(C=strength, max_iter=1000).fit(inputs, target) for target in labels.T)
    return np.stack([regression.decision_function(new) for regression in regressions], axis=1)


def _choose_c(inputs: Floats, labels: Labels, groups: Sequence[str]) -> float:
    """The C with the best mean score over folds of the training part; 1 if it cannot be split."""
    try:
        folds = kfold(groups, labels, INNER_FOLDS, 0, criteria=[str(column) for column in range(labels.shape[1])])
    except SplitError:
        return 1.0

    def value(strength: float) -> float:
        scores = []
        for fold in range(folds.count):
            train, rows = folds.train(fold), folds.validation(fold)
            logits = regress(inputs[train], labels[train], inputs[rows], strength)
            scores.append(metrics.score(METRIC, labels[rows], logits))
        return float(np.mean(scores))

    return max(C_OF_LINEAR, key=value)
