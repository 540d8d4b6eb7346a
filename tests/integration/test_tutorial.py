"""Commands of the tutorial: all are valid, run in order, and print what the tutorial shows.

To record the tutorial's output again, after a change of the simulation or of the method:
``NEUROSTORM_WRITE_TUTORIAL=1 pytest -m slow tests/integration/test_tutorial.py``.
"""

from __future__ import annotations

import csv
import difflib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bids_app.cli.neurostorm import build_parser
from bids_app.cli.phantom import parser as phantom_parser
from bids_app.cli.train import parser as training_parser

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
PARSERS = {"neurostorm": build_parser, "neurostorm-phantom": phantom_parser, "neurostorm-train": training_parser}
HANDFUL = 6
WRITE = "NEUROSTORM_WRITE_TUTORIAL"
ONE_SCAN = 0.09
"""Maximum difference of a figure from the one shown, on another processor: one of the twelve scans."""
OF_THE_MACHINE = re.compile(
    r"\d\d:\d\d:\d\d|in \d+ s|[\d.]+ s;|about .* left|time left: not known yet|\(has results .*|\(empty.*|\d+ MB|"
    r"\d+/\d+|\S*/\S*|native \(\w+\)"
)
"""Parts of a line that differ between machines: times, sizes, folders, kernels."""
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def commands() -> list[list[str]]:
    """Words of all commands after ``$`` in console blocks, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)
    text = "".join(blocks).replace("\\\n", " ")
    return [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("$ ")]


def test_every_command_of_the_tutorial_is_valid():
    found = commands()
    assert {words[0] for words in found} == set(PARSERS)
    assert sum("--participants" in words for words in found) == 1
    for words in found:
        PARSERS[words[0]]().parse_args(words[1:])  # exits where it cannot


def test_files_of_the_tutorial_are_made_by_earlier_commands():
    """Folders and files have the names that earlier commands give them."""
    made: set[str] = set()
    for program, *words in commands():
        if program == "neurostorm-phantom":
            made.add(words[0])
        elif program == "neurostorm":
            assert words[0] in made
            made.add(words[1])
        else:
            assert words[1] in made
            name = words[words.index("--name") + 1]
            made.add(f"{name}.safetensors" if words[0] == "adapt" else f"{name}_evaluation")
        if "--adapter" in words:
            assert words[words.index("--adapter") + 1] in made
    text = TUTORIAL.read_text()
    assert all(name in text for name in made)


def shown_outputs() -> list[list[str]]:
    """Lines that the tutorial shows below each command, without the marks of omitted ones."""
    blocks = re.findall(r"^```console\n(.*?)^```", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)
    found: list[list[str]] = []
    for line in "".join(blocks).splitlines():
        if line.startswith("$ "):
            found.append([])
        elif line != "...":
            found[-1].append(line)
    return found


def words_of(line: str) -> str:
    """Return a line without its figures and what differs between machines."""
    return NUMBER.sub("#", OF_THE_MACHINE.sub("~", line))


def figures_of(line: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(OF_THE_MACHINE.sub("~", line))]


def is_same(shown: str, printed: str) -> bool:
    """Return whether a printed line has the words of a shown one, and its figures but for one scan."""
    one, other = figures_of(shown), figures_of(printed)
    return words_of(shown) == words_of(printed) and all(
        abs(a - b) <= (ONE_SCAN if min(a, b) <= 1 else 0) for a, b in zip(one, other, strict=True)
    )


def table_shown() -> list[list[str]]:
    """Cells of the tutorial's table of predictions, its header included."""
    lines = re.findall(r"^\| (.*) \|$", TUTORIAL.read_text(), re.MULTILINE)
    return [line.split(" | ") for line in lines if not line.startswith("---")]


def table_printed(path: Path) -> list[list[str]]:
    """Return the same cells from a file of predictions."""
    header, *rows = table_shown()
    with path.open() as file:
        found = {row["clip"]: row for row in csv.DictReader(file, delimiter="\t")}
    digits = {name: 3 if name.startswith("p_") else 1 for name in header if name not in ("clip", "label", "verdict")}
    return [header, *([f"{float(found[row[0]][k]):.{digits[k]}f}" if k in digits else found[row[0]][k] for k in header]
                      for row in rows)]  # fmt: skip


def write_again(outputs: list[str], table: list[list[str]], folder: Path) -> None:
    """Replace each shown line by the most similar printed one that no other replaces, and the table of predictions."""
    text = TUTORIAL.read_text()
    for shown, output in zip(shown_outputs(), outputs, strict=True):
        lines = (
            output.replace(str(folder / "scratch"), "/tmp/neurostorm-0").replace(str(folder), "/home/me").splitlines()
        )
        for line in shown:
            best = max(lines, key=lambda x: difflib.SequenceMatcher(None, words_of(line), words_of(x)).ratio())
            lines.remove(best)
            text = text.replace(f"\n{line}\n", f"\n{best}\n", 1)
    for before, after in zip(table_shown(), table, strict=True):
        text = text.replace(f"| {' | '.join(before)} |", f"| {' | '.join(after)} |", 1)
    TUTORIAL.write_text(text)


def test_lines_differ_by_words_or_by_more_than_a_scan() -> None:
    line = "Encoder (linear): balanced_accuracy 0.583 (0.417 to 0.750)."
    assert is_same(line, line.replace("0.583", "0.667"))
    assert not is_same(line, line.replace("0.583", "0.750"))
    assert not is_same("12 runs of 6 participants", "13 runs of 6 participants")
    assert not is_same("The encoder is better", "The encoder does not clearly differ")
    assert is_same("17:45:33 12 of 12 runs finished in 622 s.", "09:00:00 12 of 12 runs finished in 9 s.")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_commands_print_what_the_tutorial_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROSTORM_SCRATCH", str(tmp_path / "scratch"))
    programs = Path(sys.executable).parent
    outputs = []
    for words in commands():
        if "--participants" in words:
            words[words.index("--participants") + 1] = str(HANDFUL)
        done = subprocess.run(
            [str(programs / words[0]), *words[1:]],
            cwd=tmp_path,
            text=True,
            timeout=3000,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}"
        outputs.append(done.stdout)
    predictions = tmp_path / "out" / "sub-01" / "func" / "sub-01_task-lefthand_desc-hand_predictions.tsv"
    if os.environ.get(WRITE):
        write_again(outputs, table_printed(predictions), tmp_path)
    for shown, output in zip(shown_outputs(), outputs, strict=True):
        for line in shown:
            assert any(is_same(line, printed) for printed in output.splitlines()), f"not printed: {line}\n{output}"
    for shown_row, row in zip(table_shown(), table_printed(predictions), strict=True):
        assert is_same(" | ".join(shown_row), " | ".join(row))
    for name in ("hand", "sex"):
        assert (tmp_path / f"{name}_evaluation" / "report.md").is_file()
