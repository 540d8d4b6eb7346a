"""Outputs of the attribution: a table of regions, a map in the model space, and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_app.adapters.attribution import Attribution, RunAttribution
from bids_app.adapters.predict import Encoded, ModelFacts
from bids_app.bids.entities import as_label
from bids_app.bids.writer import write_tsv
from bids_app.catalog.atlases import Atlas
from bids_app.catalog.templates import MODEL_SPACE
from bids_app.clips import MODEL_GRID_AFFINE
from bids_app.outputs.names import name_run
from bids_app.outputs.schema import AttributionSidecar
from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.preprocessed import PreprocessedRun


def attribution_outputs(
    attributed: RunAttribution,
    encoded: Encoded,
    preprocessed: PreprocessedRun,
    entities: Mapping[str, str],
    datasets: Mapping[str, Path],
    out_dir: Path,
) -> Path:
    """Write table, map and figure of each prediction; return the folder of the tree."""
    from bids_app.reports.figures.glass_brain import plot_glass_brain

    names = name_run(out_dir / "tree", entities, datasets, [preprocessed.source])
    atlas = as_label(attributed.atlas.name)
    for name, found in attributed.found.items():
        described = describe_attribution(found, attributed.atlas, encoded.facts)
        table = names.path("attribution", ".tsv", seg=atlas, desc=name)
        write_tsv(table, pd.DataFrame(found.columns()))
        names.sidecar(table, described)
        boldmap = names.path("boldmap", ".nii.gz", space=MODEL_SPACE, seg=atlas, desc=name)
        save_image(boldmap, found.image, MODEL_GRID_AFFINE, space_code=4)
        names.sidecar(boldmap, described)
        shown = nib.Nifti1Image(np.nan_to_num(found.image), MODEL_GRID_AFFINE)
        plot_glass_brain(shown, names.path("bold", ".png", "figures", desc=f"{name}attribution"), unit=found.measure)
    return names.tree


def describe_attribution(found: Attribution, atlas: Atlas, facts: ModelFacts) -> AttributionSidecar:
    """Make the sidecar of an attribution table or map."""
    return AttributionSidecar(
        model=facts.model,
        weights_sha256=facts.weights_sha256,
        demonstration=facts.demonstration,
        device=facts.device,
        threads=facts.threads,
        atlas=atlas.title or atlas.name,
        atlas_is_known_copy=atlas.is_known_copy,
        method=found.method,
        measure=found.measure,
        answer=found.target,
        mask_token=found.mask_token or None,
        hidden="all tokens that overlap the region, in all volumes" if found.mask_token else None,
        clips=found.clip_numbers,
        regions_without_token=int((found.n_tokens == 0).sum()),
        columns={
            "attribution": {
                "Description": "Decrease of the prediction when the region is replaced by its mean (occlusion), "
                "contribution of its voxels to the prediction (gradients), or reconstruction error from the rest of "
                "the brain (reconstruction); mean over clips",
                "Units": found.measure,
            },
            "std": {"Description": "Standard deviation over clips", "Units": found.measure},
            "voxels": {"Description": "Voxels of 2 mm with signal"},
            "tokens": {"Description": "Tokens assigned to the region; 0: the region is too small to be resolved"},
        },
        disclaimer="Shows what the model depends on, not the function of a region; not a finding about a person.",
    )
