"""Provenance records in ``prov/`` of the output folder, as the draft of BIDS-Prov (BEP028) has them.

Each run, and each T1w image, has a folder ``prov/prov-<label>`` with activities (``act``), software (``soft``), the
environment (``env``) and the checksums of the input files (``ent``). The sidecars of outputs name the activity that
made them (``GeneratedBy``) and the checksum of their file (``Digest``); these are written with the files, by
`bids_app.outputs.publish`.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.bids.description import IMAGE_VARIABLE
from bids_app.bids.query import BoldRun
from bids_app.bids.writer import dataset_uri, one_at_a_time, write_json, write_text
from bids_app.catalog.atlases import Atlas
from bids_app.catalog.fetch import file_sha256
from bids_app.catalog.templates import template_files
from bids_app.errors import BadDataError
from bids_app.outputs.schema import PARTS, Manifest, RunOutcome, read_manifest
from bids_app.workflow.context import RunContext
from bids_app.workflow.graph import Step, hash_of
from bids_app.workflow.provenance import versions

FOLDER = "prov"
APP = "neurostorm"
UID_LENGTH = 8
LIBRARIES = ("python", "numpy", "scipy", "nibabel", "nipype")
"""Software of all activities, besides the app."""


@dataclass(frozen=True)
class Kind:
    """An activity: what it does, and software that it uses besides `LIBRARIES`."""

    label: str
    software: tuple[str, ...] = ()


ANATOMY = "anatomy"
KINDS = {
    ANATOMY: Kind("Preprocessing of the T1w image", ("antspyx", "torch")),
    "preprocessing": Kind("Preprocessing of the BOLD run", ("antspyx", "torch", "nilearn", "tedana")),
    "clips": Kind("Clips for training", ("torch",)),
    "regions": Kind("Series and correlations of the regions of atlases", ("nilearn",)),
    "model": Kind("Embeddings and predictions", ("torch",)),
    "attribution": Kind("Contributions of regions to predictions", ("torch",)),
}
"""Activities by the name of the tree of files that they make."""


def object_id(name: str, *content: Any) -> str:
    """Return the identifier of an object; it differs for other contents."""
    return f"bids::prov#{name}-{hash_of(name, *content)[:UID_LENGTH]}"


def activity_ids(steps: Mapping[str, Step | None]) -> dict[str, str]:
    """Return the identifiers of activities, by tree; they change with all that is written about an activity."""
    common = shlex.join(sys.argv), versions(), describe_environment()["Id"]
    return {name: object_id(name, step.stamp, *common) for name, step in steps.items() if step}


def write_records(run: BoldRun, outcome: RunOutcome, run_id: str, context: RunContext) -> None:
    """Write the records of a run and of its T1w image; without ``--provenance`` remove those of earlier invocations.

    Parameters
    ----------
    run : BoldRun
    outcome : RunOutcome
        With the checksums of the input files.
    run_id : str
        The invocation; what another one published keeps its records.
    context : RunContext
    """
    root = context.settings.out_dir / FOLDER
    manifests = [found for found in _read_manifests(run, context) if found.run_id == run_id and found.complete]
    activities = {name: found for manifest in manifests for name, found in manifest.activities.items()}
    label, t1w = label_of(run.stem), label_of(run.t1w.name.partition(".")[0]) if run.t1w else ""
    if not activities:
        if manifests and not context.settings.provenance:
            remove_records(root, filter(None, (label, t1w)))
        return
    inputs = {uri: _file(uri, digest) for uri, digest in outcome.inputs.items()}
    of_t1w = {dataset_uri(path, context.datasets) for path in (run.t1w, *run.t1w_repeats, run.lesion) if path}
    anatomical = {uri: file for uri, file in inputs.items() if uri in of_t1w}
    functional = {uri: file for uri, file in inputs.items() if uri not in of_t1w}
    t1w_outputs = sorted(name for one in manifests for name in one.files if name.endswith("_desc-preproc_T1w.nii.gz"))
    weights = [_own_file(Path(path), digest) for path, digest in context.model.hashes.items()]
    template = [_own_file(path, file_sha256(path)) for path in (template_files(context.template) or {}).values()]
    further = {
        ANATOMY: template,
        "preprocessing": [] if run.t1w or run.derived else template,
        "regions": _atlas_files(context.region_atlases),
        "model": weights,
        "attribution": [*weights, *_atlas_files([context.atlas] if context.atlas else [])],
    }
    own = {name: found for name, found in activities.items() if name != ANATOMY}
    used = {name: [*functional, *(file["Id"] for file in further.get(name, ()))] for name in own}
    if "preprocessing" in used:
        used["preprocessing"] += [f"bids::{name}" for name in t1w_outputs]
    shown = functional | {file["Id"]: file for name in own for file in further.get(name, ())}
    write_record(root, label, own, used, shown.values())
    if ANATOMY in activities:
        shown = anatomical | {file["Id"]: file for file in template}
        write_record(root, t1w, {ANATOMY: activities[ANATOMY]}, {ANATOMY: list(shown)}, shown.values())
    write_table(root)


def write_record(
    root: Path,
    label: str,
    activities: Mapping[str, str],
    used: Mapping[str, Iterable[str]],
    files: Iterable[Mapping[str, Any]],
) -> None:
    """Write the four files of a record.

    Parameters
    ----------
    root : pathlib.Path
        The folder ``prov``.
    label : str
    activities : mapping
        Identifiers by the name of the activity, a key of `KINDS`.
    used : mapping
        Identifiers of the data that each activity used.
    files : iterable of mapping
        Descriptions of files that are not in the dataset.
    """
    software, environment = describe_software(), describe_environment()
    described = [
        {
            "Id": activity,
            "Label": KINDS[name].label,
            "Command": shlex.join(sys.argv),
            "AssociatedWith": [
                software[package]["Id"] for package in (APP, *LIBRARIES, *KINDS[name].software) if package in software
            ],
            "Used": [environment["Id"], *used[name]],
        }
        for name, activity in activities.items()
    ]
    needed = {identifier for activity in described for identifier in activity["AssociatedWith"]}
    contents: dict[str, dict[str, Any]] = {
        "act": {"Activities": described},
        "soft": {"Software": [entry for entry in software.values() if entry["Id"] in needed]},
        "env": {"Environments": [environment]},
        "ent": {"Files": list(files)},
    }
    for suffix, content in contents.items():
        write_json(root / f"prov-{label}" / f"prov-{label}_{suffix}.json", content)


def describe_software() -> dict[str, dict[str, Any]]:
    """Describe this program and its installed libraries, by name."""
    found = {name: version for name, version in versions().items() if version != "not installed"}
    return {
        name: {"Id": object_id(name, version), "Label": name, "Version": version} for name, version in found.items()
    }


def describe_environment() -> dict[str, Any]:
    """Describe the container or system; without names of machines and people."""
    image = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    label = os.environ.get(IMAGE_VARIABLE) or (Path(image).name if image else "")
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        system = platform.system()
    content = {
        "Label": label or system,
        "OperatingSystem": f"{system}, {platform.system()} {platform.release()} {platform.machine()}",
    }
    return {"Id": object_id("environment", sorted(content.items())), **content}


def write_table(root: Path) -> None:
    """Write ``provenance.tsv``: a row for each record in the folder; without records, remove it."""
    with one_at_a_time(root):
        labels = sorted(path.name for path in root.glob("prov-*") if path.is_dir())
        rows = [f"{label}\tProvenance of the outputs of one BOLD run or T1w image" for label in labels]
        table = root / "provenance.tsv"
        if rows:
            write_text(table, "\n".join(["provenance_id\tdescription", *rows]) + "\n")
        else:
            table.unlink(missing_ok=True)


def remove_records(root: Path, labels: Iterable[str]) -> None:
    """Remove records, since no sidecar names their activities any more."""
    folders = [folder for label in labels if (folder := root / f"prov-{label}").is_dir()]
    for folder in folders:
        for path in folder.glob(f"{folder.name}_*.json"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # files of others
            folder.rmdir()
    if folders:
        write_table(root)
        with suppress(OSError):
            root.rmdir()


def label_of(stem: str) -> str:
    """Return the label of a record, which differs for each image: ``sub01+taskrest`` for ``sub-01_task-rest``."""
    return "+".join(part.replace("-", "") for part in stem.split("_"))


def _file(uri: str, digest: str) -> dict[str, Any]:
    """Describe a file of an input dataset by its BIDS URI."""
    location = uri.split(":", 2)[2]
    return {
        "Id": uri,
        "Label": location.rpartition("/")[2],
        "AtLocation": location,
        "Digest": {"SHA-256": digest},
    }


def _own_file(path: Path, digest: str) -> dict[str, Any]:
    """Describe a file outside of all datasets, by its name without its folder."""
    return {
        "Id": f"bids::prov#entity-{digest[:UID_LENGTH]}",
        "Label": path.name,
        "AtLocation": path.name,
        "Digest": {"SHA-256": digest},
    }


def _atlas_files(atlases: Sequence[Atlas]) -> list[dict[str, Any]]:
    files = (path for atlas in atlases for path in (atlas.path, atlas.table) if path)
    return [_own_file(path, file_sha256(path)) for path in files]


def _read_manifests(run: BoldRun, context: RunContext) -> Iterator[Manifest]:
    for part in PARTS:
        with suppress(BadDataError):  # the report names it
            manifest = read_manifest(context.settings.out_dir, run.stem, part)
            if manifest is not None:
                yield manifest
