"""Training: one engine, stacked folds, cross-validation, early stopping, resumable state."""
