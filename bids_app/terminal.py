"""Text on terminals and in logs: levels, and control characters shown as escapes.

Names of files and values in them may contain control characters, which would move the cursor, change colours or imitate
other messages.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

VERBOSE = 15
"""Level of messages that a terminal shows with ``-v`` only; log files have them always."""
LEVELS = (logging.INFO, VERBOSE, logging.DEBUG)
"""Lowest level shown on the terminal, by the number of ``-v``."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters other than tabs and line feeds, marks of the writing direction, and undecodable bytes."""

logging.addLevelName(VERBOSE, "VERBOSE")


def printable(text: str) -> str:
    """Replace control characters by their escapes, such as ``\\x1b``; line feeds and tabs are kept."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def indented(text: str) -> str:
    """Indent all lines but the first, so that none looks like a message of its own."""
    return text.rstrip("\n").replace("\n", "\n  ")


def first_of(names: Sequence[str], n: int, separator: str = ", ") -> str:
    """Join the first ``n`` names, and count the others: ``sub-01, sub-02 and 40 more``."""
    return separator.join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def count_of(n: int, what: str) -> str:
    """Return a number with what it counts, in the plural unless it is 1: ``1 run``, ``1,200 runs``, ``2 processes``."""
    ending = "" if n == 1 else "es" if what.endswith("s") else "s"
    return f"{n:,} {what}{ending}"


class EscapedStream:
    """Text stream in front of another, ``raw``, that replaces control characters by their escapes."""

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        self.raw.write(printable(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw_stderr() -> TextIO:
    """Return the error stream that shows control characters as they are, for a progress bar."""
    return sys.stderr.raw if isinstance(sys.stderr, EscapedStream) else sys.stderr


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escape the control characters of everything that Python code prints."""
    out: Any = EscapedStream(sys.stdout)
    err: Any = EscapedStream(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield


class TerminalHandler(logging.Handler):
    """Handler that writes to the present ``sys.stderr``, above a progress bar if there is one."""

    def __init__(self, level: int = logging.INFO) -> None:
        super().__init__(level)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))

    def format(self, record: logging.LogRecord) -> str:
        return indented(printable(super().format(record)))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            bars: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)
            if getattr(bars, "_instances", None):
                bars.write(text, file=raw_stderr())
            else:
                print(text, file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def start_terminal_log(level: int) -> TerminalHandler:
    """Show messages from this level on the terminal; those of libraries only at debug level."""
    handler = TerminalHandler(level)
    logging.getLogger().addHandler(handler)
    logging.getLogger("bids_app").setLevel(min(level, VERBOSE))
    logging.captureWarnings(level > logging.DEBUG)
    logging.getLogger("py.warnings").setLevel(logging.WARNING if level <= logging.DEBUG else logging.ERROR)
    return handler


@contextmanager
def terminal_log(verbosity: int) -> Iterator[None]:
    """Show messages on the terminal during a command; ``verbosity`` is the number of ``-v``."""
    handler = start_terminal_log(LEVELS[min(verbosity, len(LEVELS) - 1)])
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        logging.captureWarnings(False)


def terminal_level() -> int:
    """Return the lowest level shown on the terminal."""
    handlers = (handler for handler in logging.getLogger().handlers if isinstance(handler, TerminalHandler))
    return min((handler.level for handler in handlers), default=logging.INFO)
