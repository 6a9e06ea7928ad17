"""The same search as a plain Optuna script, as an experienced user would write it: the baseline for whole studies.

Embeddings are computed once and stored in a file, the folds are grouped, trials are shared through Postgres, every
epoch is reported and MedianPruner decides. Folds are trained one after the other with `benchmarks.reference`. The
process that finishes the last requested trial stops; the other still finishes its current trial. With a limit of CPU
time instead, each process finishes the trial that it began within the limit.

    python -m benchmarks.script STUDY URL NAME EMBEDDINGS.npz WORKER (--trials N | --cpu-seconds S)
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna.trial import TrialState
from torch.utils.data import DataLoader

from benchmarks import reference
from sparse_evidence.core.config import CandidateConfig, IrisConfig, TrainingConfig
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.losses import make_loss
from sparse_evidence.core.metrics import score
from sparse_evidence.core.models import prior_log_odds
from sparse_evidence.core.seeding import stable_seed
from sparse_evidence.core.splits import Folds
from sparse_evidence.hpo.running.sampler import short_seed
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.definition import StudyDefinition, load


def train_fold(
    candidate: CandidateConfig, corpus: EmbeddedCorpus, folds: Folds, fold: int, trial: optuna.Trial, seed: int
) -> float:
    """Train until the fold's own score has not improved for `patience` epochs; returns its best."""
    config, training = candidate.model, candidate.training
    assert isinstance(config, IrisConfig)
    train, validation = folds.train(fold), folds.validation(fold)
    torch.manual_seed(stable_seed(seed, "trial", trial.number, fold))
    prior = prior_log_odds(corpus.labels, [train])[0]
    model = reference.PairIris(config, torch.from_numpy(corpus.criteria), prior)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    elementwise = make_loss(candidate.loss, [torch.from_numpy(corpus.labels[train])])

    def loss_fn(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return elementwise(logits, targets.clamp(min=0))[..., targets >= 0].mean()

    criteria = corpus.labels.shape[1]
    batch = training.batch_size * criteria
    loader = DataLoader(reference.Pairs(corpus, train.tolist()), batch, shuffle=True, collate_fn=reference.collate)
    validation_pairs = reference.Pairs(corpus, validation.tolist())
    validation_loader = DataLoader(validation_pairs, batch, collate_fn=reference.collate)
    best, epochs_since_best = -np.inf, 0
    for epoch in range(training.epochs):
        reference.train_epoch(model, optimizer, loader, loss_fn, accumulation_steps=training.accumulation_steps)
        logits = reference.predict(model, validation_loader, criteria)
        value = score("average_precision", corpus.labels[validation], logits.numpy())
        trial.report(value, fold * training.epochs + epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
        best, epochs_since_best = (value, 0) if value > best else (best, epochs_since_best + 1)
        if epochs_since_best >= training.patience:
            break
    return float(best)


def evaluate(trial: optuna.Trial, definition: StudyDefinition, corpus: EmbeddedCorpus, folds: Folds) -> float:
    """One trial: the mean of the folds' best scores."""
    candidate = space.suggest(definition, trial)
    seed = definition.search.seed
    return float(np.mean([train_fold(candidate, corpus, folds, fold, trial, seed) for fold in range(folds.count)]))


def best_epoch(trial: optuna.trial.FrozenTrial, training: TrainingConfig, folds: int) -> int:
    """The mean over the folds of the epoch at which a complete trial's fold was best, from 1, rounded."""
    epochs = []
    for fold in range(folds):
        steps = range(fold * training.epochs, (fold + 1) * training.epochs)
        curve = [trial.intermediate_values[step] for step in steps if step in trial.intermediate_values]
        epochs.append(1 + int(np.argmax(curve)))
    return round(float(np.mean(epochs)))


def main() -> None:
    """Run trials of the shared study until it has enough, or until the time is up."""
    parser = argparse.ArgumentParser()
    for name in ("study", "url", "name", "embeddings", "worker"):
        parser.add_argument(name)
    limit = parser.add_mutually_exclusive_group(required=True)
    limit.add_argument("--trials", type=int)
    limit.add_argument("--cpu-seconds", type=float)
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = np.load(options.embeddings)
    corpus = EmbeddedCorpus(data["embeddings"], data["offsets"], data["criteria"], data["labels"])
    folds = Folds(data["assignment"], int(data["assignment"].max()) + 1)
    definition = load(Path(options.study))
    storage = optuna.storages.RDBStorage(options.url, engine_kwargs={"pool_pre_ping": True})
    sampler = optuna.samplers.TPESampler(seed=short_seed(definition.search.seed, "worker", options.worker))
    study = optuna.load_study(study_name=options.name, storage=storage, sampler=sampler)  # its pruner: MedianPruner
    ended = (TrialState.COMPLETE, TrialState.PRUNED)

    def stop_in_time(study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
        if time.process_time() >= options.cpu_seconds:
            study.stop()

    enough = optuna.study.MaxTrialsCallback(options.trials, states=ended) if options.trials else stop_in_time
    study.optimize(lambda trial: evaluate(trial, definition, corpus, folds), callbacks=[enough])


if __name__ == "__main__":
    main()
