"""Where exported embeddings come from: facts without paths of this machine.

The values are text, numbers, truth values and lists of text, which all formats can hold.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.bids.description import APP_NAME
from bids_app.bids.sidecars import read_json
from bids_app.training.export.runs import EmbeddedRun, EmbeddedRuns, source_of

FORMAT_VERSION = 1
UNKNOWN = "unknown"
NOT_CUT = "none"
"""Normalisation of the encoders of Brainmarks, for which a run is not cut into clips."""


def describe_export(found: EmbeddedRuns, out_dir: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance of an export.

    Parameters
    ----------
    found : EmbeddedRuns
    out_dir : Path
        Output folder of the participant level.
    facts : mapping
        Facts about labels and sets.
    """
    description = _read_description(out_dir)
    runs = found.runs
    about: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "exported_with": f"{APP_NAME} {__version__}",
        "processed_with": _versions(found, description),
        "dataset": str(description.get("Name") or UNKNOWN),
        "dataset_license": str(description.get("License") or UNKNOWN),
        "model": found.title,
        "model_source": source_of(runs[0].sidecar) or UNKNOWN,
        "weights_sha256": found.weights_sha256 or UNKNOWN,
        "demonstration": found.demonstration,
        "untrained": found.untrained,
        "normalisation": found.normalisation,
        "templates": sorted({run.sidecar.template for run in runs if run.sidecar.template}),
        "configurations": sorted({name for run in runs for name in run.record.configurations}),
        "features": f"{'embedding' if found.normalisation == NOT_CUT else 'mean embedding over the clips'} of a run",
        "n_features": len(runs[0].vector.values),
        "n_runs": len(runs),
        "n_participants": len({run.participant for run in runs}),
    }
    return about | dict(facts)


def sources_of(run: EmbeddedRun) -> str:
    """Return the BIDS URIs of the images that a run was made from, separated by spaces.

    Entries that are no BIDS URIs are left out: they may be paths of another machine.
    """
    return " ".join(source for source in run.sidecar.sources or () if source.startswith("bids:"))


def name_of_target(target: str) -> str:
    """Return a target without the folder of its table: ``participants.tsv:sex``."""
    table, _, column = target.rpartition(":")
    return f"{Path(table or 'participants.tsv').name}:{column}"


def _versions(found: EmbeddedRuns, description: Mapping[str, Any]) -> list[str]:
    """Return the versions that made the embeddings; without manifests, those that wrote into the folder."""
    used = {name for run in found.runs for name in run.record.configurations}
    versions = {found.configurations[name].get("version", "") for name in used if name in found.configurations}
    entries = description.get("GeneratedBy")
    if not versions and isinstance(entries, list):
        versions = {str(e.get("Version", "")) for e in entries if isinstance(e, dict) and e.get("Name") == APP_NAME}
    return sorted(versions - {""}) or [UNKNOWN]


def _read_description(out_dir: Path) -> dict[str, Any]:
    """Read the description of the output folder; empty if there is none."""
    path = out_dir / "dataset_description.json"
    return read_json(path) if os.path.lexists(path) else {}
