"""Text on terminals: control characters in names and values are shown as escapes."""

from __future__ import annotations

import contextlib
import logging
import sys

import pytest

from bids_app.cli.neurostorm import main
from bids_app.terminal import VERBOSE, escaped_output, indented, printable, terminal_level, terminal_log

RED = "\x1b[31mred\x1b[0m"


@pytest.mark.parametrize("text", [RED, "a\rb", "\x07", "\x9b31m", "\u202etxt.exe", "\u2028", "\udce9", "\x7f"])
def test_control_characters_are_escaped(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown.isascii()
    assert "\\" in shown


@pytest.mark.parametrize("text", ["Größe\t3 µm\n", "日本語 …", "C:\\x1b"])
def test_other_text_is_unchanged(text: str) -> None:
    assert printable(text) == text


def test_a_line_feed_in_a_name_does_not_start_a_line() -> None:
    assert indented("a\nneurostorm: error: b\n") == "a\n  neurostorm: error: b"


def test_everything_printed_is_escaped_and_the_streams_are_restored(capsys) -> None:
    before = sys.stdout, sys.stderr
    with escaped_output(), terminal_log(verbosity=0):
        print(RED)
        print(RED, file=sys.stderr)
        logging.getLogger("bids_app.x").info("%s\nsecond", RED)
    assert (sys.stdout, sys.stderr) == before
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert shown.err.count("\\x1b[31mred") == 2
    assert "\n  second\n" in shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        (".", "out", f"level{RED}"),
        (".", "out", "participant", "--config-file", f"{RED}.toml"),
        (".", "out", "participant", "--bids-filter-file", f"{RED}.json"),
        (".", "out", "participant", f"--unknown{RED}"),
        (".", "out", "participant", "--nprocs", RED),
    ],
)
def test_errors_name_values_with_control_characters_escaped(arguments: tuple[str, ...], capsys, tmp_path) -> None:
    with contextlib.suppress(SystemExit):  # argparse's own errors
        main([*arguments, "-w", str(tmp_path / "work")])
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "\\x1b[31mred" in shown.err


@pytest.mark.parametrize(("verbosity", "level"), [(0, logging.INFO), (1, VERBOSE), (2, logging.DEBUG), (3, 10)])
def test_the_level_of_the_terminal_follows_v(verbosity: int, level: int, capsys) -> None:
    logger = logging.getLogger("bids_app.x")
    with terminal_log(verbosity):
        assert terminal_level() == level
        for each in (logging.INFO, VERBOSE, logging.DEBUG):
            logger.log(each, "level %d", each)
    assert capsys.readouterr().err.count("level") == sum(each >= level for each in (20, 15, 10))
