"""Commands of the tutorial: all are valid, and run in order."""

from __future__ import annotations

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


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_tutorial_s_commands_run_with_a_handful_of_participants(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROSTORM_SCRATCH", str(tmp_path / "scratch"))
    programs = Path(sys.executable).parent
    for words in commands():
        if "--participants" in words:
            words[words.index("--participants") + 1] = str(HANDFUL)
        done = subprocess.run(
            [str(programs / words[0]), *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=3000
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    report = (tmp_path / "hand_evaluation" / "report.md").read_text()
    score = float(re.search(r"Encoder \(linear\): balanced_accuracy ([\d.]+)", report)[1])
    assert score >= 0.75  # which hand moved, put in by the simulation
    for hand in ("lefthand", "righthand"):
        path = tmp_path / "out" / "sub-01" / "func" / f"sub-01_task-{hand}_desc-hand_predictions.tsv"
        mean = path.read_text().splitlines()[1].split("\t")
        assert (mean[0], mean[3]) == ("mean", hand)
