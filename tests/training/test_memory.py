"""Reuse of freed memory, tested in a separate process."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import numpy as np
from bids_app.training.memory import reuse_freed_memory
kept = reuse_freed_memory() if sys.argv[1] == "keep" else True
for k in range(6):
    if k == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(10_000_000)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_large_arrays_reuse_freed_memory():
    found = {}
    for mode in ("keep", "free"):
        output = subprocess.run([sys.executable, "-c", COUNT, mode], capture_output=True, text=True, check=True).stdout
        kept, faults = output.split()
        if kept != "True":
            pytest.skip("needs glibc")
        found[mode] = int(faults)
    assert found["keep"] < 0.1 * found["free"]
