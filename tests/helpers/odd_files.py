"""Files that are not what their names say: pipes, sockets, devices, loops of links, folders, giants."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

GIANT_BYTES = 66_000_001
"""Size of a JSON list of 33 million numbers."""


def make_pipe(path: Path) -> None:
    """Make a named pipe that nobody writes to."""
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    """Make a Unix socket; it is bound by its name only, since paths of sockets are limited to about 100 letters."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name[-90:])
        os.rename(path.name[-90:], path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def make_endless(path: Path) -> None:
    """Make a link to a device that never ends."""
    path.symlink_to("/dev/zero")


def make_loop(path: Path) -> None:
    """Make two links that refer to each other."""
    other = path.with_name(f"other_{path.name}")
    other.symlink_to(path.name)
    path.symlink_to(other.name)


def make_folder(path: Path) -> None:
    """Make a folder that is named like a file."""
    path.mkdir()


def make_giant(path: Path) -> None:
    """Make a sparse file of the size of 33 million numbers."""
    with path.open("wb") as file:
        file.truncate(GIANT_BYTES)


def make_deep(path: Path) -> None:
    """Make valid JSON with 900 levels."""
    path.write_text('{"a": ' * 900 + "1" + "}" * 900)


ODD_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (make_pipe, "is a named pipe"),
    "a socket": (make_socket, "is a socket"),
    "a device": (make_endless, "is a device"),
    "a loop of links": (make_loop, "symbolic links form a loop"),
    "a folder": (make_folder, "is a folder"),
}
"""How to make each kind, and the words that an error has for it."""
