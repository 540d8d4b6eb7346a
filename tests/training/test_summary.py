"""Page on a training run, from its logs."""

from __future__ import annotations

import base64
import re

from bids_app.training.logs import RunLog, Stopwatch
from bids_app.training.summary import write_summary


def test_the_page_has_curves_of_all_logs_and_the_reason_of_a_stop(tmp_path):
    log = RunLog(tmp_path)
    for step in range(1, 8):
        row = {"epoch": (step + 2) // 3, "step": step, "loss": 2 / step, "rate": 0.1, "norm": 2.0}
        log.step(row, Stopwatch(seconds=2.0, waiting=0.5, clips=8))
    log.epoch([{"epoch": 1, "loss": 1.2, "held_out": 0.75}, {"epoch": 2, "loss": 0.4, "held_out": 0.875}], 6)
    html = write_summary(tmp_path, {"learning_rate": 0.25}, "The loss is nan.").read_text()
    svgs = [base64.b64decode(found).decode() for found in re.findall(r"base64,([^\"]+)", html)]
    titles = [re.search("<title>(.*?)</title>", svg)[1] for svg in svgs]
    assert titles == ["Loss", "Learning rate", "Norm of the gradients", "Clips per second"]
    assert "training ends at 0.2857; held out ends at 0.875" in svgs[0]
    text = re.sub("<[^>]+>", " ", html)
    for expected in ("The loss is nan.", "Lowest held-out loss  0.75", "25.0%", "learning_rate  0.25"):
        assert expected in text


def test_a_run_that_stops_at_its_first_step_has_a_page(tmp_path):
    assert "The loss is nan." in write_summary(tmp_path, {}, "The loss is nan.").read_text()
