"""Participants an hour and a core by ``neurostorm-cluster``, and what a cohort would take at that speed.

    python benchmarks/cluster_tasks.py [DATASET] [--participants 3] [--cohort 10000]

The tasks of an array job are run one after the other with one core each: one participant a task, then all in one task.
The processor time decides: a core of a cluster runs one task. Without DATASET, participants with a T1w image and one
run are simulated. Figures for the cohort are extrapolated from these participants.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cohort import simulate

CORES = 100
PYTHON = Path(sys.executable)


def main() -> int:
    """Run the tasks and print speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--participants", type=int, default=3, help="number of simulated participants")
    parser.add_argument("--cohort", type=int, default=10_000, help="number of participants of the extrapolation")
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = options.dataset or simulate(Path(folder) / "simulated", options.participants)
        n = len(list(dataset.glob("sub-*")))
        print(f"participants/task    cpu s      s  an hour and core   core hours of the cohort   days on {CORES} cores")
        for size in dict.fromkeys((1, n)):
            cpu, wall = run_tasks(dataset, Path(folder) / f"out-{size}", size, options.model)
            hours = cpu / n / 3600 * options.cohort
            print(f"{size:>17} {cpu / n:>8.1f} {wall / n:>6.1f} {3600 * n / cpu:>17.1f} {hours:>26.0f} ", end="")
            print(f"{hours / 24 / CORES:>19.1f}")
    return 0


def run_tasks(dataset: Path, out: Path, size: int, model: str) -> tuple[float, float]:
    """Run all participants in tasks of ``size`` on one core; return the processor time and the run time, s."""
    cluster: list[str | Path] = [PYTHON, "-m", "bids_app.cli.cluster"]
    limits = ["--scheduler", "lists", "--cpus", "1", "--mem", "6GB", "--shard-size", str(size)]
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run([*cluster, "prepare", dataset, out, *limits, "--", "--model", model], **quiet)
    subprocess.run([*cluster, "submit", out], **quiet)
    folder = next((out / "logs" / "cluster").glob("submission-*"))
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    for number in range(1, len((folder / "shards.txt").read_text().splitlines()) + 1):
        subprocess.run(["bash", folder / "job.sh", str(number)], **quiet)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
