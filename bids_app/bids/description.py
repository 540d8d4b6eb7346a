"""What says what the output folder is: ``dataset_description.json``, ``.bidsignore`` and ``README.md``.

Several processes may write these into one folder at once: what they write depends on nothing that differs between
them, and each file is replaced as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.bids.sidecars import read_json
from bids_app.bids.writer import RAW_DATASET, write_json, write_text
from bids_app.errors import BadDataError, CannotCreateError, NeurostormError

APP_NAME = "NeuroSTORM"
BIDS_VERSION = "1.10.0"

IMAGE_VARIABLE = "NEUROSTORM_IMAGE"
"""Environment variable in which a container image says its own name and tag."""

BIDSIGNORE = (
    "*.html",
    "logs",
    "figures",
    "log",
    "*_xfm.*",
    "*_boldref.*",
    "*_timeseries.*",
    "*_embeddings.*",
    "*_predictions.*",
    "*_vectors.*",
    "*_attribution.*",
    "*_boldmap.*",
    "*_metrics.*",
    "group_*",
    "neurostorm_*",
)
"""Outputs for which BIDS has no name yet, in the terms of ``.bidsignore``. Of the phenotype tables, last here, it knows
only such with one row a participant; ours have one a run."""

README = """# NeuroSTORM's outputs

This folder is a BIDS derivatives dataset, made by NeuroSTORM as a BIDS App from the dataset named in
`dataset_description.json`. Start with the reports, `sub-<label>.html`.

| file | what it holds |
| --- | --- |
| `sub-*/**/func/*_desc-<model>_embeddings.tsv` | what the encoder made of each run: a row a clip, and their mean |
| `sub-*/**/func/*_desc-<adapter>_predictions.tsv` | what an adapter predicts from it, with the spread over clips |
| `sub-*/**/func/*_desc-confounds_timeseries.tsv` | motion and nuisance signals, with fMRIPrep's column names |
| `sub-*/**/func/*_desc-quality_metrics.{tsv,json}` | quality under MRIQC's names, and what was chosen on the way |
| `sub-*/**/{anat,func}/*_mask.nii.gz`, `*_boldref.nii.gz`, `*_xfm.*` | masks, reference images and transforms |
| `sub-*/log/*/summary.json` | how each run ended, and why |
| `group.html`, `group_*`, `phenotype/` | all runs together, where the group level was run |
| `logs/CITATION.md` | the methods text and what to cite |

NeuroSTORM is a research tool, not a medical device.
"""


def check_output_folder(out_dir: Path) -> None:
    """Refuse a folder that belongs to something else.

    Raises
    ------
    CannotCreateError
        Its ``dataset_description.json`` is a raw dataset's or another pipeline's, or cannot be read.
    """
    _read_own_description(out_dir)


def describe_outputs(out_dir: Path, datasets: Path | Mapping[str, Path]) -> None:
    """Write ``dataset_description.json``, ``.bidsignore`` and ``README.md``.

    Versions that wrote into the folder before stay listed in ``GeneratedBy``; lines that were added to
    ``.bidsignore``, and a README of somebody else, are kept.

    Parameters
    ----------
    out_dir : pathlib.Path
        Root of the derivatives; made when missing.
    datasets : pathlib.Path or mapping
        Root of the raw dataset; or the roots of all datasets that are read, by their names in BIDS URIs, the one that
        was given as ``bids_dir`` first.

    Raises
    ------
    CannotCreateError, InputOutputError
        The folder belongs to something else, or cannot be written.
    """
    written_by = [entry for entry in _read_own_description(out_dir).get("GeneratedBy", []) if entry != _generator()]
    roots = {RAW_DATASET: datasets} if isinstance(datasets, Path) else dict(datasets)
    write_json(out_dir / "dataset_description.json", _description(roots, written_by))
    ignore = out_dir / ".bidsignore"
    kept = ignore.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if ignore.exists() else []
    lines = [*kept, *(pattern for pattern in BIDSIGNORE if pattern not in kept)]
    write_text(ignore, "\n".join(lines) + "\n")
    if not any((out_dir / name).exists() for name in ("README", "README.md", "README.rst", "README.txt")):
        write_text(out_dir / "README.md", README)


def _description(datasets: Mapping[str, Path], written_by: list[Any]) -> dict[str, Any]:
    bids_dir = next(iter(datasets.values()))
    raw = _read_raw_description(bids_dir)
    name = str(raw.get("Name") or bids_dir.name)
    description = {
        "Name": f"{APP_NAME} outputs of {name}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [_generator(), *written_by],
        "HowToAcknowledge": "Please cite what logs/CITATION.md names.",
        "SourceDatasets": [_source(_read_raw_description(root), root) for root in datasets.values()],
        "DatasetLinks": {name: root.absolute().as_uri() for name, root in datasets.items()},
    }
    if isinstance(raw.get("License"), str):
        description["License"] = raw["License"]  # derivatives of data stay under the data's terms
    return description


def _generator() -> dict[str, Any]:
    entry: dict[str, Any] = {"Name": APP_NAME, "Version": __version__}
    singularity = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    image = os.environ.get(IMAGE_VARIABLE)
    if singularity:
        entry["Container"] = {"Type": "singularity", "Tag": image or Path(singularity).name}
    elif image:
        entry["Container"] = {"Type": "docker", "Tag": image}
    return entry


def _source(raw: dict[str, Any], bids_dir: Path) -> dict[str, str]:
    doi = raw.get("DatasetDOI")
    if isinstance(doi, str) and doi:
        bare = doi.removeprefix("https://doi.org/").removeprefix("doi:")
        return {"URL": f"https://doi.org/{bare}", "DOI": f"doi:{bare}"}
    return {"URL": bids_dir.absolute().as_uri()}


def _read_raw_description(bids_dir: Path) -> dict[str, Any]:
    try:
        return read_json(bids_dir / "dataset_description.json")
    except NeurostormError:
        return {}  # the query has told the user; reports can be made again without the raw dataset


def _read_own_description(out_dir: Path) -> dict[str, Any]:
    path = out_dir / "dataset_description.json"
    if not path.exists():
        return {}
    hint = "Give an output folder of its own, or remove that file if the folder is to be reused."
    try:
        description = read_json(path)
    except BadDataError as error:
        raise CannotCreateError(error.message, hint) from error
    entries = description.get("GeneratedBy")
    names = [entry.get("Name") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if APP_NAME not in names:
        owner = f"the outputs of {', '.join(map(str, names))}" if names else "a dataset that this app has not made"
        raise CannotCreateError(f"{out_dir}: holds {owner}.", hint)
    return description
