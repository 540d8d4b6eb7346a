"""Step that embeds a run and applies the adapters; a worker process loads the files once for all of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from bids_app.adapters.file import AdaptedModel
from bids_app.adapters.own_head import read_any_adapter
from bids_app.adapters.predict import Encoded, ModelFacts, encode_run
from bids_app.adapters.reconstruction import measure_reconstruction
from bids_app.catalog.cards import describe_model
from bids_app.catalog.models import find_model
from bids_app.clips import NORMALISATIONS, ClipReader, GridSeries
from bids_app.model.api import Model, load_model
from bids_app.model.checkpoint import Checkpoint, read_checkpoint
from bids_app.model.device import choose_device
from bids_app.model.scan import backend_in_use
from bids_app.preprocess.preprocessed import OnGrid


@dataclass(frozen=True)
class LoadedFiles:
    """Encoder and adapters on a device.

    Attributes
    ----------
    model : Model
    adapted : tuple of AdaptedModel
    checkpoint : Checkpoint
        Contents of the model's file.
    card : mapping
        Contents of the model card.
    """

    model: Model
    adapted: tuple[AdaptedModel, ...]
    checkpoint: Checkpoint
    card: dict[str, Any]


@lru_cache(maxsize=1)
def load_files(model: str, adapters: tuple[Path, ...], device: str, stamp: str) -> LoadedFiles:
    """Load encoder and adapters, once in each process until ``stamp`` changes, that is, a file."""
    loaded = load_model(model, device, with_head=False)  # a head of the file is applied as an adapter
    entry = find_model(model)
    adapted = tuple(AdaptedModel(loaded, read_any_adapter(path, entry)) for path in adapters)
    card = describe_model(entry, loaded.info) | {"Model": loaded.name, "Demonstration": loaded.demonstration}
    return LoadedFiles(loaded, adapted, read_checkpoint(loaded.path), card)


def encode(
    grid: OnGrid,
    model: str,
    adapters: Sequence[Path],
    device: str,
    threads: int,
    stamp: str,
    out_dir: Path,
) -> Encoded:
    """Embed the clips under both normalisations and apply the adapters; ``stamp`` changes when a file changes."""
    torch.set_num_threads(threads)
    chosen = choose_device(device)
    files = load_files(model, tuple(adapters), chosen, stamp)
    reader = ClipReader(GridSeries.open(grid.folder), files.model.config.img_size[3])
    embeddings, predictions = encode_run(files.model, files.adapted, reader, tuple(NORMALISATIONS), grid.signal)
    facts = ModelFacts(
        model=files.model.name,
        weights_sha256=files.model.weights_sha256,
        demonstration=files.model.demonstration or any(a.card.demonstration for a in files.adapted),
        device=chosen,
        scan_backend=backend_in_use(chosen),
        threads=threads,
    )
    reconstruction = measure_reconstruction(files.checkpoint, reader, chosen)
    return Encoded(embeddings, tuple(predictions), facts, card=dict(files.card), reconstruction=reconstruction)
