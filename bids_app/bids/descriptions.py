"""``descriptions.tsv`` of the output folder: what each ``desc-`` label in a file name means."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_app.bids.writer import write_json, write_text
from bids_app.files import read_output_table

TABLE = "descriptions.tsv"
ID, TEXT = COLUMNS = ("desc_id", "description")
"""Columns of the table, by BIDS."""
LABELS = {
    "preproc": "Preprocessed image: T1w without intensity non-uniformity, or BOLD series in an output space",
    "denoised": "Preprocessed BOLD series from which confounds were regressed out",
    "brain": "Mask of the brain",
    "hmc": "Reference image of a BOLD run, or transforms, of head-motion correction",
    "coreg": "Reference image of a BOLD run for its registration to the T1w image, or that transform",
    "mean": "Mean of the volumes of an ingested BOLD series",
    "sdc": "Displacement field of susceptibility distortion correction",
    "confounds": "Head motion and nuisance signals of a BOLD run",
    "quality": "Image quality metrics of a BOLD run",
}
"""Descriptions of the labels that do not depend on the model."""
DICTIONARY: dict[str, Any] = {
    "Description": "Meaning of the desc- labels in the names of files",
    ID: {"Description": "A desc- label in the names of files of this dataset"},
    TEXT: {"Description": "What the label means"},
}


def write_descriptions(out_dir: Path, labels: Mapping[str, str]) -> Path:
    """Write ``descriptions.tsv`` and its sidecar; rows of other labels in an existing table are kept.

    Parameters
    ----------
    out_dir : pathlib.Path
        Root of the derivatives.
    labels : mapping
        Descriptions of the labels of models and adapters, by label without ``desc-``.
    """
    path = out_dir / TABLE
    found = {f"desc-{label}": text for label, text in {**LABELS, **labels}.items()}
    kept = {label: text for label, text in read_descriptions(path).items() if label not in found}
    rows = [f"{label}\t{' '.join(text.split()) or 'n/a'}" for label, text in {**found, **kept}.items()]
    write_text(path, "\n".join(["\t".join(COLUMNS), *rows]) + "\n")
    write_json(path.with_suffix(".json"), DICTIONARY)
    return path


def read_descriptions(path: Path) -> dict[str, str]:
    """Read descriptions by label; none, if there is no such table or it has other columns."""
    try:
        return {row[ID]: row[TEXT] for row in read_output_table(path) if row[ID]}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}
