"""Participant locks, in the output folder and in the scratch folder, so that one process at a time uses a participant.

A lock file is created with a hard link, which is atomic on NFS too, and names its owner. The owner touches it
regularly, or the process that supervises it (`supervisor.py`). The lock of a dead owner is replaced: at once if the
process of the owner would be visible from here, or if SLURM has requeued the job of the owner as this job; otherwise
after `STALE_SECONDS` without a touch. All times are in the clock of the file system.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bids_app.bids.processes import process_scope, start_time
from bids_app.bids.writer import temporary_name, writing_error
from bids_app.errors import CannotCreateError, NeurostormError, TemporaryError

BEAT_SECONDS = 30.0
"""Interval at which a lock is touched."""
STALE_SECONDS = 10 * 60.0
"""Age after which the lock of another machine is stale; a shared file system may hang for minutes."""

_board: int | None = None
"""File descriptor where this process lists its locks for the process that supervises it; None: not supervised."""


def lock_files(participant: str, out_dir: Path, work_dir: Path) -> tuple[Path, Path]:
    """Return the lock files of a participant in the output and scratch folders."""
    return out_dir / f"sub-{participant}" / "log" / "running.json", work_dir / f"running-sub-{participant}.json"


def is_in_use(work_dir: Path) -> bool:
    """Check if any participant is locked in a scratch folder."""
    return next(work_dir.glob("running-sub-*.json"), None) is not None


def is_held(path: Path, now: float) -> bool:
    """Check if a running process holds a lock file; ``now`` is in the clock of its file system, s since 1970."""
    return path.exists() and not _is_dead(path, _read(path), now)


def list_locks_on(board: int) -> None:
    """Have a supervising process touch and release the locks of this one; it reads them by `listed_locks`."""
    global _board
    _board = board


def listed_locks(board: int) -> dict[Path, str]:
    """Return the locks that a supervised process has acquired so far: path and mark."""
    lines = os.pread(board, os.fstat(board).st_size, 0).splitlines()
    return {Path(os.fsdecode(path)): mark.decode() for mark, path in (line.split(b" ", 1) for line in lines)}


def touch(paths: Iterable[Path]) -> None:
    """Show that the owner of lock files is alive."""
    for path in paths:
        with suppress(OSError):
            os.utime(path)


class Locks:
    """Context manager that holds lock files until it exits, and touches them unless a supervising process does.

    Parameters
    ----------
    what : str
        What the owner of a lock does, for errors.

    Examples
    --------
    >>> with Locks() as locks:  # doctest: +SKIP
    ...     locks.acquire(*lock_files("01", out_dir, work_dir))
    """

    def __init__(self, what: str = "is processing this participant") -> None:
        self._what = what
        self._held: dict[Path, str] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Locks:
        if _board is None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        release(self._held)

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
                acquired[path] = _acquire(path, self._what)
        except NeurostormError:
            release(acquired)
            raise
        self._held |= acquired
        if _board is not None:
            os.write(_board, b"".join(b"%s %s\n" % (mark.encode(), os.fsencode(p)) for p, mark in acquired.items()))

    def are_alone(self, work_dir: Path) -> bool:
        """Check if no other process that still runs has locked a participant in a scratch folder."""
        others = [path for path in work_dir.glob("running-sub-*.json") if path not in self._held]
        now = max((path.stat().st_mtime for path in self._held if path.exists()), default=0.0)
        return all(_is_dead(path, _read(path), now) for path in others)

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            touch(list(self._held))


def _acquire(path: Path, what: str) -> str:
    """Create a lock file and return the mark of its owner."""
    mark = uuid.uuid4().hex
    content = {"mark": mark, "pid": os.getpid(), "started": start_time(os.getpid()), "place": process_scope(),
               "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")} | _slurm_job()  # fmt: skip
    own = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps(content))
        for _ in range(3):  # the lock may be released meanwhile
            if _link(own, path):
                return mark
            seen = _state(path)
            if seen and not _is_dead(path, _owner(seen[1]), now=own.stat().st_mtime):
                break
            if seen and _replace_dead(path, seen, own):
                return mark
        raise _held_by(path, _read(path), what)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise writing_error(error, path) from error
        raise CannotCreateError(
            f"{path}: the lock file cannot be created ({error.strerror}).", "Check the permissions."
        ) from error
    finally:
        with suppress(OSError):
            own.unlink(missing_ok=True)


def _replace_dead(path: Path, seen: tuple[int, bytes], own: Path) -> bool:
    """Replace the lock of a dead owner by our own file; False if another process does so or has done so.

    One process at a time may replace a given lock: it holds a second lock, which is named after the state of the
    first. Otherwise it could remove what another process has created since it looked.
    """
    claim = path.with_name(f".{path.name}.{hashlib.sha256(repr(seen).encode()).hexdigest()[:16]}")
    try:
        mark = _acquire(claim, "is replacing this lock")
    except TemporaryError:
        return False
    try:
        if _state(path) != seen:
            return False
        os.replace(own, path)
    finally:
        release({claim: mark})
    return True


def _state(path: Path) -> tuple[int, bytes] | None:
    """Return the modification time and content of a lock file; None if there is none."""
    try:
        return path.stat().st_mtime_ns, path.read_bytes()
    except FileNotFoundError:
        return None


def release(locks: Mapping[Path, str]) -> None:
    """Remove lock files that still have the mark of their owner."""
    for path, mark in locks.items():
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
        return _owner(path.read_bytes())
    except OSError:
        return {}


def _owner(content: bytes) -> dict[str, Any]:
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_dead(path: Path, holder: dict[str, Any], now: float) -> bool:
    """Check if the owner of a lock is dead; ``now`` is in the clock of the file system."""
    if _is_requeued(holder):
        return True
    pid = holder.get("pid")
    if holder.get("place") == process_scope() and isinstance(pid, int):
        return start_time(pid) != holder.get("started")
    try:
        return now - path.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return True


def _slurm_job() -> dict[str, Any]:
    """Return the SLURM job of this process, and how often SLURM has restarted it; empty outside SLURM."""
    job, restarts = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")
    if not job or not restarts.isdecimal():
        return {}
    return {"job": f"{os.environ.get('SLURM_CLUSTER_NAME', '')}:{job}", "restarts": int(restarts)}


def _is_requeued(holder: dict[str, Any]) -> bool:
    """Check if SLURM has restarted the job of an owner as this job: it ends all processes of a job before that."""
    ours, restarts = _slurm_job(), holder.get("restarts")
    return bool(ours) and holder.get("job") == ours["job"] and isinstance(restarts, int) and restarts < ours["restarts"]


def _held_by(path: Path, holder: dict[str, Any], what: str) -> TemporaryError:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"
    return TemporaryError(
        f"{path}: another run {what} ({who}).",
        "Wait for it to finish. If it is no longer running, delete this file and repeat the command.",
    )
