"""Times the whole participant level on a dataset: cold, and again when nothing changed.

    python benchmarks/participant.py DATASET [--model demo]

Prints seconds, the peak of the resident memory of all its processes together, and what each step took. Without DATASET,
two participants are simulated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil


def measure(command: list[str]) -> tuple[float, float, int]:
    """Seconds, peak memory in GB (shared pages counted once), and exit code of a command."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        parent = psutil.Process(process.pid)
        while not done.wait(0.5):
            total = 0
            try:
                members = [parent, *parent.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for member in members:
                try:
                    total += member.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            peak = max(peak, total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return seconds, peak / 1e9, code


def main() -> int:
    """Run the app twice and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    programs = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        dataset = options.dataset
        if dataset is None:
            dataset = Path(folder) / "simulated"
            subprocess.run(
                [programs / "neurostorm-phantom", dataset, "--participants", "2", "--states", "rest"], check=True
            )
        out, work = Path(folder) / "out", Path(folder) / "work"
        command = [programs / "neurostorm", dataset, out, "participant", "--model", options.model, "-w", work]
        print(f"{'run':<6} {'s':>6} {'peak GB':>8} {'exit code':>10}   ratio of times to cold")
        cold = None
        for name in ("cold", "again"):
            seconds, peak_gb, code = measure([str(part) for part in command])
            cold = cold or seconds
            print(f"{name:<6} {seconds:6.1f} {peak_gb:8.2f} {code:10d}   {seconds / cold:.2f}")
            if name == "cold":
                summaries = [json.loads(p.read_text()) for p in sorted(out.glob("sub-*/log/*/summary.json"))]
        print("\nsteps of the cold run, s")
        for summary in summaries:
            for run in summary["runs"]:
                for step, cost in run["steps"].items():
                    print(f"{cost['seconds']:8.1f}  {step}")
    return code


if __name__ == "__main__":
    sys.exit(main())
