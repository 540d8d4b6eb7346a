"""From datasets of preprocessed series to a store of clips, once: found by name, brought onto the model grid, kept.

A series is ``*_space-<template>_desc-preproc_bold.nii.gz``, as fMRIPrep writes, and the app with ``--output-spaces``.
"""

from __future__ import annotations

import csv
import json
import logging
import tempfile
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
from bids_app.bids.sidecars import Inheritance
from bids_app.catalog import templates
from bids_app.clips import series_from_image
from bids_app.errors import BadDataError, NoMatchError, UsageError
from bids_app.training.data.store import ClipStore, Scan

log = logging.getLogger(__name__)
BOLD_PATTERN = "**/*_space-*_desc-preproc_bold.nii.gz"
NOT_OF_THE_RUN = ("space", "res", "desc")
HOW_TO_GET = "Run neurostorm with --output-spaces MNI152NLin6Asym, or name a derivatives dataset of fMRIPrep."
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
"""Columns whose mean and spread over a run are kept with it, for the baseline of motion and confounds."""


@dataclass(frozen=True)
class Found:
    """One series of a dataset.

    Attributes
    ----------
    name : str
        Of the run: its entities but those of the preprocessing.
    bold : Path
    entities : dict of str to str
    """

    name: str
    bold: Path
    entities: dict[str, str]


def find_series(dataset: Path) -> list[Found]:
    """Series in spaces that this app knows; of a run in several, the space listed first in the catalog, and of several
    resolutions the one nearest the model's 2 mm."""
    known = list(templates.catalog())
    best: dict[str, tuple[tuple[int, bool, str], Found]] = {}
    seen = set()
    for bold in dataset.glob(BOLD_PATTERN):
        entities = split_name(bold.name)[0]
        seen.add(entities["space"])
        if entities["space"] in known and "sub" in entities:
            own = {k: v for k, v in entities.items() if k not in NOT_OF_THE_RUN}
            found = Found(join_name(own, "").removesuffix("_"), bold, entities)
            rank = (known.index(entities["space"]), entities.get("res") not in ("2", "02"), bold.name)
            if found.name not in best or rank < best[found.name][0]:
                best[found.name] = (rank, found)
    if seen and not best:
        raise UsageError(
            f"{dataset}: its series are in {', '.join(sorted(seen))}, which are no spaces of this app.",
            f"One of {', '.join(known)} is needed.",
        )
    if not best:
        raise NoMatchError(f"{dataset}: holds no *_desc-preproc_bold.nii.gz in a template's space.", HOW_TO_GET)
    return [best[name][1] for name in sorted(best, key=natural_key)]


def prepare(
    dataset: Path,
    store: ClipStore,
    n_procs: int = 1,
    share: tuple[int, int] = (0, 1),
    say: Callable[[str], None] | None = None,
) -> list[Scan]:
    """Bring the series of a dataset into a store.

    Parameters
    ----------
    dataset : Path
        Brain masks and confounds beside the series are used.
    store : ClipStore
        Scans that it has are left as they are, so that an interrupted preparation is taken up again.
    n_procs : int
        Processes that prepare.
    share : tuple of int
        Which of how many parts of the dataset this process sees to, where several work at one store.
    say : callable, optional
        Told which series cannot be used, and why; they are left out.

    Returns
    -------
    list of Scan
        Those of this process' share.
    """
    wanted = find_series(dataset)[share[0] :: share[1]]
    missing = [found for found in wanted if found.name not in store]
    faults: list[str] = []
    if n_procs > 1 and len(missing) > 1:
        with ProcessPoolExecutor(min(n_procs, len(missing)), mp_context=get_context("spawn")) as pool:
            answers = list(pool.map(_try_one, missing, [store] * len(missing)))
    else:
        answers = [_try_one(found, store) for found in missing]
    faults = [answer for answer in answers if answer]
    for fault in faults:
        (say or log.warning)(f"left out: {fault}")
    scans = [store[found.name] for found in wanted if found.name in store]
    if wanted and not scans:
        raise NoMatchError(f"{dataset}: none of its {len(wanted)} series can be used.", f"The first: {faults[0]}")
    return scans


