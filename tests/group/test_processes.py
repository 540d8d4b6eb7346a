"""The second process of the group level: the same files, and its errors."""

import os
import shutil
import time

import pytest

from bids_app.cli.neurostorm import main
from bids_app.errors import CannotCreateError
from bids_app.group.processes import second_process


@pytest.fixture
def few(monkeypatch):
    """Start other processes for two participants and more."""
    for module in ("processes", "reading"):
        monkeypatch.setattr(f"bids_app.group.{module}.MAX_SERIAL", 1)


def level(group, out, n_procs):
    return main([str(group.raw), str(out), "group", "--nprocs", n_procs, "-w", str(out.parent / "w")])


def content(folder):
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith("sub-")}


def test_files_do_not_depend_on_the_number_of_processes(finished, few, tmp_path):
    other = tmp_path / finished.out.name
    shutil.copytree(finished.out, other)
    for path in other.glob("group*.*"):
        path.unlink()
    shutil.rmtree(other / "group_figures")
    assert level(finished, other, "2") == 0
    one, two = content(finished.out), content(other)
    assert "group_figures/identity.svg" in one
    assert [name for name in one.keys() | two.keys() if one.get(name) != two.get(name)] == []


def no_permission(*_, **__):
    raise CannotCreateError(f"No permission in process {os.getpid()}.", "Change it.")


def test_a_figure_that_the_second_process_cannot_write_leaves_the_earlier_files(make_group, few, monkeypatch, capsys):
    group = make_group(participants=2, sessions=1, clips=2)
    (group.out / "group.html").write_text("earlier")
    monkeypatch.setattr("bids_app.group.quality.plot_distributions", no_permission)
    assert level(group, group.out, "2") == CannotCreateError.exit_code
    error = capsys.readouterr().err
    assert "No permission in process" in error
    assert f"No permission in process {os.getpid()}." not in error
    assert group.page() == "earlier"
    assert not list(group.out.glob(".neurostorm-*"))


def test_an_error_of_the_level_cancels_what_the_second_process_has_not_begun(few):
    waiting = []

    def fail():
        with second_process(2, 2) as executor:
            waiting.extend(executor.submit(time.sleep, 0.05) for _ in range(5))
            raise ValueError("level")

    with pytest.raises(ValueError, match="level"):
        fail()
    assert waiting[-1].cancelled()
