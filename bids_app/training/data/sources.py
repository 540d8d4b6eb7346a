"""Preparation of a clip store from preprocessed BOLD series, resampled to the model grid.

A series is ``*_space-<template>_desc-preproc_bold.nii.gz``, from fMRIPrep or from neurostorm with ``--output-spaces``.
"""

from __future__ import annotations

import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import nibabel as nib
import numpy as np

from bids_app.bids.entities import join_name, natural_key, split_name
from bids_app.bids.full_disk import says_full
from bids_app.bids.sidecars import Inheritance, read_json
from bids_app.catalog import templates
from bids_app.clips import series_from_image
from bids_app.errors import BadDataError, NeurostormError, NoInputError, NoMatchError, UsageError
from bids_app.files import MAX_CONFOUNDS_BYTES, read_rows
from bids_app.preprocess.io.headers import check_size, load_nifti, unreadable
from bids_app.training.data.store import ClipStore, Scan

log = logging.getLogger(__name__)
MAX_SECONDS = 1e6
"""Limit of repetition and start times, s."""
BOLD_PATTERN = "**/*_space-*_desc-preproc_bold.nii.gz"
DERIVATIVE_ENTITIES = ("space", "res", "desc")
SERIES_HINT = "Run neurostorm with --output-spaces MNI152NLin6Asym, or give a derivatives dataset of fMRIPrep."
CONFOUNDS = (
    "framewise_displacement",
    "std_dvars",
    "dvars",
    "rmsd",
    "trans_x",
    "trans_y",
    "trans_z",
    "rot_x",
    "rot_y",
    "rot_z",
    "csf",
    "white_matter",
    "global_signal",
)
"""Confounds whose mean and standard deviation are stored for the baseline of motion and confounds."""


@dataclass(frozen=True)
class Series:
    """Preprocessed BOLD series of a run.

    Attributes
    ----------
    name : str
        Name of the run, without the entities of preprocessing.
    bold : Path
    entities : dict of str to str
    """

    name: str
    bold: Path
    entities: dict[str, str]


def find_series(dataset: Path) -> list[Series]:
    """Find one preprocessed series per run in a supported space.

    Runs in several spaces: the first space in the catalog is used; several resolutions: 2 mm, as the model grid.
    """
    known = list(templates.catalog())
    best: dict[str, tuple[tuple[int, bool, str], Series]] = {}
    seen = set()
    for bold in dataset.glob(BOLD_PATTERN):
        entities = split_name(bold.name)[0]
        seen.add(entities["space"])
        if entities["space"] in known and "sub" in entities:
            own = {k: v for k, v in entities.items() if k not in DERIVATIVE_ENTITIES}
            found = Series(join_name(own, "").removesuffix("_"), bold, entities)
            rank = (known.index(entities["space"]), entities.get("res") not in ("2", "02"), bold.name)
            if found.name not in best or rank < best[found.name][0]:
                best[found.name] = (rank, found)
    if seen and not best:
        raise UsageError(
            f"{dataset}: unsupported space: {', '.join(sorted(seen))}.",
            f"Use one of {', '.join(known)}.",
        )
    if not best:
        raise NoMatchError(f"{dataset}: no *_desc-preproc_bold.nii.gz in a template space.", SERIES_HINT)
    return [best[name][1] for name in sorted(best, key=natural_key)]


def prepare(
    dataset: Path,
    store: ClipStore,
    n_procs: int = 1,
    shard: tuple[int, int] = (0, 1),
    report: Callable[[str], None] | None = None,
) -> list[Scan]:
    """Add the preprocessed series of a dataset to a clip store.

    Parameters
    ----------
    dataset : Path
        Derivatives; brain masks and confounds are read from the folders of the series.
    store : ClipStore
        Existing scans are kept, so an interrupted preparation can be resumed.
    n_procs : int
        Parallel processes.
    shard : tuple of int
        Part of the dataset to prepare and number of parts, if several processes fill one store.
    report : callable, optional
        Receives a message for each omitted series, with the reason.

    Returns
    -------
    list of Scan
        Scans of this part.

    Raises
    ------
    NoMatchError
        The dataset has no series, or all series are unusable.
    UsageError
        All series are in unsupported spaces.
    """
    wanted = find_series(dataset)[shard[0] :: shard[1]]
    missing = [found for found in wanted if found.name not in store]
    if n_procs > 1 and len(missing) > 1:
        with ProcessPoolExecutor(min(n_procs, len(missing)), mp_context=get_context("spawn")) as pool:
            reasons = list(pool.map(_prepare_or_reason, missing, [store] * len(missing)))
    else:
        reasons = [_prepare_or_reason(found, store) for found in missing]
    reasons = [reason for reason in reasons if reason]
    for reason in reasons:
        (report or log.warning)(f"omitted: {reason}")
    scans = [store[found.name] for found in wanted if found.name in store]
    if wanted and not scans:
        raise NoMatchError(f"{dataset}: all {len(wanted)} series are unusable.", f"First error: {reasons[0]}")
    return scans


def _prepare_or_reason(series: Series, store: ClipStore) -> str:
    """Prepare a series; return the reason if it is unusable, else an empty string."""
    try:
        _prepare_series(series, store)
    except (BadDataError, NoInputError) as error:
        return f"{series.bold.name}: {error}"
    return ""


