"""Atlases by name or path, their region names, and hints for missing ones."""

from __future__ import annotations

import hashlib

import pytest

from bids_app.catalog.atlases import catalog, find_atlas, region_names
from bids_app.errors import BadDataError, NoInputError, UsageError


@pytest.fixture(autouse=True)
def empty_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path / "nilearn"))
    monkeypatch.delenv("NILEARN_SHARED_DATA", raising=False)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templateflow"))
    return tmp_path


def put(path, content: bytes = b"image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("file", ["cache/atlases/AAL3v1.nii.gz", "nilearn/aal_3v2/AAL3/AAL3v1.nii.gz"])
def test_atlas_is_found_in_cache_and_nilearn_data(empty_folders, file):
    path = put(empty_folders / file)
    atlas = find_atlas("aal3")
    assert (atlas.path, atlas.licence, atlas.is_known_copy) == (path, "GPL", False)


def test_copy_in_the_catalog_is_recognised(empty_folders, monkeypatch):
    path = put(empty_folders / "cache/atlases/AAL3v1.nii.gz", b"known copy")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(catalog(), "aal3", catalog()["aal3"] | {"sha256": digest})
    assert find_atlas("aal3").is_known_copy
    put(path, b"another")
    assert not find_atlas("aal3").is_known_copy


@pytest.mark.parametrize("name", sorted(catalog()))
def test_missing_atlas_hints_at_its_download(name):
    with pytest.raises(NoInputError, match=name) as caught:
        find_atlas(name)
    assert "python -c" in caught.value.hint


def test_an_empty_file_of_an_interrupted_download_is_no_atlas(empty_folders):
    put(empty_folders / "cache/atlases/AAL3v1.nii.gz", b"")
    with pytest.raises(NoInputError, match="not on this machine"):
        find_atlas("aal3")
    whole = put(empty_folders / "nilearn/aal_3v2/AAL3/AAL3v1.nii.gz")
    assert find_atlas("aal3").path == whole


def test_unknown_name_lists_the_catalog():
    with pytest.raises(UsageError, match="nonsense") as caught:
        find_atlas("nonsense")
    assert "aal3" in caught.value.hint


def test_label_image_is_found_by_its_path(tmp_path):
    path = put(tmp_path / "mine.nii.gz")
    assert (find_atlas(path).name, find_atlas(str(path)).names) == ("mine", {})
    with pytest.raises(NoInputError, match="none"):
        find_atlas(tmp_path / "none.nii")


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".tsv", "index\tname\n1\tLeft\n7\tRight\n"),
        (".csv", "index,name\n1,Left\n7,Right\n"),
        (".xml", "<atlas><data><label><index>1</index><name>Left</name></label>"
                 "<label><index>7</index><name>Right</name></label></data></atlas>"),
    ],
)  # fmt: skip
def test_region_names_are_read_from_the_table(tmp_path, suffix, text):
    path = put(tmp_path / "mine.nii.gz")
    (tmp_path / f"mine{suffix}").write_text(text)
    assert find_atlas(path).names == {1: "Left", 7: "Right"}


def test_one_table_is_for_all_resolutions_as_in_templateflow(tmp_path):
    path = put(tmp_path / "tpl-MNI152NLin6Asym_res-02_atlas-Schaefer2018_dseg.nii.gz")
    table = tmp_path / "tpl-MNI152NLin6Asym_atlas-Schaefer2018_dseg.tsv"
    table.write_text("index\tname\tcolor\n1\t7Networks_LH_Vis_1\t#781284\n")
    assert find_atlas(path).names == {1: "7Networks_LH_Vis_1"}
    path.with_name(table.name.replace("_atlas", "_res-02_atlas")).write_text("index\tname\n1\town\n")
    assert find_atlas(path).names == {1: "own"}


def test_the_command_that_gets_a_schaefer_atlas_gets_its_names_too():
    command = catalog()["schaefer2018-100"]["get"]
    assert command.count("get('MNI152NLin6Asym'") == 2
    assert "extension='.tsv'" in command


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("number\tname\n1\tLeft\n", "no column 'index'"),
        ("index\tname\nfirst\tLeft\n", "'first'"),
        ("index\tname\n1\tLeft\n1\tRight\n", "index 1 occurs twice"),
    ],
)
def test_an_invalid_table_of_regions_is_named(tmp_path, text, problem):
    path = put(tmp_path / "mine.nii.gz")
    (tmp_path / "mine.tsv").write_text(text)
    with pytest.raises(BadDataError, match=rf"mine\.tsv: .*{problem}") as caught:
        find_atlas(path)
    assert "index and name" in caught.value.hint


def test_a_name_that_is_not_available_is_no_name(tmp_path):
    path = put(tmp_path / "mine.nii.gz")
    (tmp_path / "mine.csv").write_text("index,name\n1,n/a\n2,\n3\n4,Left\n")
    assert find_atlas(path).names == {4: "Left"}


@pytest.mark.parametrize("name", ["tpl-MNI152NLin2009cAsym_res-02_atlas-Tian_dseg", "atlas-x_space-T1w_dseg"])
def test_an_atlas_whose_name_has_another_space_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"in the space (MNI152NLin2009cAsym|T1w) by its name"):
        find_atlas(put(tmp_path / f"{name}.nii.gz"))
    assert find_atlas(put(tmp_path / "atlas-x_space-MNI152NLin6Asym_dseg.nii.gz")).names == {}


def test_names_of_regions_have_no_hidden_characters(tmp_path):
    table = tmp_path / "mine.tsv"
    table.write_text("index\tname\n1\t\u202eTxeL\x07 \u2066A\u2069\n2\tPutamen\n", encoding="utf-8")
    assert region_names(table) == {1: "TxeL   A", 2: "Putamen"}
