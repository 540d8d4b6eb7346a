"""Runs of a simulated cohort per hour, with 1, 2 and 4 processes on as many cores.

    python benchmarks/cohort.py [--participants 4] [--processes 1 2 4]

Each row is the participant level with `--nprocs` processes, from raw files to reports, allowed to use as many cores as
processes. Efficiency is the number of runs per hour, divided by that of one process times the number of cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from watching import watch


def simulate(folder: Path, n: int) -> Path:
    """Simulate participants with a T1w image and one run."""
    program = Path(sys.executable).with_name("neurostorm-phantom")
    command = [str(program), str(folder), "--participants", str(n), "--states", "rest"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def main() -> int:
    """Simulate a cohort, process it with each number of processes, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--participants", type=int, default=4)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    programs, cores = Path(sys.executable).parent, sorted(os.sched_getaffinity(0))
    print("| processes | cores | s | runs per hour | efficiency | peak GB |\n|" + " --- |" * 6, flush=True)
    alone = None
    with tempfile.TemporaryDirectory() as folder:
        dataset = simulate(Path(folder) / "simulated", options.participants)
        n_runs = len(list(dataset.glob("sub-*/**/*_bold.nii.gz")))
        for n in options.processes:
            own = cores[:n]
            out, work = Path(folder) / f"out-{n}", Path(folder) / f"work-{n}"
            command = [programs / "neurostorm", dataset, out, "participant", "--model", "demo", "-w", work]
            os.sched_setaffinity(0, own)
            cost = watch([*map(str, command), "--nprocs", str(n)], stderr=subprocess.DEVNULL)
            os.sched_setaffinity(0, cores)
            if cost.code:
                print(f"{command[0]} --nprocs {n}: exit code {cost.code}", file=sys.stderr)
                return cost.code
            rate = 3600 * n_runs / cost.seconds
            alone = alone or rate / len(own)
            efficiency = rate / (alone * len(own))
            row = (n, len(own), f"{cost.seconds:.0f}", f"{rate:.0f}", f"{efficiency:.0%}", f"{cost.peak_gb:.2f}")
            print(f"| {' | '.join(map(str, row))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
