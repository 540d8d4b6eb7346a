"""Time and memory of the participant level on a dataset: first run (cold), and second run without changes.

    python benchmarks/participant.py DATASET [--model demo] [--device cuda]

Prints seconds, the peak memory of all processes together, and the seconds of each step. Without DATASET, two
participants are simulated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from watching import watch


def main() -> int:
    """Run the app twice and print time and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="auto", help="as the command takes it")
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
        command += ["--device", options.device]
        print(f"{'run':<6} {'s':>6} {'peak GB':>8} {'exit code':>10}   time relative to cold")
        cold = None
        for name in ("cold", "again"):
            cost = watch([str(part) for part in command], stderr=subprocess.DEVNULL)
            cold = cold or cost.seconds
            print(f"{name:<6} {cost.seconds:6.1f} {cost.peak_gb:8.2f} {cost.code:10d}   {cost.seconds / cold:.2f}")
            if name == "cold":
                summaries = [json.loads(p.read_text()) for p in sorted(out.glob("sub-*/log/*/summary.json"))]
        print("\nsteps of the cold run, s")
        for summary in summaries:
            for run in summary["runs"]:
                for step, spent in run["steps"].items():
                    print(f"{spent['seconds']:8.1f}  {step}")
    return cost.code


if __name__ == "__main__":
    sys.exit(main())
