"""Arguments of ``neurostorm-train``: values from a recipe, and what follows from them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from bids_app.catalog.atlases import Atlas, find_atlas
from bids_app.training.optimiser import LoopSettings
from bids_app.training.recipes import PRETRAINING, find_recipe

LOCK = "running.json"
"""Name of the lock file in the training folder."""
LOCKED = "is training into this output"
"""What the owner of the lock does, for errors."""
PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed"}


def complete_from_recipe(arguments: argparse.Namespace, method: str) -> None:
    """Set the options that were not given to the values of the recipe, and note the others in ``changed``.

    Parameters
    ----------
    arguments : argparse.Namespace
    method : str
        What is trained: `PRETRAINING`, or a strategy of adaptation.
    """
    recipe = find_recipe(arguments.recipe)
    values = {
        "epochs": recipe.epochs[method],
        "learning_rate": recipe.learning_rates[method],
        "batch_size": recipe.batch_size,
        "normalisation": "global" if method == PRETRAINING else recipe.normalisation,
    }
    arguments.changed = [name for name, value in values.items() if getattr(arguments, name) not in (None, value)]
    for name, value in values.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)


def describe_recipe(arguments: argparse.Namespace, method: str) -> str:
    """Describe the recipe of a command and its changes: ``published, with learning_rate 0.001``."""
    recipe = find_recipe(arguments.recipe)
    changes = [f"{name} {getattr(arguments, name)}" for name in arguments.changed]
    if method == PRETRAINING:
        changes += ["no augmentation"] if arguments.no_augment else []
        changes += ["strd"] if arguments.strd and recipe.strd is None else []
        changes += ["no strd"] if arguments.strd is False and recipe.strd is not None else []
    elif recipe.balance and arguments.no_balance:
        changes.append("classes not weighted")
    changes += [f"accumulate {arguments.accumulate}"] if arguments.accumulate != 1 else []
    changes += [f"precision {arguments.precision}"] if arguments.precision != "float32" else []
    return f"{arguments.recipe}{', with ' + ', '.join(changes) if changes else ''}"


def loop_settings(arguments: argparse.Namespace) -> LoopSettings:
    """Return the settings of the training loop."""
    return replace(
        find_recipe(arguments.recipe).loop,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        accumulate=arguments.accumulate,
        seed=arguments.seed,
    )


def training_folder(output: Path) -> Path:
    """Return the folder for log and state, next to the output."""
    return output.with_suffix(".training")


def load_atlas_labels(name: str) -> tuple[Atlas, Any]:
    """Load an atlas by name or file, with its labels on the model grid."""
    from bids_app.clips import labels_to_model_grid
    from bids_app.preprocess.io.headers import load_nifti

    atlas = find_atlas(name)
    return atlas, labels_to_model_grid(load_nifti(atlas.path))
