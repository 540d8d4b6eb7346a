"""One process at a time works on a participant: a lock file in the output folder, and one in the scratch folder.

A lock is made by a hard link, which is atomic on NFS too, and says who holds it. Its owner touches it while it lives.
The lock of an owner that is dead is taken over: at once where the owner's process would be seen from here, else when
it has not been touched for `STALE_SECONDS`.
"""

from __future__ import annotations

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

from bids_app.bids.writer import temporary_name
from bids_app.errors import CannotCreateError, NeurostormError, TemporaryError

BEAT_SECONDS = 60.0
STALE_SECONDS = 30 * 60.0
"""A lock of another machine that was not touched for so long is that of a dead owner; a step of ANTs may hold up the
thread that touches it for minutes."""


def lock_files(participant: str, out_dir: Path, work_dir: Path) -> tuple[Path, Path]:
    """What is there while a process works on a participant: in the output folder, and in scratch."""
    return out_dir / f"sub-{participant}" / "log" / "running.json", work_dir / f"running-sub-{participant}.json"


def is_anybody_in(work_dir: Path) -> bool:
    """Whether a process works on any participant in a scratch folder."""
    return next(work_dir.glob("running-sub-*.json"), None) is not None


class Locks:
    """Lock files that are held, and touched, until the block ends.

    Examples
    --------
    >>> with Locks() as locks:  # doctest: +SKIP
    ...     locks.take(*lock_files("01", out_dir, work_dir))
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

    def take(self, *paths: Path) -> None:
        """Take lock files, all or none.

        Raises
        ------
        TemporaryError
            A process that lives holds one of them.
        CannotCreateError
            One cannot be made.
        """
        taken: dict[Path, str] = {}
        try:
            for path in paths:
                taken[path] = _take(path)
        except NeurostormError:
            for path, mark in taken.items():
                _release(path, mark)
            raise
        self._held |= taken

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            for path in list(self._held):
                with suppress(OSError):
                    os.utime(path)


def _take(path: Path) -> str:
    """Make a lock file; returns the mark by which its owner knows it again."""
    mark = uuid.uuid4().hex
    content = {"mark": mark, "pid": os.getpid(), "started": _started(os.getpid()), "place": _place(),
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
            _set_aside(path, holder)
        raise _held_by(path, _read(path))
    except OSError as error:
        raise CannotCreateError(
            f"{path}: the lock cannot be made ({error.strerror}).", "Check the permissions and the space there."
        ) from error
    finally:
        with suppress(OSError):
            own.unlink(missing_ok=True)


def _release(path: Path, mark: str) -> None:
    """Remove a lock file, if it is still its owner's."""
    if _read(path).get("mark") == mark:
        with suppress(OSError):
            path.unlink()


def _link(own: Path, path: Path) -> bool:
    """Make the lock as a second name of a file of our own; where there are no hard links, as a new file."""
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError:
        if own.stat().st_nlink == 2:
            return True  # NFS lost the answer, not the deed
        with suppress(FileExistsError), path.open("x") as file:
            file.write(own.read_text())
            return True
        return False
    return True


def _read(path: Path) -> dict[str, Any]:
    """Who holds a lock; empty when it is gone, or being written."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_dead(path: Path, holder: dict[str, Any], now: float) -> bool:
    """Whether nobody is behind a lock any more; ``now`` is by the clock of the file system."""
    pid = holder.get("pid")
    if holder.get("place") == _place() and isinstance(pid, int):
        return _started(pid) != holder.get("started")
    try:
        return now - path.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return True


def _set_aside(path: Path, holder: dict[str, Any]) -> None:
    """Remove a dead owner's lock; one that somebody else made meanwhile is put back."""
    aside = temporary_name(path)
    with suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) != holder:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink()


@cache
def _place() -> str:
    """Where a process number means the same process: this boot of this machine, this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process started, in the kernel's terms; empty when there is none. Numbers of processes come again."""
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
        f"{path}: another run holds this participant ({who}).",
        "Wait until it has ended. If nothing runs there any more, remove that file and start again.",
    )
