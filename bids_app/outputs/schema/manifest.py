"""Manifests of the output folder: which files of a run the last invocation wrote, and with which configuration.

A run has one manifest for each part of its outputs, in ``sub-X/log/manifests/``. A file that bears the name of the run
and is in no manifest is of an earlier invocation or of the user: the report and the group level leave it out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from bids_app.errors import BadDataError
from bids_app.outputs.schema.log import OK, RunOutcome
from bids_app.outputs.schema.readers import by_name, flag, text, whole
from bids_app.outputs.schema.record import Record, key, record

PARTS = PREPROCESSING, MODEL = ("preprocessing", "model")
"""Parts of the outputs of a run; each is published by a step of its own."""
FOLDER = "manifests"
"""Name of the folder in the log folder of a participant."""

IMAGES = (".nii.gz", ".nii", ".h5", "_xfm.txt")
"""Endings of images and transforms."""
CLIPS = "clips"
"""Folder in a participant's folder with the clip stores of ``--output-clips``, one for each normalisation."""


@dataclass(frozen=True, kw_only=True)
class FileStamp(Record):
    """Content of a file when it was written."""

    size: int = key("size", whole, required=True)
    """Bytes."""
    sha256: str = key("sha256", text, required=True)


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """Files of one part of the outputs of a run."""

    run_id: str = key("run_id", text, default="")
    """Invocation that wrote the files."""
    published: str = key("published", text, default="")
    """Date and time, ISO 8601."""
    configuration: str = key("configuration", text, default="")
    """Hash of ``options``, as in the sidecars."""
    options: dict[str, str] = key("options", by_name(text), factory=dict)
    """Version of the program and options that decide the numbers."""
    source: str = key("source", text, default="")
    """Hash of the preprocessing of the run: code, options and input files. Equal in both parts of the same result."""
    activities: dict[str, str] = key("activities", by_name(text), factory=dict)
    """Identifiers of the activities that made the files, by tree (``--provenance``)."""
    complete: bool = key("complete", flag, default=False)
    """False while the files are being written."""
    files: dict[str, FileStamp] = key("files", by_name(record(FileStamp)), factory=dict)
    """By path relative to the output folder."""
    earlier: dict[str, FileStamp] = key("earlier", by_name(record(FileStamp)), factory=dict)
    """Files of earlier invocations that this one does not make: not removed yet, or modified by the user since."""


def may_be_gone(name: str) -> bool:
    """Return True for images, transforms and clips, which may be deleted or moved to save space; path from the root."""
    return name.endswith(IMAGES) or f"/{CLIPS}/" in name


@dataclass(frozen=True)
class RunFiles:
    """What the manifests and the log say about the files of a run."""

    parts: dict[str, Manifest] = field(default_factory=dict)
    """Manifests by part; empty for outputs of versions without manifests."""
    unreadable: tuple[str, ...] = ()
    """Manifests that cannot be read, with the reason."""

    @property
    def is_known(self) -> bool:
        """True if there is a manifest."""
        return bool(self.parts or self.unreadable)

    def current(self, part: str) -> Manifest | None:
        """Return the manifest of a part whose files belong together; None if there is none.

        Predictions from another preprocessing than the published one do not belong to it.
        """
        found, base = self.parts.get(part), self.parts.get(PREPROCESSING)
        if found is None or base is None or not (found.complete and base.complete) or found.source != base.source:
            return None
        return found

    @property
    def files(self) -> frozenset[str]:
        """Paths of the files that belong together, relative to the output folder."""
        found = (self.current(part) for part in PARTS)
        return frozenset(name for manifest in found if manifest for name in manifest.files)

    @property
    def problem(self) -> str:
        """Sentence on outputs that do not belong together; empty if they do."""
        if self.unreadable:
            return f"Its list of outputs cannot be read ({self.unreadable[0]}); its outputs are not used."
        if any(not manifest.complete for manifest in self.parts.values()):
            return "Writing the outputs was interrupted: old and new files may be mixed, and are not used."
        if any(self.current(part) is None for part in self.parts):
            return "Its embeddings and predictions are of another preprocessing than the published one; not used."
        return ""

    def includes(self, name: str, outcome: RunOutcome | None = None) -> bool:
        """Return whether a file is a valid output of the run.

        Parameters
        ----------
        name : str
            Path relative to the output folder.
        outcome : RunOutcome, optional
            Last outcome of the run. A failed run has only the outputs that it published before it failed.
        """
        if outcome is not None and outcome.status != OK and name not in outcome.outputs:
            return False
        return name in self.files if self.is_known else True

    def outputs(self, outcome: RunOutcome | None = None) -> list[str]:
        """Return the paths of the files in its manifests that are valid outputs, sorted; see `includes`."""
        return [name for name in sorted(self.files) if self.includes(name, outcome)]


def manifest_path(out_dir: Path, stem: str, part: str) -> Path:
    """Return the path of the manifest of a part of a run; ``stem`` is the name of the run without suffix."""
    return out_dir / stem.partition("_")[0] / "log" / FOLDER / f"{stem}_{part}.json"


def read_manifest(out_dir: Path, stem: str, part: str) -> Manifest | None:
    """Read a manifest; None if there is none.

    Raises
    ------
    BadDataError
        Not a manifest, or with paths outside the folder of the participant.
    """
    path = manifest_path(out_dir, stem, part)
    try:
        found = Manifest.read(path)
    except FileNotFoundError:
        return None
    named = {**found.files, **found.earlier}
    wrong = [name for name, stamp in named.items() if stamp is None or not _is_inside(name, stem.partition("_")[0])]
    if wrong:
        raise BadDataError(
            f"{path.name}: invalid entry {wrong[0]}.", "Remove this file, and run the participant again."
        )
    return found


def read_run_files(folder: Path) -> dict[str, RunFiles]:
    """Read the manifests of a participant, by run; ``folder`` is that of the participant."""
    found: dict[str, RunFiles] = {}
    for stem in stems_with_manifest(folder):
        parts, unreadable = {}, []
        for part in PARTS:
            try:
                manifest = read_manifest(folder.parent, stem, part)
            except (OSError, BadDataError) as error:
                unreadable.append(getattr(error, "message", "") or getattr(error, "strerror", "") or str(error))
                continue
            if manifest is not None:
                parts[part] = manifest
        found[stem] = RunFiles(parts, tuple(unreadable))
    return found


def stems_with_manifest(folder: Path) -> list[str]:
    """Return the runs of a participant that have manifests."""
    try:
        names = sorted(path.stem for path in (folder / "log" / FOLDER).iterdir() if path.suffix == ".json")
    except (FileNotFoundError, NotADirectoryError):
        return []
    pairs = (name.rpartition("_")[::2] for name in names if not name.startswith("."))
    return list(dict.fromkeys(stem for stem, part in pairs if part in PARTS and stem.startswith(f"{folder.name}_")))


def differing_options(options: Iterable[dict[str, str]]) -> dict[str, tuple[str, ...]]:
    """Return the options whose values differ between configurations, with all their values."""
    known = [each for each in options if each]
    values = {name: tuple(dict.fromkeys(each.get(name, "n/a") for each in known)) for each in known for name in each}
    return {name: found for name, found in sorted(values.items()) if len(found) > 1}


def _is_inside(name: str, participant: str) -> bool:
    """Return whether a path is in the folder of a participant."""
    parts = PurePosixPath(name).parts
    return len(parts) > 1 and parts[0] == participant and ".." not in parts
