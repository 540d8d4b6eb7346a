"""Log file of a participant: messages of the main process and of the steps, by time, as plain text."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from bids_app.terminal import VERBOSE
from bids_app.workflow.log import LOG_FILE, InvocationLog, messages_of_step, read_messages

LOGGER = logging.getLogger("bids_app.workflow.test")


@pytest.fixture(autouse=True)
def everything_is_logged():
    package = logging.getLogger("bids_app")
    before, package.level = package.level, VERBOSE
    yield
    package.setLevel(before)


def test_each_participant_has_its_messages_and_those_that_concern_all(tmp_path: Path) -> None:
    with InvocationLog() as log:
        LOGGER.info("start")
        for label in ("01", "02"):
            LOGGER.log(VERBOSE, "step of %s", label, extra={"run": f"sub-{label}_task-rest"})
        text = log.write(tmp_path, "01", []).read_text()
    assert (tmp_path / LOG_FILE).is_file()
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{when} INFO    start\n{when} VERBOSE step of 01\n", text)


def test_messages_of_steps_are_kept_with_the_step_and_not_repeated(tmp_path: Path) -> None:
    step = tmp_path / "step"
    step.mkdir()
    with InvocationLog() as log:
        with messages_of_step(step):
            LOGGER.warning("weak contrast")
        LOGGER.info("end")
        text = log.write(tmp_path, "01", read_messages(step)).read_text()
    assert [line.split(" ", 2)[2] for line in text.splitlines()] == ["WARNING weak contrast", "INFO    end"]
    with messages_of_step(step):
        pass
    assert list(step.iterdir()) == []  # a step without messages leaves no file, also not an earlier one


def test_control_characters_are_escaped_and_lines_stay_apart(tmp_path: Path) -> None:
    with InvocationLog() as log:
        LOGGER.info("%s", "\x1b[31mred\n2030-01-01 00:00:00 INFO    all is well")
        text = log.write(tmp_path, "01", []).read_text()
    assert "\x1b" not in text
    assert len(re.findall(r"^\d{4}-", text, re.MULTILINE)) == 1


def test_a_broken_file_of_messages_is_read_as_far_as_possible(tmp_path: Path) -> None:
    (tmp_path / "_messages.jsonl").write_text('[1, "INFO", "good"]\n[2, "IN\n{}\n[1]\n')
    assert read_messages(tmp_path) == [(1.0, "INFO", "good")]
    assert read_messages(tmp_path / "missing") == []
