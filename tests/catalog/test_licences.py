"""Licence label of an image: of the app and of the models and atlases in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.catalog.licences import licence_expression, licences_here, main
from bids_app.catalog.models import catalog
from bids_app.catalog.references import FileFacts, Reference, file_in_cache, write_facts


@pytest.fixture(autouse=True)
def image(tmp_path: Path, monkeypatch) -> Path:
    """Empty data folders of an image."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path / "neurostorm"))
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templateflow"))
    for name in ("NILEARN_DATA", "NILEARN_SHARED_DATA"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def bake(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"content")


def test_the_image_without_baked_files_has_the_licence_of_the_app() -> None:
    assert licence_expression(licences_here()) == "Apache-2.0"


def test_a_baked_gpl_atlas_and_model_are_in_the_licence(image: Path, capsys) -> None:
    bake(image / "neurostorm" / "atlases" / "AAL3v1.nii.gz")
    assert main([]) == 0
    assert capsys.readouterr().out == "Apache-2.0 AND GPL-1.0-or-later\n"
    bake(catalog()["neurostorm-5ds"].path)
    assert licence_expression(licences_here()) == "Apache-2.0 AND GPL-1.0-or-later AND MIT"


def test_a_label_that_omits_a_baked_licence_is_refused(image: Path, capsys) -> None:
    assert main(["--check", "Apache-2.0"]) == 0
    bake(image / "neurostorm" / "atlases" / "AAL3v1.nii.gz")
    assert main(["--check", "Apache-2.0"]) == 64
    assert 'LICENSES="Apache-2.0 AND GPL-1.0-or-later"' in capsys.readouterr().err
    assert main(["--check", "Apache-2.0 AND GPL-1.0-or-later"]) == 0


def test_files_of_the_hub_are_part_of_the_licence() -> None:
    for name, licence in (("a", "cc-by-nc-4.0"), ("b", ""), ("c", "mit")):
        path = file_in_cache(Reference("lab/model", "1" * 40, f"{name}.ckpt"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        write_facts(path, FileFacts(licence=licence))
    found = licence_expression(licences_here()).split(" AND ")
    assert {"CC-BY-NC-4.0", "LicenseRef-not-stated", "MIT"} <= set(found)
