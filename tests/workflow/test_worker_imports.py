"""What workers import before they start."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc, sys, threading
import bids_app.workflow.worker_imports
print(threading.active_count(), gc.isenabled(), gc.get_freeze_count() > 1000)
print([name for name in ("torch", "deepbet.bet", "nipype", "bids_app.workflow.nodes") if name not in sys.modules])
"""


def test_steps_find_their_imports_and_no_thread_is_started() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1 True True", "[]"]
