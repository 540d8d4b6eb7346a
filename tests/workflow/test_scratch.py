"""Nobody else can plant code in the scratch folder."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from bids_app.errors import CannotCreateError
from bids_app.settings import own_scratch
from bids_app.workflow import scratch
from bids_app.workflow.scratch import PRIVATE, check_private, make_private


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_results_and_caches_are_accessible_to_their_owner_only(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make_private(tmp_path)
    finally:
        os.umask(before)
    assert [mode_of(tmp_path / name) for name in PRIVATE] == [0o700, 0o700]
    make_private(tmp_path)  # and again, as a later run does


def test_a_folder_that_others_could_only_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / PRIVATE[0]).mkdir(mode=0o755)
    make_private(tmp_path)
    assert mode_of(tmp_path / PRIVATE[0]) == 0o700


@pytest.mark.parametrize("name", PRIVATE)
@pytest.mark.parametrize("planted", ["a link", "open to the group", "open to all", "of another user", "a file"])
def test_a_subfolder_that_is_not_private_is_refused(tmp_path: Path, monkeypatch, name: str, planted: str) -> None:
    folder = tmp_path / name
    if planted == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif planted == "a file":
        folder.write_text("")
    else:
        folder.mkdir(mode=0o700)
    if planted.startswith("open"):
        folder.chmod(0o770 if planted == "open to the group" else 0o777)
    if planted == "of another user":
        give_away(folder, monkeypatch)
    for check in (check_private, make_private):
        with pytest.raises(CannotCreateError, match=str(folder)) as caught:
            check(tmp_path)
        assert "--work-dir" in caught.value.hint


def give_away(folder: Path, monkeypatch) -> None:
    """Make another user the owner of a folder, or pretend to be another user where that is not allowed."""
    if os.geteuid() == 0:
        os.chown(folder, 4321, 4321)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4321)


def test_a_parent_in_which_all_users_can_exchange_folders_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(CannotCreateError, match="all users can write here") as caught:
        check_private(shared / "work")
    assert f"chmod o-w {shared}" in caught.value.hint
    shared.chmod(0o1777)  # like /tmp
    check_private(shared / "work")


def test_a_shared_folder_of_a_group_can_hold_private_scratch(tmp_path: Path) -> None:
    tmp_path.chmod(0o2770)
    make_private(tmp_path)
    assert mode_of(tmp_path / PRIVATE[0]) & 0o777 == 0o700


@pytest.mark.parametrize("planted", ["a link", "open to all"])
def test_the_default_folder_in_the_temporary_folder_must_be_private(tmp_path: Path, monkeypatch, planted: str) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    base = own_scratch()
    if planted == "a link":
        (tmp_path / "elsewhere").mkdir()
        base.symlink_to(tmp_path / "elsewhere")
    else:
        base.mkdir()
        base.chmod(0o1777)
    with pytest.raises(CannotCreateError, match=str(base)):
        check_private(base / "abc")
    assert scratch.own_scratch() == base
