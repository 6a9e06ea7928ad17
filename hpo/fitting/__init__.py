"""From a study's result to a fitted model: what to train, the training itself, and the model card."""