def _try_one(found: Found, store: ClipStore) -> str:
    """Prepare a series; the reason where it cannot be used."""
    try:
        _prepare_one(found, store)
    except BadDataError as error:
        return f"{found.bold.name}: {error}"
    return ""


def _prepare_one(found: Found, store: ClipStore) -> Scan:
    bold, entities = found.bold, found.entities
    to_model = templates.space(entities["space"]).to_model
    mask_path = bold.with_name(bold.name.replace("_desc-preproc_bold", "_desc-brain_mask"))
    image = _in_model_space(bold, to_model)
    mask = _in_model_space(mask_path, to_model) if mask_path.is_file() else None
    sidecar = _sidecar(bold)
    tr = sidecar.get("RepetitionTime")
    confounds, n_dummy = _read_confounds(bold.parent / f"{found.name}_desc-confounds_timeseries.tsv")
    step = float(tr if tr is not None else image.header.get_zooms()[3])
    start = n_dummy * step + float(sidecar.get("StartTime") or 0.0)
    with tempfile.TemporaryDirectory(dir=store.folder, prefix=".series.") as scratch:
        series = series_from_image(image, scratch, tr=tr, mask=mask, start=start, skip=n_dummy)
        labels: dict[str, Any] = {key: entities[key] for key in ("task", "run") if key in entities}
        session = entities.get("ses", "")
        return store.add(found.name, series, entities["sub"], session, labels, str(bold), confounds)


def _in_model_space(path: Path, to_model: np.ndarray) -> nib.Nifti1Image:
    try:
        image = nib.Nifti1Image.from_filename(path)
    except (nib.filebasedimages.ImageFileError, OSError, EOFError) as error:
        raise BadDataError(f"{path.name}: cannot be read ({error}).", "Copy the file again.") from error
    return nib.Nifti1Image(image.dataobj, to_model @ image.affine, image.header)


def _sidecar(bold: Path) -> dict[str, Any]:
    sidecar = bold.with_suffix("").with_suffix(".json")
    return json.loads(sidecar.read_text()) if sidecar.is_file() else {}


def _read_confounds(path: Path) -> tuple[dict[str, float], int]:
    """Means and spreads of a run's confounds, and its volumes before the signal was steady."""
    if not path.is_file():
        return {}, 0
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    n_dummy = sum(name.startswith("non_steady_state_outlier") for name in (rows[0] if rows else {}))
    n_dummy = min(n_dummy, max(len(rows) - 1, 0))
    found: dict[str, float] = {}
    for name in CONFOUNDS:
        texts = [row[name] for row in rows[n_dummy:] if name in row]
        values = np.array([float(text) for text in texts if text not in ("", "n/a", "nan")])
        if len(values):
            found[f"{name}_mean"], found[f"{name}_std"] = float(values.mean()), float(values.std())
            if name == "framewise_displacement":
                found[f"{name}_max"] = float(values.max())
    return found, n_dummy


def raw_dataset_of(dataset: Path) -> Path | None:
    """The raw dataset that derivatives were made from, where it is on this machine.

    Looked for in ``DatasetLinks`` and ``SourceDatasets`` of the description, then among the folders above.
    """
    try:
        description = json.loads((dataset / "dataset_description.json").read_text())
    except (OSError, ValueError):
        description = {}
    links = description.get("DatasetLinks") or {}
    sources = [s.get("URL") for s in description.get("SourceDatasets") or [] if isinstance(s, dict)]
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


def events_of(scan: Scan, roots: Sequence[Path]) -> Path | None:
    """The events table of a scan by the inheritance principle, from the first of these datasets that has one."""
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
