"""Third-party files for a container image, and errors for failed downloads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import templateflow.api

from bids_app.catalog import atlases, bake, templates
from tests.helpers.hub import COMMIT, serve_hub


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch) -> Path:
    """Caches of a container image."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templateflow"))
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write_file(name: str, **entities: object) -> None:
    """Write the TemplateFlow file with these entities."""
    parts = [f"tpl-{name}", f"res-{entities['resolution']:02d}"]
    parts += [f"{key}-{entities[key]}" for key in ("atlas", "desc") if entities[key]]
    folder = templates.templateflow_home() / f"tpl-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{'_'.join(parts)}_{entities['suffix']}{entities['extension']}").write_bytes(b"an image")


def test_fetched_templates_are_available(monkeypatch, capsys) -> None:
    monkeypatch.setattr(templateflow.api, "get", lambda name, raise_empty, **entities: write_file(name, **entities))
    assert templates.available() == ("MNI152NLin6Asym", "MNI152NLin2009aSym")
    assert bake.main(["templates"]) == 0
    assert templates.available() == ("MNI152NLin6Asym", "MNI152NLin2009aSym", "MNI152NLin2009cAsym")
    assert capsys.readouterr().out.count("bake: template") == 4


def test_fetched_atlases_are_available(monkeypatch) -> None:
    monkeypatch.setattr(templateflow.api, "get", lambda name, raise_empty, **entities: write_file(name, **entities))
    catalog = atlases.catalog()
    folder = '"$NILEARN_DATA"/aal_3v2/AAL3'
    command = f"mkdir -p {folder} && echo image > {folder}/AAL3v1.nii.gz && echo '<a/>' > {folder}/AAL3v1.xml"
    entry = catalog["aal3"] | {"get": command, "sha256": hashlib.sha256(b"image\n").hexdigest()}
    monkeypatch.setitem(catalog, "aal3", entry)
    assert bake.main(["atlases"]) == 0
    for name in catalog:
        assert atlases.find_atlas(name).path.is_file()
    assert atlases.find_atlas("aal3").path.with_name("AAL3v1.xml").is_file()
    assert not (atlases.cache_dir() / "nilearn").exists()


def test_an_atlas_with_another_checksum_than_in_the_catalog_is_removed(monkeypatch, capsys) -> None:
    catalog = atlases.catalog()
    folder = '"$NILEARN_DATA"/aal_3v2/AAL3'
    command = f"mkdir -p {folder} && echo other > {folder}/AAL3v1.nii.gz"
    monkeypatch.setattr(atlases, "catalog", lambda: {"aal3": catalog["aal3"] | {"get": command}})
    assert bake.main(["atlases"]) == 65
    assert "5821336edf1d… in the catalog" in capsys.readouterr().err
    assert not list(atlases.cache_dir().rglob("*.nii.gz"))


@pytest.mark.parametrize("get", [lambda *_, **__: None, lambda *_, **__: 1 / 0])
def test_failed_template_download_raises(get, monkeypatch, capsys) -> None:
    monkeypatch.setattr(templateflow.api, "get", get)
    assert bake.main(["templates"]) == 75
    assert "tpl-MNI152NLin6Asym_res-02_T1w.nii.gz" in capsys.readouterr().err


def test_failed_atlas_download_raises(monkeypatch, capsys) -> None:
    monkeypatch.setattr(atlases, "catalog", lambda: {"aal3": {"files": ["a.nii"], "get": "exit 3"}})
    assert bake.main(["atlases"]) == 75
    assert "aal3 was not downloaded (exit code 3)" in capsys.readouterr().err


def test_unknown_model_raises(capsys) -> None:
    assert bake.main(["neurostorm-6ds"]) == 64
    assert "neurostorm-6ds" in capsys.readouterr().err


def test_nothing_is_fetched_without_a_name() -> None:
    assert bake.main([]) == 0
    assert not templates.templateflow_home().exists()


def test_a_model_can_be_a_file_of_the_hub(tmp_path, monkeypatch, capsys) -> None:
    with serve_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add("lab/model", {"age.ckpt": b"weights"})
        assert bake.main(["hf:lab/model@main:age.ckpt"]) == 0
    assert f"hub/lab/model/{COMMIT}/age.ckpt" in capsys.readouterr().out
