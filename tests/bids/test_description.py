"""The output folder says what it is, whoever writes it and how many at once."""

import json
import multiprocessing

import pytest

import bids_app.bids.description as description
from bids_app import __version__
from bids_app.bids.description import BIDSIGNORE, check_output_folder, describe_outputs
from bids_app.errors import CannotCreateError


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw data"
    folder.mkdir()
    content = {"Name": "Study", "BIDSVersion": "1.8.0", "License": "CC0", "DatasetDOI": "doi:10.18112/x.v1"}
    (folder / "dataset_description.json").write_text(json.dumps(content))
    return folder


def read(out):
    return json.loads((out / "dataset_description.json").read_text())


def test_the_description_names_source_version_and_links(raw, tmp_path):
    describe_outputs(tmp_path / "out", raw)
    content = read(tmp_path / "out")
    assert content["DatasetType"] == "derivative"
    assert content["GeneratedBy"] == [{"Name": "NeuroSTORM", "Version": __version__}]
    assert content["DatasetLinks"] == {"raw": raw.as_uri()}
    assert "%20" in content["DatasetLinks"]["raw"]
    assert content["SourceDatasets"] == [{"URL": "https://doi.org/10.18112/x.v1", "DOI": "doi:10.18112/x.v1"}]
    assert content["License"] == "CC0"
    assert "Study" in content["Name"]
    assert (tmp_path / "out" / "README.md").exists()


def test_a_container_is_named(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROSTORM_IMAGE", "neurostorm:0.1")
    describe_outputs(tmp_path / "docker", raw)
    assert read(tmp_path / "docker")["GeneratedBy"][0]["Container"] == {"Type": "docker", "Tag": "neurostorm:0.1"}
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/neurostorm.sif")
    monkeypatch.delenv("NEUROSTORM_IMAGE")
    describe_outputs(tmp_path / "apptainer", raw)
    container = read(tmp_path / "apptainer")["GeneratedBy"][0]["Container"]
    assert container == {"Type": "singularity", "Tag": "neurostorm.sif"}


def test_writing_again_changes_nothing(raw, tmp_path):
    out = tmp_path / "out"
    describe_outputs(out, raw)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    describe_outputs(out, raw)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before


def test_an_earlier_version_stays_listed(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(description, "__version__", "0.0.9")
    describe_outputs(tmp_path / "out", raw)
    monkeypatch.undo()
    describe_outputs(tmp_path / "out", raw)
    assert [entry["Version"] for entry in read(tmp_path / "out")["GeneratedBy"]] == [__version__, "0.0.9"]


def test_lines_of_others_in_bidsignore_and_their_readme_stay(raw, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".bidsignore").write_text("mine/\n*.html\n")
    (out / "README").write_text("mine")
    describe_outputs(out, raw)
    lines = (out / ".bidsignore").read_text().splitlines()
    assert lines[:2] == ["mine/", "*.html"]
    assert sorted(lines[1:]) == sorted(BIDSIGNORE)
    assert (out / "README").read_text() == "mine"
    assert not (out / "README.md").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"Name": "raw", "BIDSVersion": "1.8.0"}', "has not made"),
        ('{"Name": "x", "GeneratedBy": [{"Name": "fMRIPrep"}]}', "outputs of fMRIPrep"),
        ('{"Name": "x", "GeneratedBy": {"Name": "NeuroSTORM"}}', "has not made"),
        ("{", "not valid JSON"),
    ],
)
def test_a_folder_of_somebody_else_is_refused(raw, tmp_path, content, words):
    (tmp_path / "dataset_description.json").write_text(content)
    with pytest.raises(CannotCreateError, match=words) as caught:
        check_output_folder(tmp_path)
    assert str(tmp_path) in caught.value.message
    with pytest.raises(CannotCreateError):
        describe_outputs(tmp_path, raw)


def test_four_processes_may_describe_one_folder(raw, tmp_path):
    out = tmp_path / "out"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_describe_often, args=(out, raw)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert len(read(out)["GeneratedBy"]) == 1
    assert sorted((out / ".bidsignore").read_text().splitlines()) == sorted(BIDSIGNORE)
    assert sorted(path.name for path in out.iterdir()) == [".bidsignore", "README.md", "dataset_description.json"]


def _describe_often(out, raw):
    for _ in range(20):
        describe_outputs(out, raw)
