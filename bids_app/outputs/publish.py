"""Copy of the outputs to the output folder; only this step writes there, and no file is ever incomplete.

The outputs are first written to trees in the scratch folder, which are cached with the steps. What is copied is named
in the manifest of the run (`bids_app.outputs.schema.manifest`), before and after copying, so that a killed process
leaves no file that a later invocation does not know. Files that an earlier invocation left and that are not made any
more are removed when the run ends (`remove_earlier`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from bids_app.bids.writer import as_json_text, copy_file, copy_folder, write_json, write_text
from bids_app.catalog.fetch import file_sha256
from bids_app.errors import BadDataError
from bids_app.outputs.schema import (
    CONFIGURATION_KEY,
    DIGEST,
    GENERATED_BY,
    MODEL,
    PARTS,
    PREPROCESSING,
    FileStamp,
    Manifest,
    manifest_path,
    read_manifest,
    stems_with_manifest,
)

LOGGER = logging.getLogger(__name__)
ENTRY, STORE = "scan.json", "store.json"
"""Files that describe a scan and its clip store; the folder of a scan is copied as a whole."""


@dataclass(frozen=True)
class Publication:
    """Identity of what is published for a run.

    Attributes
    ----------
    stem : str
        Name of the run without suffix.
    run_id : str
        The invocation.
    configuration : str
        Hash of ``options``.
    options : dict
        Version of the program and options that decide the numbers, as text.
    source : str
        Hash of the preprocessing of the run: code, options and input files.
    activities : dict
        Identifiers of the activities that made the files, by tree, for the sidecars (``--provenance``); empty: none.
    """

    stem: str
    run_id: str
    configuration: str
    options: dict[str, str] = field(default_factory=dict)
    source: str = ""
    activities: dict[str, str] = field(default_factory=dict)


def publish(target: Path, part: str, publication: Publication, out_dir: Path, **trees: Path | None) -> tuple[str, ...]:
    """Copy trees to the output folder; existing files with the same content are kept.

    Parameters
    ----------
    target : pathlib.Path
        Output folder.
    part : str
        One of `PARTS`.
    publication : Publication
    out_dir : pathlib.Path
        Unused.
    **trees : pathlib.Path or None
        Folders with the layout of the output folder.

    Returns
    -------
    tuple of str
        Paths of the files, relative to the output folder.
    """
    configuration = publication.configuration
    sources = dict(_files_of(trees))
    texts = {
        name: text
        for tree, activity in ((tree, publication.activities.get(tree)) for tree in trees)
        for name, source in _files_of({tree: trees[tree]})
        if (text := _sidecar_text(source, configuration, activity)) is not None
    }
    files = {name: _stamp_of(source, texts.get(name)) for name, source in sources.items()}
    old = _read_or_ignore(target, publication.stem, part) or Manifest()
    earlier = _earlier_files(target, old)
    manifest = Manifest(
        run_id=publication.run_id,
        published=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        configuration=configuration,
        options=publication.options,
        source=publication.source,
        activities={tree: found for tree, found in publication.activities.items() if trees.get(tree)},
        files=files,
        earlier=earlier,
    )
    write_manifest(target, publication.stem, part, manifest)
    entries = {source.parent: target / name for name, source in sources.items() if source.name == ENTRY}
    for folder, scan in entries.items():
        copy_folder(folder, scan.parent)
    for name, source in sources.items():
        if source.parent in entries:
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name in texts:
            write_text(target / name, texts[name])
        else:
            copy_file(source, target / name)
    left = {name: stamp for name, stamp in earlier.items() if name not in files}
    write_manifest(target, publication.stem, part, replace(manifest, earlier=left, complete=True))
    return tuple(files)


def remove_earlier(target: Path, stem: str) -> tuple[str, ...]:
    """Remove the files that earlier invocations left for a run and that its last invocation does not make.

    Files that other runs of the participant use, such as those of the anatomy, are kept; so are files that were
    modified since they were written: they stay listed as earlier files. Predictions from another preprocessing than the
    published one are removed, too.

    Returns
    -------
    tuple of str
        Paths of the removed files, relative to the output folder.
    """
    own = {part: manifest for part in PARTS if (manifest := _read_or_ignore(target, stem, part))}
    base, model = own.get(PREPROCESSING), own.get(MODEL)
    if base and model and base.complete and base.source != model.source:
        own[MODEL] = replace(model, files={}, earlier=_earlier_files(target, model), source=base.source, complete=True)
    settled = {part: manifest for part, manifest in own.items() if manifest.complete and manifest.earlier}
    if not settled:
        return ()
    used = {name for manifest in own.values() for name in manifest.files}
    used_by_others = _files_of_others(target, stem)
    removed: list[str] = []
    for part, manifest in settled.items():
        kept = {}
        for name, stamp in manifest.earlier.items():
            path = target / name
            is_shared = not path.name.startswith(f"{stem}_")
            if name in used or name in (used_by_others or ()):
                continue
            if (used_by_others is not None or not is_shared) and _has_content(path, stamp):
                path.unlink()
                removed.append(name)
                with suppress(OSError):
                    for folder in path.parents[: len(Path(name).parts) - 1]:
                        folder.rmdir()
            elif path.exists():
                kept[name] = stamp
        write_manifest(target, stem, part, replace(manifest, earlier=kept))
    return tuple(removed)


def write_manifest(target: Path, stem: str, part: str, manifest: Manifest) -> Path:
    """Write the manifest of a part of a run."""
    return write_json(manifest_path(target, stem, part), manifest.to_json())


def _files_of(trees: Mapping[str, Path | None]) -> Iterator[tuple[str, Path]]:
    """Yield relative paths and paths of all files in trees."""
    for tree in filter(None, trees.values()):
        for source in sorted(p for p in tree.rglob("*") if p.is_file()):
            yield source.relative_to(tree).as_posix(), source


def _sidecar_text(source: Path, configuration: str, activity: str | None) -> str | None:
    """Return the text of a sidecar with the configuration, and its provenance if there is an activity.

    None for other files, such as those of clip stores.
    """
    if source.suffix != ".json" or source.name in (ENTRY, STORE):
        return None
    content = json.loads(source.read_bytes()) | {CONFIGURATION_KEY: configuration}
    if activity:
        described = [path for path in sorted(source.parent.glob(f"{source.stem}.*")) if path != source]
        content[GENERATED_BY] = activity
        if described:
            content[DIGEST] = {"SHA-256": file_sha256(described[0])}
    return as_json_text(content)


def _stamp_of(source: Path, text: str | None) -> FileStamp:
    """Return the stamp that a file will have in the output folder; ``text`` is that of a sidecar."""
    if text is None:
        return FileStamp(size=source.stat().st_size, sha256=file_sha256(source))
    data = text.encode("utf-8", errors="surrogateescape")
    return FileStamp(size=len(data), sha256=sha256(data).hexdigest())


def _earlier_files(target: Path, old: Manifest) -> dict[str, FileStamp]:
    """Return all files of an earlier manifest, with the stamp of what is there if writing them was interrupted."""
    found = old.earlier | old.files
    for name in old.earlier.keys() & old.files.keys():
        if _has_content(target / name, old.earlier[name]):
            found[name] = old.earlier[name]
    return found


def _has_content(path: Path, stamp: FileStamp) -> bool:
    """Return whether a file still has the content with which it was written."""
    try:
        return path.stat().st_size == stamp.size and file_sha256(path) == stamp.sha256
    except OSError:
        return False


def _files_of_others(target: Path, stem: str) -> set[str] | None:
    """Return the files of the other runs of the participant; None if a manifest cannot be read."""
    found: set[str] = set()
    for other in stems_with_manifest(target / stem.partition("_")[0]):
        for part in PARTS if other != stem else ():
            try:
                manifest = read_manifest(target, other, part)
            except BadDataError:
                return None
            found |= set(manifest.files) if manifest else set()
    return found


def _read_or_ignore(target: Path, stem: str, part: str) -> Manifest | None:
    """Read a manifest; None if it is missing or damaged."""
    try:
        return read_manifest(target, stem, part)
    except BadDataError as error:
        LOGGER.warning("%s Files that it named stay in the output folder.", error.message)
        return None
