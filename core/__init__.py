"""Texts and tensors: corpus, chunks, embeddings, folds, models, training. Knows nothing of Optuna or databases."""
