"""Socket folders of killed runs are removed; those of runs that still run, of others and of other programs stay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bids_app.bids.processes import process_scope, start_time
from bids_app.workflow.sockets import OWNER_FILE, remove_abandoned
from tests.helpers.odd_files import make_pipe
from tests.helpers.scripts import ENVIRONMENT

RUN = """
import os, signal
from pathlib import Path
from bids_app.workflow.pool import RobustMultiProcPlugin
from bids_app.workflow.sockets import mark
from bids_app.workflow.supervisor import supervise

code = supervise([]) if {supervised} else None
if code is None:
    RobustMultiProcPlugin(plugin_args={{"n_procs": 2, "memory_gb": 1, "mp_context": "forkserver"}})
    print(mark(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
raise SystemExit(code)
"""


@pytest.fixture
def temporary(monkeypatch) -> Iterator[Path]:
    """A temporary folder with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setattr("bids_app.workflow.sockets.SHORT", folder)
        yield Path(folder)


def make_folder(parent: Path, **changes: object) -> Path:
    """Make the socket folder of a process that has ended."""
    folder = parent / "pymp-x1"
    folder.mkdir(mode=0o700)
    (folder / "listener-1").touch()
    owner = {"pid": os.getpid(), "started": "1", "place": process_scope()}  # the number was used again
    (folder / OWNER_FILE).write_text(json.dumps(owner | changes))
    return folder


@pytest.mark.parametrize("supervised", [True, False], ids=["supervised", "alone"])
def test_the_folder_of_a_killed_run_is_removed(temporary: Path, supervised: bool) -> None:
    """By the process that supervises the run, or else by the next run."""
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(supervised=supervised)],
        env=ENVIRONMENT | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    folder = Path(done.stdout.strip())
    assert done.returncode == (75 if supervised else -signal.SIGKILL), done.stderr
    assert folder.parent == temporary
    assert folder.exists() != supervised
    assert remove_abandoned() == ([] if supervised else [folder])
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_run_that_still_runs_is_kept(temporary: Path) -> None:
    folder = make_folder(temporary, started=start_time(os.getpid()))
    assert remove_abandoned() == []
    assert (folder / "listener-1").exists()


def test_the_folder_of_a_container_is_kept(temporary: Path) -> None:
    make_folder(temporary, place="another")
    assert remove_abandoned() == []


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "x"}', '{"a": ' * 2000])
def test_a_folder_without_a_valid_owner_is_kept(temporary: Path, content: str) -> None:
    (make_folder(temporary) / OWNER_FILE).write_text(content)
    assert remove_abandoned() == []


@pytest.mark.timeout(20)
def test_the_folder_of_another_program_is_kept(temporary: Path) -> None:
    folder = make_folder(temporary)
    (folder / OWNER_FILE).unlink()
    assert remove_abandoned() == []
    make_pipe(folder / OWNER_FILE)
    assert remove_abandoned() == []


def test_the_folder_of_another_user_and_a_link_are_kept(temporary: Path, monkeypatch) -> None:
    folder = make_folder(temporary)
    folder.rename(temporary / "elsewhere")
    folder.symlink_to(temporary / "elsewhere")
    assert remove_abandoned() == []
    folder.unlink()
    (temporary / "elsewhere").rename(folder)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert remove_abandoned() == []


def test_a_folder_that_others_can_write_is_kept(temporary: Path) -> None:
    make_folder(temporary).chmod(0o777)
    assert remove_abandoned() == []


LONG = """
import tempfile
from bids_app.workflow import sockets

before = tempfile.gettempdir()
print(sockets.mark().parent, tempfile.gettempdir() == before)
"""


def test_a_long_path_of_the_temporary_folder_does_not_hold_the_sockets(tmp_path: Path) -> None:
    """The system refuses sockets whose path has more than 107 bytes."""
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LONG],
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["/tmp", "True"]
