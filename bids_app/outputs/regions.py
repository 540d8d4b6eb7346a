"""Outputs by region of an atlas: coverage, mean series, their correlations, and a figure of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.entities import as_label
from bids_app.bids.writer import write_tsv
from bids_app.catalog.atlases import Atlas
from bids_app.catalog.fetch import file_sha256
from bids_app.catalog.region_names import hemisphere_of, network_of, order_regions
from bids_app.catalog.templates import MODEL_SPACE
from bids_app.clips import GridSeries
from bids_app.errors import BadDataError
from bids_app.outputs.names import RunName, name_run
from bids_app.outputs.schema import CoverageSidecar, RelmatSidecar, TimeseriesSidecar
from bids_app.outputs.series import RESOLUTION
from bids_app.preprocess.preprocessed import OnGrid, PreprocessedRun
from bids_app.preprocess.regions import MIN_COVERAGE, NODE, RegionSeries, denoise_regions, extract_regions

STATISTICS = {
    "coverage": {"stat": "coverage", "suffix": "bold"},
    "series": {"stat": "mean", "suffix": "timeseries"},
    "correlations": {"stat": "pearsoncorrelation", "suffix": "relmat"},
}
"""Names of the tables, as those of XCP-D."""
FIGURE = "connectivity"
"""``desc-`` label of the figure, after the label of the atlas."""
DECIMALS = 6
"""Of correlations and shares."""
FLOAT32 = "%.9g"
"""Format that keeps all digits of a float32: fewer would change the correlations of a series with a large mean."""
NONE_LEFT_OUT = "None. No volume was censored for head motion."
DUMMIES_LEFT_OUT = "Non-steady-state volumes at the start. No volume was censored for head motion."
SCRUBBED = (
    "Non-steady-state volumes at the start, and volumes with head motion by the strategy of nilearn: they have no row, "
    "and do not count for the correlations."
)
GAPS = " The rows before and after them are more than one repetition time apart."


@dataclass(frozen=True)
class RegionTables:
    """What the sidecars of the tables of one atlas share."""

    names: RunName
    atlas: Atlas
    shared: dict[str, Any]

    def path(self, kind: str, extension: str = ".tsv") -> Path:
        """Return the path of a table of `STATISTICS`; create its folder."""
        label, entry = as_label(self.atlas.name), STATISTICS[kind]
        return self.names.path(entry["suffix"], extension, space=MODEL_SPACE, seg=label, stat=entry["stat"])


def region_outputs(
    grid: OnGrid,
    preprocessed: PreprocessedRun,
    atlases: Sequence[Atlas],
    denoise: str | None,
    figures: bool,
    entities: Mapping[str, str],
    datasets: Mapping[str, Path],
    stamp: str,
    out_dir: Path,
) -> Path:
    """Write the tables of each atlas, and figures of the correlations; return the folder of the tree.

    Parameters
    ----------
    grid, preprocessed
        Results of the steps.
    atlases : sequence of Atlas
    denoise : str, optional
        Strategy of nilearn; None: the preprocessed series.
    figures : bool
    entities, datasets : mapping
        Of the run; input datasets.
    stamp : str
        Changes when an atlas changes.
    out_dir : pathlib.Path
    """
    run = preprocessed
    names = name_run(out_dir / "tree", entities, datasets, [run.source, *run.echoes])
    names.tree.mkdir(exist_ok=True)
    series = GridSeries.open(grid.folder)
    for atlas in atlases:
        found = extract_regions(series, atlas, run.n_dummy, run.offset)
        tables = RegionTables(names, atlas, describe_atlas(found, atlas))
        problem = ""
        if not found.is_covered.any():
            problem = f"{run.source.name}: no region of {atlas.name} has data in at least half of its voxels."
        elif denoise:
            try:
                found = denoise_regions(found, run, denoise, out_dir)
            except BadDataError as error:
                problem = str(error)
        write_coverage(tables, found, problem)
        if not problem:
            write_region_series(tables, found, run, denoise)
            write_correlations(tables, found, run, denoise)
            if figures and found.is_covered.sum() > 1:  # one region correlates with itself only
                plot_correlations(tables, found, run)
    return names.tree


def describe_atlas(found: RegionSeries, atlas: Atlas) -> dict[str, Any]:
    """Return the fields of the sidecars that describe atlas and coverage."""
    return {
        "atlas": atlas.title or atlas.name,
        "atlas_sha256": file_sha256(atlas.path),
        "atlas_is_known_copy": atlas.is_known_copy,
        "space": MODEL_SPACE,
        "resolution": RESOLUTION,
        "min_coverage": MIN_COVERAGE,
        "regions_without_series": tuple(np.array(found.names)[~found.is_covered].tolist()),
    }


def write_coverage(tables: RegionTables, found: RegionSeries, problem: str) -> None:
    """Write the table of the regions; ``problem`` is why they have no series, if they have none."""
    table: dict[str, Any] = {"index": found.labels, "name": found.names}
    hemispheres, networks = map(hemisphere_of, found.names), map(network_of, found.names)
    table |= {"hemisphere": [side or "n/a" for side in hemispheres], "network": [name or "n/a" for name in networks]}
    table |= {"voxels": found.n_voxels, "covered": found.n_covered, "coverage": found.coverage.round(DECIMALS)}
    path = tables.path("coverage")
    write_tsv(path, table)
    columns = {
        "index": {"Description": "Label of the region in the atlas"},
        "name": {"Description": "Name of the region, and of its column in the other tables"},
        "hemisphere": {"Description": "Hemisphere in the name of the region; n/a if it has none"},
        "network": {"Description": "Network in the name of the region; n/a if it has none"},
        "voxels": {"Description": "Voxels of the region on the grid of 2 mm"},
        "covered": {"Description": "Voxels of the region in the brain of the template, with data of the run"},
        "coverage": {
            "Description": f"Share of the voxels with data; below {MIN_COVERAGE} the region is n/a in the other tables"
        },
    }
    sidecar = CoverageSidecar(**tables.shared, warnings=(problem,) if problem else None, columns=columns)
    tables.names.sidecar(path, sidecar)


def write_region_series(tables: RegionTables, found: RegionSeries, run: PreprocessedRun, strategy: str | None) -> None:
    """Write the table of the mean series: a row per volume, a column per region."""
    import pandas as pd

    path = tables.path("series")
    write_tsv(path, pd.DataFrame(found.values.astype(np.float32), columns=list(found.names)), FLOAT32)
    left_out = np.setdiff1d(np.arange(run.n_volumes), found.volumes)
    origin = run.origin.start_time if run.origin else None
    sidecar = TimeseriesSidecar(
        **tables.shared,
        statistic="mean",
        sampling_frequency=round(1 / run.tr, 9),
        repetition_time=run.tr,
        start_time=round(float(found.volumes[0]) * run.tr + (run.start_time or origin or 0.0), 6),
        n_volumes=len(found.volumes),
        left_out=tuple(left_out.tolist()),
        left_out_in_words=describe_left_out(left_out, run, strategy),
        columns={
            name: {"Description": f"Mean of region {label} of the atlas", "Units": "arbitrary"}
            for name, label in zip(found.names, found.labels, strict=True)
        },
        **describe_denoising(found, run, strategy),
    )
    confounds = [tables.names.locate("timeseries", ".tsv", desc="confounds")] if strategy else []
    tables.names.sidecar(path, sidecar, [*tables.names.sources, *confounds])


def describe_left_out(left_out: np.ndarray, run: PreprocessedRun, strategy: str | None) -> str:
    """Say which volumes have no row."""
    if not len(left_out):
        return NONE_LEFT_OUT
    if strategy != "scrubbing":
        return DUMMIES_LEFT_OUT
    kept = np.setdiff1d(np.arange(run.n_volumes), left_out)
    return SCRUBBED + (GAPS if (np.diff(kept) > 1).any() else "")


def describe_denoising(found: RegionSeries, run: PreprocessedRun, strategy: str | None) -> dict[str, Any]:
    """Return the fields of a sidecar about the denoising of the series, by this app or by the pipeline of the input."""
    from importlib.metadata import version

    by_pipeline = run.origin.pipeline if run.origin and run.origin.denoised else ""
    software = [by_pipeline] if by_pipeline else []
    software += [f"nilearn {version('nilearn')}"] if strategy else []
    return {
        "denoised": bool(software),
        "strategy": strategy,
        "software": ", then ".join(software) or None,
        "confounds": found.confounds if strategy else None,
    }


def write_correlations(tables: RegionTables, found: RegionSeries, run: PreprocessedRun, strategy: str | None) -> None:
    """Write the matrix of the correlations, with the names of the regions as its first column."""
    import pandas as pd

    matrix = pd.DataFrame(found.correlations.round(DECIMALS), columns=list(found.names))
    matrix.insert(0, NODE, found.names)
    path = tables.path("correlations")
    write_tsv(path, matrix)
    sidecar = RelmatSidecar(
        **tables.shared,
        measure="Pearson correlation",
        measure_in_words="Pearson correlation of the mean series of two regions over all rows of their table",
        weighted=True,
        directed=False,
        non_negative=False,
        valid_diagonal=True,
        storage_format="Full",
        n_volumes=len(found.volumes),
        denoised=is_denoised(found, run),
        strategy=strategy,
        columns={NODE: {"Description": "Name of the region of the row; the other columns have the same order"}},
    )
    tables.names.sidecar(path, sidecar, [tables.path("series")])


def is_denoised(found: RegionSeries, run: PreprocessedRun) -> bool:
    """Return whether confounds were regressed out, by this app or by the pipeline of the input."""
    return bool(found.confounds) or bool(run.origin and run.origin.denoised)


def plot_correlations(tables: RegionTables, found: RegionSeries, run: PreprocessedRun) -> None:
    """Plot the correlations of the regions that have a series, ordered by network or hemisphere."""
    from bids_app.reports.figures.connectivity import plot_connectivity

    shown = np.flatnonzero(found.is_covered)
    names = [found.names[index] for index in shown]
    order, blocks = order_regions(names)
    figure = tables.names.path("bold", ".svg", "figures", desc=f"{as_label(tables.atlas.name)}{FIGURE}")
    plot_connectivity(
        found.correlations[np.ix_(shown[order], shown[order])],
        [(block.name, block.size) for block in blocks],
        figure,
        title=f"{tables.atlas.name}: {len(shown)} of {len(found.labels)} regions, "
        f"{len(found.volumes)} volumes{', denoised' if is_denoised(found, run) else ', not denoised'}",
    )
