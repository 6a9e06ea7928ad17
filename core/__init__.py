"""Texts and tensors: corpus, features, folds, models, training. No Optuna, no database, no command line."""
