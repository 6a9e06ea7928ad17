"""Training one model by hand: data frames, loaders, loss modules, a trainer with early stopping."""
