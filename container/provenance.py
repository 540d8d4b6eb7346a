"""Write ``provenance.json``: what an image was built from (step ``inventory`` of build.sh).

    python container/provenance.py FOLDER

FOLDER contains the software bills of materials, the lock files and ``torch.json``; build arguments are read from the
environment. The file is printed, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.catalog.licences import licence_expression, licences_here

ARGUMENTS = ("BASE_IMAGE", "BASE_DIGEST", "REVISION", "CREATED", "SOURCE_URL", "BAKE")
DATA = ("NEUROSTORM_CACHE", "TEMPLATEFLOW_HOME")


def provenance(folder: Path) -> dict[str, Any]:
    """Collect what an image was built from; values that the build was not given are null."""
    arguments = {name: os.environ.get(name) or None for name in ARGUMENTS}
    return {
        "image": os.environ.get("NEUROSTORM_IMAGE") or None,
        "version": __version__,
        "architecture": platform.machine(),
        "source": {"url": arguments["SOURCE_URL"], "revision": arguments["REVISION"]},
        "created": arguments["CREATED"],
        "base": {"name": arguments["BASE_IMAGE"], "digest": arguments["BASE_DIGEST"]},
        "baked": arguments["BAKE"],
        "licences": licence_expression(licences_here()),
        "torch": json.loads((folder / "torch.json").read_text(encoding="utf-8")),
        "files": [describe(path) for path in sorted((*folder.rglob("*.json"), *folder.rglob("*.lock")))],
        "data": [describe(path) for root in DATA for path in sorted(files_in(Path(os.environ[root])))],
    }


def files_in(folder: Path) -> list[Path]:
    """Return all files of a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def describe(path: Path) -> dict[str, Any]:
    """Return path, size (bytes) and SHA-256 checksum of a file."""
    with path.open("rb") as file:
        return {
            "path": str(path),
            "size": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def main(arguments: list[str]) -> int:
    """Write and print the file."""
    (folder,) = map(Path, arguments)
    target = folder / "provenance.json"
    target.unlink(missing_ok=True)
    text = json.dumps(provenance(folder), indent=1) + "\n"
    target.write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
