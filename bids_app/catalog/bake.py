"""Third-party files for a container image at build time: ``python -m bids_app.catalog.bake templates atlases NAME``.

``templates`` and ``atlases`` fetch those of the catalogs; any other name is a model, or a reference to a file of the
hub. The files are stored in ``TEMPLATEFLOW_HOME`` and ``NEUROSTORM_CACHE``, which should be folders of the image.
Network access is required; a file that cannot be fetched is named.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bids_app.catalog import atlases, templates
from bids_app.catalog.cache import cache_dir
from bids_app.catalog.fetch import fetch, file_sha256
from bids_app.catalog.fetch_reference import fetch_reference
from bids_app.catalog.models import find_model
from bids_app.catalog.references import is_reference
from bids_app.errors import EXIT_OK, BadDataError, NeurostormError, TemporaryError

ENTITY = re.compile(r"(?P<name>tpl|res|atlas|desc)-(?P<value>[^_.]+)")
LONG_NAMES = {"res": "resolution", "atlas": "atlas", "desc": "desc"}


def main(names: Sequence[str]) -> int:
    """Fetch everything that is named; return the exit code."""
    try:
        for name in names:
            if name in CATALOGS:
                CATALOGS[name]()
            else:
                fetch_model(name)
    except NeurostormError as error:
        print(f"bake: error: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def fetch_templates() -> None:
    """Fetch TemplateFlow's templates of the catalog, at their first, coarsest resolution."""
    for name, entry in templates.catalog().items():
        if entry["source"] == "templateflow":
            for kind in ("t1w", "mask"):
                folder = templates.templateflow_home() / f"tpl-{name}"
                report(f"template {name}", fetch_from_templateflow(entry[kind][0], folder))


def fetch_atlases() -> None:
    """Fetch all atlases of the catalog: from TemplateFlow, or by the command in the catalog."""
    for name, entry in atlases.catalog().items():
        file = Path(entry["files"][0])
        if file.parts[0].startswith("tpl-"):
            path = fetch_from_templateflow(file.name, templates.templateflow_home() / file.parent)
        else:
            path = fetch_by_command(entry["get"], name)
        report(f"atlas {name}", require_known(path, entry.get("sha256")))


def fetch_model(name: str) -> None:
    """Fetch a model from the hub, by name or reference."""
    path = fetch_reference(name).path if is_reference(name) else fetch(find_model(name))
    report(f"model {name}", path)


CATALOGS = {"templates": fetch_templates, "atlases": fetch_atlases}


def fetch_from_templateflow(name: str, folder: Path) -> Path:
    """Fetch a file with TemplateFlow."""
    found = {match["name"]: match["value"] for match in ENTITY.finditer(name)}
    suffix = name.partition(".")[0].rpartition("_")[2]
    wanted = {LONG_NAMES[key]: value for key, value in found.items() if key != "tpl"}
    wanted = {"desc": None, "atlas": None} | wanted | {"resolution": int(wanted["resolution"])}
    try:
        from templateflow.api import get

        get(found["tpl"], suffix=suffix, extension=".nii.gz", raise_empty=True, **wanted)
    except Exception as error:  # any error of its HTTP library
        raise TemporaryError(f"{name}: not fetched by TemplateFlow ({error}).", "Check the network.") from error
    return require_file(folder / name)


def fetch_by_command(command: str, name: str) -> Path:
    """Run the command that downloads an atlas into nilearn's folder; move it and its table to the cache."""
    nilearn_data = cache_dir() / "nilearn"
    done = subprocess.run(["/bin/sh", "-c", command], env=os.environ | {"NILEARN_DATA": str(nilearn_data)}, check=False)
    try:
        image = next(path for file in atlases.catalog()[name]["files"] if (path := nilearn_data / file).is_file())
    except StopIteration:
        raise TemporaryError(
            f"Atlas {name} was not downloaded (exit code {done.returncode}).", "Check the network."
        ) from None
    target = cache_dir() / "atlases" / image.name
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in image.parent.glob(f"{image.name.partition('.')[0]}.*"):
        shutil.move(path, target.with_name(path.name))
    shutil.rmtree(nilearn_data)
    return require_file(target)


def require_file(path: Path) -> Path:
    """Return the path of a non-empty file; raise if it does not exist."""
    if not path.is_file() or not path.stat().st_size:
        raise TemporaryError(f"{path}: not downloaded.", "Check the network.")
    return path


def require_known(path: Path, sha256: str | None) -> Path:
    """Return the path of a file with this SHA-256 checksum, if it is known; remove another file and raise."""
    found = file_sha256(path)
    if sha256 not in (None, found):
        path.unlink()
        raise BadDataError(
            f"{path.name}: sha256 {found[:12]}… instead of {str(sha256)[:12]}… in the catalog.",
            "The published file has changed, or the mirror sends another one; it was removed.",
        )
    return path


def report(what: str, path: Path) -> None:
    """Print a fetched file with its size."""
    print(f"bake: {what}: {path} ({path.stat().st_size / 1e6:.1f} MB)", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
