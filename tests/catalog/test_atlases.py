"""Atlases are found by name or path, with the names of their regions, or say how to get them."""

from __future__ import annotations

import hashlib

import pytest

from bids_app.catalog.atlases import catalog, find_atlas
from bids_app.errors import BadDataError, NoInputError, UsageError


@pytest.fixture(autouse=True)
def empty_places(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path / "nilearn"))
    monkeypatch.delenv("NILEARN_SHARED_DATA", raising=False)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templateflow"))
    return tmp_path


def put(path, content: bytes = b"image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("place", ["cache/atlases/AAL3v1.nii.gz", "nilearn/aal_3v2/AAL3/AAL3v1.nii.gz"])
def test_an_atlas_is_found_where_others_put_it(empty_places, place):
    path = put(empty_places / place)
    atlas = find_atlas("aal3")
    assert (atlas.path, atlas.licence, atlas.is_known_copy) == (path, "GPL", False)


def test_the_copy_that_the_catalog_knows_is_recognised(empty_places, monkeypatch):
    path = put(empty_places / "cache/atlases/AAL3v1.nii.gz", b"the copy that is known")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(catalog(), "aal3", catalog()["aal3"] | {"sha256": digest})
    assert find_atlas("aal3").is_known_copy
    put(path, b"another")
    assert not find_atlas("aal3").is_known_copy


@pytest.mark.parametrize("name", sorted(catalog()))
def test_an_atlas_that_is_not_here_says_how_to_get_it(name):
    with pytest.raises(NoInputError, match=name) as caught:
        find_atlas(name)
    assert "python -c" in caught.value.hint


def test_an_unknown_name_lists_those_that_exist():
    with pytest.raises(UsageError, match="nonsense") as caught:
        find_atlas("nonsense")
    assert "aal3" in caught.value.hint


def test_any_label_image_is_taken_by_its_path(tmp_path):
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
def test_names_of_regions_come_from_the_table_beside(tmp_path, suffix, text):
    path = put(tmp_path / "mine.nii.gz")
    (tmp_path / f"mine{suffix}").write_text(text)
    assert find_atlas(path).names == {1: "Left", 7: "Right"}


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    path = put(tmp_path / "mine.nii.gz")
    (tmp_path / "mine.tsv").write_text("number\tname\n1\tLeft\n")
    with pytest.raises(BadDataError, match=r"mine\.nii"):
        find_atlas(path)
