"""Participant locks, in the output folder and in the scratch folder, so that one process at a time uses a participant.

A lock file is created with a hard link, which is atomic on NFS too, and names its owner. The owner touches it
regularly. The lock of a dead owner is replaced: at once if the process of the owner would be visible from here,
otherwise after `STALE_SECONDS` without a touch.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from bids_app.bids.writer import temporary_name, writing_error
from bids_app.errors import CannotCreateError, NeurostormError, TemporaryError

BEAT_SECONDS = 60.0
STALE_SECONDS = 30 * 60.0
"""Age after which the lock of another machine is stale; ANTs may block the thread that touches it for minutes."""


def lock_files(participant: str, out_dir: Path, work_dir: Path) -> tuple[Path, Path]:
    """Return the lock files of a participant in the output and scratch folders."""
    return out_dir / f"sub-{participant}" / "log" / "running.json", work_dir / f"running-sub-{participant}.json"


def is_in_use(work_dir: Path) -> bool:
    """Check if any participant is locked in a scratch folder."""
    return next(work_dir.glob("running-sub-*.json"), None) is not None


class Locks:
    """Context manager that holds lock files and touches them until it exits.

    Examples
    --------
    >>> with Locks() as locks:  # doctest: +SKIP
    ...     locks.acquire(*lock_files("01", out_dir, work_dir))
    """

    def __init__(self) -> None:
        self._held: dict[Path, str] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Locks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        for path, mark in self._held.items():
            _release(path, mark)

    def acquire(self, *paths: Path) -> None:
        """Acquire all lock files, or none.

        Raises
        ------
        TemporaryError
            A running process holds one of them.
        CannotCreateError
            A lock file cannot be created.
        """
        acquired: dict[Path, str] = {}
        try:
            for path in paths:
                acquired[path] = _acquire(path)
        except NeurostormError:
            for path, mark in acquired.items():
                _release(path, mark)
            raise
        self._held |= acquired

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            for path in list(self._held):
                with suppress(OSError):
                    os.utime(path)


def _acquire(path: Path) -> str:
    """Create a lock file and return the mark of its owner."""
    mark = uuid.uuid4().hex
    content = {"mark": mark, "pid": os.getpid(), "started": _started(os.getpid()), "place": _process_scope(),
               "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}  # fmt: skip
    own = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps(content))
        for _ in range(3):
            if _link(own, path):
                return mark
            holder = _read(path)
            if not _is_dead(path, holder, now=own.stat().st_mtime):
                raise _held_by(path, holder)
            _remove_dead(path, holder)
        raise _held_by(path, _read(path))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise writing_error(error, path) from error
        raise CannotCreateError(
            f"{path}: the lock file cannot be created ({error.strerror}).", "Check the permissions."
        ) from error
    finally:
        with suppress(OSError):
            own.unlink(missing_ok=True)


def _release(path: Path, mark: str) -> None:
    """Remove a lock file if it still has the mark of its owner."""
    if _read(path).get("mark") == mark:
        with suppress(OSError):
            path.unlink()


def _link(own: Path, path: Path) -> bool:
    """Create the lock as a hard link to our own file, or as a new file if hard links are not supported."""
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError:
        if own.stat().st_nlink == 2:
            return True  # created, although NFS reported an error
        with suppress(FileExistsError), path.open("x") as file:
            file.write(own.read_text())
            return True
        return False
    return True


def _read(path: Path) -> dict[str, Any]:
    """Read the owner of a lock; empty if it is gone or incomplete."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_dead(path: Path, holder: dict[str, Any], now: float) -> bool:
    """Check if the owner of a lock is dead; ``now`` is in the clock of the file system."""
    pid = holder.get("pid")
    if holder.get("place") == _process_scope() and isinstance(pid, int):
        return _started(pid) != holder.get("started")
    try:
        return now - path.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return True


def _remove_dead(path: Path, holder: dict[str, Any]) -> None:
    """Remove the lock of a dead owner; restore it if another process has replaced it meanwhile."""
    aside = temporary_name(path)
    with suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) != holder:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink()


@cache
def _process_scope() -> str:
    """Return the scope of process numbers: this boot of this machine and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """Return the kernel start time of a process, since process numbers are reused; empty if it does not exist."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        state, *fields = text.rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "running"


def _held_by(path: Path, holder: dict[str, Any]) -> TemporaryError:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"
    return TemporaryError(
        f"{path}: another run is processing this participant ({who}).",
        "Wait for it to finish. If it is no longer running, delete this file and repeat the command.",
    )
