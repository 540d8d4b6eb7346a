"""Provenance of an image: what it was built from, with hashes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from bids_app import __version__
from tests.helpers.paths import ROOT

DIGEST = f"sha256:{'0a' * 32}"


def write_provenance(folder: Path, **arguments: str) -> dict:
    """Run the script on a folder with the facts of a build, and read what it wrote."""
    share = folder / "share"
    (share / "requirements").mkdir(parents=True, exist_ok=True)
    (share / "torch.json").write_text('{"version": "2.13.0+cpu", "sha256": "00"}')
    (share / "requirements" / "container.lock").write_text("a==1\n")
    data = {"NEUROSTORM_CACHE": str(folder / "cache"), "TEMPLATEFLOW_HOME": str(folder / "templateflow")}
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **data, **arguments}
    command = [sys.executable, ROOT / "container" / "provenance.py", share]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return json.loads((share / "provenance.json").read_text())


def test_provenance_has_base_source_torch_and_hashes_of_lock_files_and_data(tmp_path: Path) -> None:
    atlas = tmp_path / "cache" / "atlases" / "AAL3v1.nii.gz"
    atlas.parent.mkdir(parents=True)
    atlas.write_bytes(b"atlas")
    given = {"BASE_IMAGE": f"debian@{DIGEST}", "BASE_DIGEST": DIGEST, "REVISION": "f00", "SOURCE_URL": "place"}
    content = write_provenance(tmp_path, **given, NEUROSTORM_IMAGE="neurostorm:1")
    assert content["image"] == "neurostorm:1"
    assert content["version"] == __version__
    assert content["base"] == {"name": f"debian@{DIGEST}", "digest": DIGEST}
    assert content["source"] == {"url": "place", "revision": "f00"}
    assert content["torch"] == {"version": "2.13.0+cpu", "sha256": "00"}
    assert content["licences"] == "Apache-2.0 AND GPL-1.0-or-later"
    hashes = {Path(file["path"]).name: file["sha256"] for file in content["files"]}
    assert hashes["container.lock"] == hashlib.sha256(b"a==1\n").hexdigest()
    digest = hashlib.sha256(b"atlas").hexdigest()
    assert content["data"] == [{"path": str(atlas), "size": 5, "sha256": digest}]


def test_values_that_the_build_was_not_given_are_null(tmp_path: Path) -> None:
    content = write_provenance(tmp_path, BASE_DIGEST="")
    assert content["base"] == {"name": None, "digest": None}
    assert content["created"] is None
    assert content["data"] == []
