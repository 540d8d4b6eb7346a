"""End of a command: errors in two lines, documented exit codes, and an end at once after an interruption."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from bids_app.cli import models, phantom, train
from bids_app.cli.outcome import exit_code_of
from bids_app.errors import BadDataError, Terminated
from bids_app.training import commands
from tests.helpers.scripts import ENVIRONMENT

ERRORS = {
    "of the user": (BadDataError("x.nii: truncated.", "Copy it again."), 65, "x.nii: truncated.\n  Copy it again."),
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "/x"), 74, "/x: No space left on device."),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded", "/x"), 74, "/x: Disk quota exceeded."),
    "full disk, by NumPy": (OSError("100 requested and 20 written"), 74, "no space left on the disk"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "/x"), 74, "/x: Read-only file system."),
    "memory": (MemoryError(), 75, "Out of memory."),
}
ENDING = """
import atexit, multiprocessing.util as util, sys, time
from bids_app.cli.outcome import leave
atexit.register(time.sleep, 60)  # as libraries that take long to unload
util.Finalize(None, print, ("finalized",), exitpriority=0)
print("said", file=sys.stderr)
leave(int(sys.argv[1]))
"""


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(("error", "code", "words"), ERRORS.values(), ids=ERRORS)
def test_an_error_takes_two_lines_and_has_its_exit_code(error: Exception, code: int, words: str, capsys) -> None:
    assert exit_code_of("program", lambda: fail(error)) == code
    said = capsys.readouterr().err
    assert said.startswith(f"program: error: {words}")
    assert said.count("\n") == 2
    assert "Traceback" not in said


def test_a_bug_has_a_traceback_and_a_place_to_report_it(capsys) -> None:
    assert exit_code_of("program", lambda: fail(KeyError("x"))) == 70
    said = capsys.readouterr().err
    assert said.startswith("program: internal error. Please report it")
    assert "KeyError: 'x'" in said


@pytest.mark.parametrize(
    ("error", "code", "word"), [(KeyboardInterrupt(), 130, "interrupted"), (Terminated(), 143, "terminated")]
)
def test_an_interruption_is_one_line_that_says_how_to_go_on(error: BaseException, code: int, word: str, capsys) -> None:
    assert exit_code_of("program", lambda: fail(error), "Again.") == code
    assert capsys.readouterr().err == f"program: {word}. Again.\n"


@pytest.mark.parametrize("code", [74, 130, 143])
def test_after_an_interruption_or_on_a_full_disk_the_process_ends_at_once(code: int) -> None:
    call = [sys.executable, "-c", ENDING, str(code)]
    done = subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "finalized\n", "said\n")


def test_every_command_reports_a_full_disk(monkeypatch, capsys) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/x")

    monkeypatch.setitem(models.COMMANDS, "list", full)
    monkeypatch.setattr(commands, "adapt", full)
    monkeypatch.setattr(phantom, "simulate", full)
    for command, words in ((models, ["list"]), (train, ["adapt", "x", "--target", "a:b"]), (phantom, ["x"])):
        assert command.main(words) == 74
        name = f"neurostorm-{command.__name__.rpartition('.')[2]}"
        assert capsys.readouterr().err.startswith(f"{name}: error: /x: No space left on device.")


def test_a_reader_of_the_list_that_ends_is_no_defect() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    call = [sys.executable, "-m", "bids_app.cli.models", "list"]
    done = subprocess.run(call, env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
