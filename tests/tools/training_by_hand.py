"""A training loop as a user would write it; run as a script, in a separate process.

    python training_by_hand.py DIRECTORY VARIANT [EPOCH ...]

Without epochs it trains undisturbed, keeping every epoch's checkpoint in DIRECTORY. With epochs it resumes from the
checkpoint of each, and writes the final state to DIRECTORY/resumed-EPOCH.safetensors.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from sparse_evidence.core import metrics
from sparse_evidence.core.classic import Trainer, create_loss_function, linear_warmup

EPOCHS = 5
VARIANTS = ("warm-up", "float16", "bfloat16", "plateau", "generator")


def rows(count=52, seed=0):
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=source)
    labels = (inputs[:, 0] + 0.5 * torch.randn(count, generator=source) > 0.5).float()
    labels[:2] = torch.tensor([0.0, 1.0])
    return inputs, labels


def network(seed=0, dropout=0.3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1))


def build(variant, directory):
    """(trainer, arguments of train)."""
    inputs, labels = rows()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = {
        "warm-up": lambda: linear_warmup(optimizer, 7),
        "float16": lambda: OneCycleLR(optimizer, 1e-2, total_steps=100),
        "bfloat16": lambda: StepLR(optimizer, 2),
        "plateau": lambda: ReduceLROnPlateau(optimizer, patience=0),
        "generator": lambda: None,
    }[variant]()
    generator = torch.Generator() if variant == "generator" else None
    if generator is not None:
        generator.seed()  # the trainer reseeds it
    trainer = Trainer(
        model=model,
        optimizer=optimizer,
        loss_fn=create_loss_function("focal", labels[:40]),
        gradient_accumulation_steps=2,
        use_amp=variant in {"float16", "bfloat16"},
        amp_dtype="float16" if variant == "float16" else "bfloat16",
        scheduler=scheduler,
        scheduler_interval="epoch" if variant == "bfloat16" else "step",
        early_stopping_metric="val_loss",
        checkpoint_dir=directory,
        save="every",
        progress=False,
    )
    train = DataLoader(TensorDataset(inputs[:40], labels[:40]), batch_size=6, shuffle=True, generator=generator)
    validation = DataLoader(TensorDataset(inputs[40:], labels[40:]), batch_size=5)
    return trainer, {
        "train_loader": train,
        "val_loader": validation,
        "num_epochs": EPOCHS,
        "metric_fn": metrics.f1_from_logits,
        "metric_name": "f1",
    }


def main(directory, variants, epochs):
    for variant in variants.split(","):
        folder = Path(directory) / variant
        if not epochs:
            trainer, arguments = build(variant, folder)
            trainer.train(**arguments)
        for epoch in epochs:
            torch.manual_seed(epoch)  # a new process has another random state
            trainer, arguments = build(variant, None)
            trainer.load_checkpoint(folder / f"epoch-{int(epoch):04d}.safetensors")
            trainer.train(**arguments)
            trainer.save_checkpoint(folder / f"resumed-{epoch}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], list(map(int, sys.argv[3:])))