def _prepare_series(series: Series, store: ClipStore) -> Scan:
    bold, entities = series.bold, series.entities
    to_model = templates.space(entities["space"]).to_model
    mask_path = bold.with_name(bold.name.replace("_desc-preproc_bold", "_desc-brain_mask"))
    image = _in_model_space(bold, to_model)
    mask = _in_model_space(mask_path, to_model) if os.path.lexists(mask_path) else None
    sidecar = _sidecar(bold)
    tr = sidecar.get("RepetitionTime")
    confounds, n_dummy = _read_confounds(bold.parent / f"{series.name}_desc-confounds_timeseries.tsv")
    zooms = image.header.get_zooms()
    if len(zooms) < 4:
        raise BadDataError(f"{bold.name}: image is {len(zooms)}D instead of 4D.", "Copy the file again.")
    step = _seconds(tr if tr is not None else float(zooms[3]), "RepetitionTime", bold)
    start = n_dummy * step + _seconds(sidecar.get("StartTime") or 0.0, "StartTime", bold)
    with tempfile.TemporaryDirectory(dir=store.folder, prefix=".series.") as scratch:
        try:
            grid_series = series_from_image(image, scratch, tr=tr, mask=mask, start=start, skip=n_dummy)
        except (OSError, EOFError, zlib.error) as error:
            if says_full(error):
                raise
            raise unreadable(bold, error) from error
        labels: dict[str, Any] = {key: entities[key] for key in ("task", "run") if key in entities}
        session = entities.get("ses", "")
        return store.add(series.name, grid_series, entities["sub"], session, labels, str(bold), confounds)


def _in_model_space(path: Path, to_model: np.ndarray) -> nib.Nifti1Image:
    image = load_nifti(path)
    check_size(image, path)
    return nib.Nifti1Image(image.dataobj, to_model @ image.affine, image.header)


def _sidecar(bold: Path) -> dict[str, Any]:
    sidecar = bold.with_suffix("").with_suffix(".json")
    return read_json(sidecar) if os.path.lexists(sidecar) else {}


def _seconds(value: Any, name: str, bold: Path) -> float:
    """Return a time of a sidecar in seconds; an error if it is not a number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < MAX_SECONDS:
        raise BadDataError(f"{bold.name}: {name} is {str(value)[:50]}, not a time in s.", "Correct its sidecar.")
    return float(value)


def _read_confounds(path: Path) -> tuple[dict[str, float], int]:
    """Read means and standard deviations of confounds, and the number of non-steady-state volumes."""
    if not os.path.lexists(path):
        return {}, 0
    rows = read_rows(path, max_bytes=MAX_CONFOUNDS_BYTES)
    n_dummy = sum(name.startswith("non_steady_state_outlier") for name in (rows[0] if rows else {}))
    n_dummy = min(n_dummy, max(len(rows) - 1, 0))
    found: dict[str, float] = {}
    for name in CONFOUNDS:
        texts = [row[name] for row in rows[n_dummy:] if name in row]
        try:
            values = np.array([float(text) for text in texts if text not in (None, "", "n/a", "nan")])
        except ValueError as error:
            raise BadDataError(f"{path.name}: {name} is not a number ({error}).", "Correct the table.") from error
        if len(values):
            found[f"{name}_mean"], found[f"{name}_std"] = float(values.mean()), float(values.std())
            if name == "framewise_displacement":
                found[f"{name}_max"] = float(values.max())
    return found, n_dummy


def find_raw_dataset(dataset: Path) -> Path | None:
    """Find the raw dataset of derivatives on this machine; None if there is none.

    Search ``DatasetLinks`` and ``SourceDatasets`` in dataset_description.json, then the parent folders.
    """
    try:
        description = read_json(dataset / "dataset_description.json")
    except NeurostormError:
        description = {}
    links, sources = description.get("DatasetLinks"), description.get("SourceDatasets")
    links = links if isinstance(links, dict) else {}
    sources = [s.get("URL") for s in sources if isinstance(s, dict)] if isinstance(sources, list) else []
    for link in [links.get("raw"), *links.values(), *sources]:
        if isinstance(link, str) and urlparse(link).scheme in ("", "file"):
            path = Path(unquote(urlparse(link).path))
            path = path if path.is_absolute() else dataset / path
            if path.is_dir() and path.resolve() != dataset.resolve():
                return path
    for folder in dataset.resolve().parents:
        about = folder / "dataset_description.json"
        if about.is_file():
            return folder
    return None


def find_events(scan: Scan, roots: Sequence[Path]) -> Path | None:
    """Find the events table of a scan by the inheritance principle, in the first dataset that has one."""
    parts = [f"sub-{scan.participant}", *([f"ses-{scan.session}"] if scan.session else []), "func"]
    for root in roots:
        folder = root.joinpath(*parts)
        while not folder.is_dir() and folder != root:
            folder = folder.parent
        if folder.is_dir():
            path = Inheritance(root).table(folder / f"{scan.name}_bold.nii.gz", "events")
            if path is not None:
                return path
    return None
