"""Files of the group level as a set: complete or as before, also if the level is killed."""

import pytest

from bids_app.bids.writer import temporary_name
from bids_app.errors import InputOutputError
from bids_app.group import publish
from bids_app.group.publish import staged


def write(folder, names, text):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


OLD = ("group.html", "group_runs.tsv", "group_bold.tsv", "group_figures/sites.svg", "ratings/include.tsv")
NEW = ("group.html", "group_runs.tsv", "phenotype/neurostorm_a.tsv")


def test_a_complete_set_replaces_the_earlier_one(tmp_path):
    write(tmp_path, [*OLD, "group_notes.txt", "ratings/rater-AB_ratings.tsv"], "old")
    with staged(tmp_path) as folder:
        write(folder, NEW, "new")
        assert content(tmp_path)["group.html"] == "old"
    kept = {"group_notes.txt": "old", "ratings/rater-AB_ratings.tsv": "old"}
    assert content(tmp_path) == dict.fromkeys(NEW, "new") | kept


def test_a_set_that_is_not_complete_leaves_the_earlier_one(tmp_path):
    write(tmp_path, OLD, "old")
    stage = staged(tmp_path)
    write(stage.__enter__(), NEW[:2], "new")
    assert not stage.__exit__(ValueError, ValueError(), None)
    assert content(tmp_path) == dict.fromkeys(OLD, "old")


def test_a_level_that_is_killed_while_files_are_moved_leaves_no_page(tmp_path, monkeypatch):
    write(tmp_path, OLD, "old")

    def killed_at_the_page(source, target):
        if target.name == "group.html":
            raise KeyboardInterrupt
        source.rename(target)

    monkeypatch.setattr(publish.os, "replace", killed_at_the_page)
    with pytest.raises(KeyboardInterrupt), staged(tmp_path) as folder:
        write(folder, NEW, "new")
    assert content(tmp_path) == dict.fromkeys(NEW[1:], "new")


def test_folders_of_killed_levels_are_removed(tmp_path):
    left = temporary_name(tmp_path / "group").name.replace("neurostorm-", "neurostorm-99999999", 1)
    write(tmp_path, [f"{left}/group_runs.tsv"], "half")
    with staged(tmp_path):
        pass
    assert content(tmp_path) == {}


def test_a_file_that_cannot_be_replaced_is_named(tmp_path):
    (tmp_path / "group_runs.tsv" / "x").mkdir(parents=True)
    with pytest.raises(InputOutputError, match=r"group_runs\.tsv"), staged(tmp_path) as folder:
        write(folder, NEW, "new")
