"""Putting files of others into an image while it is built: ``python -m bids_app.catalog.bake templates atlases NAME``.

``templates`` and ``atlases`` are those of the catalogs, any other name is a model's. They go where a run looks for
them, ``TEMPLATEFLOW_HOME`` and ``NEUROSTORM_CACHE``, so these should be folders of the image. It needs a network, and
says which file it could not get.
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
from bids_app.catalog.fetch import fetch
from bids_app.catalog.models import cache_dir, find_model
from bids_app.errors import EXIT_OK, NeurostormError, TemporaryError

ENTITY = re.compile(r"(?P<name>tpl|res|atlas|desc)-(?P<value>[^_.]+)")
LONG_NAMES = {"res": "resolution", "atlas": "atlas", "desc": "desc"}


def main(names: Sequence[str]) -> int:
    """Fetch all that is named; returns the exit code."""
    try:
        for name in names:
            if name in CATALOGS:
                CATALOGS[name]()
            else:
                bake_model(name)
    except NeurostormError as error:
        print(f"bake: error: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def bake_templates() -> None:
    """All of TemplateFlow's templates in the catalog, at their first, coarsest resolution."""
    for name, entry in templates.catalog().items():
        if entry["source"] == "templateflow":
            for kind in ("t1w", "mask"):
                folder = templates.templateflow_home() / f"tpl-{name}"
                told(f"template {name}", templateflow_file(entry[kind][0], folder))


def bake_atlases() -> None:
    """All atlases in the catalog: from TemplateFlow, or by the command that the catalog gives."""
    for name, entry in atlases.catalog().items():
        file = Path(entry["files"][0])
        if file.parts[0].startswith("tpl-"):
            told(f"atlas {name}", templateflow_file(file.name, templates.templateflow_home() / file.parent))
        else:
            told(f"atlas {name}", by_command(entry["get"], name))


def bake_model(name: str) -> None:
    """A model of the hub."""
    told(f"model {name}", fetch(find_model(name)))


CATALOGS = {"templates": bake_templates, "atlases": bake_atlases}


def templateflow_file(name: str, folder: Path) -> Path:
    """Have TemplateFlow bring one of its files."""
    found = {match["name"]: match["value"] for match in ENTITY.finditer(name)}
    suffix = name.partition(".")[0].rpartition("_")[2]
    wanted = {LONG_NAMES[key]: value for key, value in found.items() if key != "tpl"}
    wanted = {"desc": None, "atlas": None} | wanted | {"resolution": int(wanted["resolution"])}
    try:
        from templateflow.api import get

        get(found["tpl"], suffix=suffix, extension=".nii.gz", raise_empty=True, **wanted)
    except Exception as error:  # whatever its HTTP library raises
        raise TemporaryError(f"TemplateFlow did not give {name} ({error}).", "Is there a network?") from error
    return existing(folder / name)


def by_command(command: str, name: str) -> Path:
    """Run the command that gets an atlas; it lands in nilearn's folder, and is moved to ours with its table."""
    landed = cache_dir() / "nilearn"
    done = subprocess.run(["/bin/sh", "-c", command], env=os.environ | {"NILEARN_DATA": str(landed)}, check=False)
    try:
        image = next(path for file in atlases.catalog()[name]["files"] if (path := landed / file).is_file())
    except StopIteration:
        raise TemporaryError(
            f"The atlas {name} did not come (exit code {done.returncode}).", "Is there a network?"
        ) from None
    target = cache_dir() / "atlases" / image.name
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in image.parent.glob(f"{image.name.partition('.')[0]}.*"):
        shutil.move(path, target.with_name(path.name))
    shutil.rmtree(landed)
    return existing(target)


def existing(path: Path) -> Path:
    """The path, if a file with content is there."""
    if not path.is_file() or not path.stat().st_size:
        raise TemporaryError(f"{path} did not come.", "Is there a network?")
    return path


def told(what: str, path: Path) -> None:
    """Say what came."""
    print(f"bake: {what}: {path} ({path.stat().st_size / 1e6:.1f} MB)", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
