"""The participant level's steps for attribution: from a run on the model grid to a table, a map and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_app.adapters.attribution import ANSWER_METHODS, Attribution, Regions, attribute, reconstruction_errors
from bids_app.adapters.file import EMBEDDING, AdaptedModel, load_adapter
from bids_app.bids.derivatives import write_tsv
from bids_app.bids.names import as_label
from bids_app.catalog.atlases import Atlas, find_atlas
from bids_app.catalog.models import find_model, weights_path
from bids_app.catalog.templates import MODEL_SPACE
from bids_app.clips import MODEL_GRID_AFFINE, ClipReader, GridSeries, labels_to_model_grid
from bids_app.errors import BadDataError
from bids_app.outputs import name_run
from bids_app.preprocess.headers import load_nifti
from bids_app.preprocess.images import save_image
from bids_app.preprocess.preprocessed import PreprocessedRun
from bids_app.steps import Encoded, OnGrid, choose_device


@dataclass(frozen=True)
class Attributed:
    """What regions contribute to the answers about a run, by adapter (or model, for a reconstruction)."""

    atlas: Atlas
    found: dict[str, Attribution]


def attribute_run(
    grid: OnGrid,
    encoded: Encoded,
    model: str,
    adapters: Sequence[Path],
    method: str,
    atlas: str,
    device: str,
    threads: int,
    stamp: str,
    out_dir: Path,
) -> Attributed:
    """Attribute each adapter's answer, or the reconstruction; ``stamp`` tells when a file changed."""
    import torch

    from bids_app.model import load_model
    from bids_app.model.checkpoint import read_checkpoint
    from bids_app.model.mae import autoencoder_from

    torch.set_num_threads(threads)
    place, known = choose_device(device), find_atlas(atlas)
    regions = Regions(known.name, labels_to_model_grid(load_nifti(known.path)), known.names)
    reader = ClipReader(GridSeries.open(grid.folder))
    if method not in ANSWER_METHODS:
        autoencoder = autoencoder_from(read_checkpoint(weights_path(find_model(model)))).to(place).eval()
        name = as_label(str(encoded.facts["Model"]))
        return Attributed(known, {name: reconstruction_errors(autoencoder, reader, regions)})
    loaded = load_model(model, place)
    asked = [p for p in encoded.predictions if p.card.task != EMBEDDING]
    answers = {p.card.name: p.place for p in asked if not p.is_refused}
    found = {}
    for adapter in map(load_adapter, adapters):
        name = adapter.card.name
        if name in answers:
            found[name] = attribute(AdaptedModel(loaded, adapter), reader, regions, answers[name], method)
    if not asked:
        raise BadDataError(
            f"--attribution {method}: no adapter gives an answer to attribute.",
            "Give an --adapter, or ask for the attribution 'reconstruction'.",
        )
    return Attributed(known, found)


def attribution_outputs(
    attributed: Attributed,
    encoded: Encoded,
    preprocessed: PreprocessedRun,
    entities: Mapping[str, str],
    datasets: Mapping[str, Path],
    out_dir: Path,
) -> Path:
    """Lay out a table of regions, a map in the model's space, and a figure of it, for each answer."""
    from bids_app.reports.glass import plot_glass_brain

    names = name_run(out_dir / "tree", entities, datasets, [preprocessed.source])
    atlas = as_label(attributed.atlas.name)
    for name, found in attributed.found.items():
        described = describe_attribution(found, attributed.atlas, encoded)
        table = names.path("attribution", ".tsv", seg=atlas, desc=name)
        write_tsv(table, pd.DataFrame(found.columns()))
        names.sidecar(table, described)
        boldmap = names.path("boldmap", ".nii.gz", space=MODEL_SPACE, seg=atlas, desc=name)
        save_image(boldmap, found.image, MODEL_GRID_AFFINE, space_code=4)
        names.sidecar(boldmap, described)
        shown = nib.Nifti1Image(np.nan_to_num(found.image), MODEL_GRID_AFFINE)
        plot_glass_brain(shown, names.path("bold", ".png", "figures", desc=f"{name}attribution"), unit=found.measure)
    return names.tree


def describe_attribution(found: Attribution, atlas: Atlas, encoded: Encoded) -> dict[str, Any]:
    """What a table, or map, of attributions is."""
    facts = {key: encoded.facts[key] for key in ("Model", "WeightsSHA256", "Demonstration", "Device", "Threads")}
    return {
        **facts,
        "Atlas": atlas.title or atlas.name,
        "AtlasIsKnownCopy": atlas.is_known_copy,
        "Method": found.method,
        "Measure": found.measure,
        "Answer": found.answer,
        "Clips": list(found.clip_numbers),
        "RegionsWithoutToken": int((found.n_tokens == 0).sum()),
        "attribution": {
            "Description": "Fall of the answer when the region is held still (occlusion), what its voxels add to the "
            "answer (gradients), or how badly it is guessed from the rest (reconstruction); the mean over clips",
            "Units": found.measure,
        },
        "std": {"Description": "Standard deviation over clips", "Units": found.measure},
        "voxels": {"Description": "Voxels of 2 mm with signal"},
        "tokens": {"Description": "Tokens that belong to the region more than to another; at 0 it is not resolved"},
        "Disclaimer": "What this model reads, not what a region does; not a finding about a person.",
    }
