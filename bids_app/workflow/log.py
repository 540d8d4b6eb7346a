"""Log file of a participant, ``neurostorm.log`` beside ``summary.json``: the messages of an invocation, as plain text.

The main process collects its own messages. Steps run in other processes, or ran in an earlier invocation: each writes
its messages to its folder in the scratch folder.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path

from bids_app.bids.writer import write_text
from bids_app.terminal import VERBOSE, indented, printable

LOG_FILE = "neurostorm.log"
MESSAGES_FILE = "_messages.jsonl"
"""Messages of a step, in its folder: time, level and text on each line. Not written if there are none."""
PACKAGE = logging.getLogger("bids_app")

Message = tuple[float, str, str]
"""Time (s since 1970), level, and text of a message."""


class StepMessages(logging.Handler):
    """Handler that appends the messages of a step to a file."""

    active = False
    """True while a step runs in this process."""

    def __init__(self, path: Path) -> None:
        super().__init__(VERBOSE)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        line = json.dumps([record.created, record.levelname, self.format(record)])
        with suppress(OSError), self._path.open("a") as file:  # a full disk is reported by the step itself
            file.write(f"{line}\n")


@contextmanager
def messages_of_step(out_dir: Path) -> Iterator[None]:
    """Write the messages of a step to its folder."""
    path = out_dir / MESSAGES_FILE
    path.unlink(missing_ok=True)
    handler = StepMessages(path)
    PACKAGE.addHandler(handler)
    StepMessages.active = True
    try:
        yield
    finally:
        StepMessages.active = False
        PACKAGE.removeHandler(handler)


def read_messages(out_dir: Path) -> list[Message]:
    """Read the messages of a step; incomplete lines, of a step that was killed, are left out."""
    found: list[Message] = []
    try:
        lines = (out_dir / MESSAGES_FILE).read_text(errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        with suppress(ValueError, TypeError):
            created, level, text = json.loads(line)
            found.append((float(created), str(level), str(text)))
    return found


class InvocationLog(logging.Handler):
    """Handler that collects the messages of the main process, by participant; use as a context manager."""

    def __init__(self) -> None:
        super().__init__(VERBOSE)
        self._messages: dict[str, list[Message]] = {"": []}

    def __enter__(self) -> InvocationLog:
        PACKAGE.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        PACKAGE.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if StepMessages.active:
            return  # written to the folder of the step
        participant = getattr(record, "run", "").partition("_")[0].removeprefix("sub-")
        message = (record.created, record.levelname, self.format(record))
        self._messages.setdefault(participant, []).append(message)

    def write(self, folder: Path, participant: str, of_steps: Iterable[Message]) -> Path:
        """Write the messages of a participant, and those that concern all, to its log folder, by time."""
        messages = [*self._messages[""], *self._messages.get(participant, []), *of_steps]
        lines = [
            f"{local_time(t)} {level:7} {indented(printable(text))}\n"
            for t, level, text in sorted(messages, key=itemgetter(0))
        ]
        path = folder / LOG_FILE
        write_text(path, "".join(lines))
        return path

    def forget(self, participant: str) -> None:
        """Drop the messages of a participant whose runs have all ended."""
        self._messages.pop(participant, None)


def local_time(seconds: float) -> str:
    """Format a time (s since 1970) in the local time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
