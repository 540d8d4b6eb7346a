"""Outputs of the attribution: a table of regions, a map in the model space, and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_app.adapters.attribution import Attribution, RunAttribution
from bids_app.adapters.attribution_control import PERMUTED, RANDOM
from bids_app.adapters.predict import Encoded, ModelFacts
from bids_app.bids.entities import as_label
from bids_app.bids.writer import write_tsv
from bids_app.catalog.atlases import Atlas
from bids_app.catalog.templates import MODEL_SPACE
from bids_app.clips import MODEL_GRID_AFFINE, GridSeries
from bids_app.outputs.names import name_run
from bids_app.outputs.schema import AttributionSidecar
from bids_app.outputs.viewer import write_viewer_contributions
from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.preprocessed import OnGrid, PreprocessedRun

CONTROL_TITLES = {RANDOM: "control: random weights", PERMUTED: "control: permuted labels"}
"""Titles of the maps of controls."""
CONTROLS_IN_WORDS = {
    RANDOM: "The same method with random weights in the whole encoder, and of an autoencoder in its decoder; the head "
    "of the adapter is kept.",
    PERMUTED: "The same method with a linear head drawn from the distribution of heads trained with permuted labels. "
    "The training data are not part of the adapter: the distribution is derived from the covariance of the cohort's "
    "embeddings in the adapter's file.",
}
"""Description of controls."""
TABLE_COLUMNS = {
    "attribution": {
        "Description": "Decrease of the prediction when the region is replaced by its mean (occlusion), contribution "
        "of its voxels to the prediction (gradients), or reconstruction error from the rest of the brain "
        "(reconstruction); mean over clips. Positive values are listed first, then negative ones, each by size; n/a "
        "for regions of the atlas without a voxel with signal"
    },
    "std": {"Description": "Standard deviation over clips; n/a with one clip"},
    "voxels": {"Description": "Voxels of 2 mm with signal"},
    "tokens": {"Description": "Tokens assigned to the region; 0: the region is too small to be resolved"},
}
"""Descriptions of the columns of the table; the first two have the unit of the measure."""
CONTROL_COLUMNS = {
    "control": {"Description": "As attribution, in the control"},
    "z": {
        "Description": "Attribution divided by its root mean square over heads of permuted labels; n/a for regions "
        "without a token (permuted-label control of an occlusion)"
    },
    "p": {
        "Description": "Share of heads of permuted labels whose largest absolute z over all regions reaches that of "
        "the region, so that it is corrected for the number of regions; n/a for regions without a token "
        "(permuted-label control of an occlusion)"
    },
}
"""Descriptions of the columns of a control."""


def attribution_outputs(
    attributed: RunAttribution,
    encoded: Encoded,
    preprocessed: PreprocessedRun,
    grid: OnGrid,
    entities: Mapping[str, str],
    datasets: Mapping[str, Path],
    out_dir: Path,
) -> Path:
    """Write table, map, figures and data of the viewer of each prediction; return the folder of the tree."""
    from bids_app.reports.figures.contributions import plot_contributions
    from bids_app.reports.figures.glass_brain import plot_glass_brains

    names = name_run(out_dir / "tree", entities, datasets, [preprocessed.source])
    series = GridSeries.open(grid.folder)
    atlas = as_label(attributed.atlas.name)
    for name, found in attributed.found.items():
        described = describe_attribution(found, attributed.atlas, encoded.facts)
        table = names.path("attribution", ".tsv", seg=atlas, desc=name)
        write_tsv(table, pd.DataFrame(found.columns()))
        names.sidecar(table, described)
        boldmap = names.path("boldmap", ".nii.gz", space=MODEL_SPACE, seg=atlas, desc=name)
        save_image(boldmap, found.image, MODEL_GRID_AFFINE, space_code=4)
        names.sidecar(boldmap, described)
        maps = {"": found.image}
        if found.control is not None:
            maps = {"model": found.image, CONTROL_TITLES[found.control.kind]: found.control.image}
        shown = {title: nib.Nifti1Image(np.nan_to_num(image), MODEL_GRID_AFFINE) for title, image in maps.items()}
        plot_glass_brains(shown, names.path("bold", ".png", "figures", desc=f"{name}attribution"), unit=found.measure)
        figure = names.path("bold", ".svg", "figures", desc=f"{name}contributions")
        title = f"Contributions of regions: {found.target or name}"
        plot_contributions(pd.DataFrame(found.columns()), figure, title=title, unit=found.measure)
        write_viewer_contributions(names, name, found, attributed.atlas, series)
    return names.tree


def describe_attribution(found: Attribution, atlas: Atlas, facts: ModelFacts) -> AttributionSidecar:
    """Make the sidecar of an attribution table or map."""
    control = found.control
    correlations = control.correlations(found.mean, found.n_voxels > 0) if control else (None, None)
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
        unresolved_regions=found.without_token,
        regions_outside=found.outside or None,
        control=control.kind if control else None,
        control_in_words=CONTROLS_IN_WORDS[control.kind] if control else None,
        control_heads=len(control.heads) or None if control else None,
        control_correlation=correlations[0],
        control_correlation_of_sizes=correlations[1],
        columns={
            **{name: {**TABLE_COLUMNS[name], "Units": found.measure} for name in ("attribution", "std")},
            **{name: TABLE_COLUMNS[name] for name in ("voxels", "tokens")},
            **(CONTROL_COLUMNS if control else {}),
        },
        disclaimer="Shows what the model depends on, not the function of a region; not a finding about a person.",
    )
