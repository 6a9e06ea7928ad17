"""Running a study: claims, workers, pruning, checkpoints, supervision."""
