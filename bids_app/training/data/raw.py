"""The raw dataset of derivatives, and the tables of events in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from bids_app.bids.sidecars import Inheritance, read_json
from bids_app.errors import NeurostormError
from bids_app.training.data.scan import Scan


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
