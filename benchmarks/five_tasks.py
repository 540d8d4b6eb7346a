"""Evaluation of the five tasks on simulated cohorts with known effects; one configuration per task (`tasks/*.args`).

    python benchmarks/five_tasks.py                 # all, with the demonstration encoder
    python benchmarks/five_tasks.py age identity    # some of them
    python benchmarks/five_tasks.py --quick         # no permutation test, fewer repeats

Each task runs `neurostorm-train evaluate` with its file. The table shows the metric, the minimum it should reach, and
the baselines in the same folds. The effects are in the mean image, or in activation of 3 to 6 % of the signal, which a
linear model of the mean image captures directly: this baseline is expected to be as good or better. The benchmark shows
that the whole pipeline recovers the simulated effects. It says nothing about dynamics: for effects that are not in the
mean image, see `dynamics.py`.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path

from bids_app.cli.train import main as train
from bids_app.phantom.cohorts import CohortScan, Effects, images_cohort, states_cohort, traits_cohort
from bids_app.training.data.store import ClipStore

TASKS = Path(__file__).with_name("tasks")


@dataclass(frozen=True)
class Task:
    """A task: its cohort, its main metric, and the minimum that the metric should reach."""

    cohort: str
    metric: str
    minimum: float


ALL = {
    "age": Task("traits", "r", 0.8),
    "sex": Task("traits", "balanced_accuracy", 0.9),
    "phenotype": Task("traits", "r", 0.8),
    "diagnosis": Task("traits", "balanced_accuracy", 0.8),
    "identity": Task("sessions", "rank1", 0.9),
    "images": Task("images", "top1", 0.0),  # ten times chance, which depends on the pool
    "states": Task("states", "balanced_accuracy", 0.9),
}

METHODS = {
    "encoder": "encoder", "connectivity": "functional connectivity", "mean": "mean image", "amplitude": "amplitudes",
}  # fmt: skip
"""Columns of the table; the cohorts have neither motion nor sites."""


def make_cohort(name: str, work: Path) -> tuple[Path, Path]:
    """Simulate a cohort, and return its store and the folder of its tables; existing scans are kept."""
    folder = work / name
    if name == "traits":
        scans = traits_cohort(folder, 80)
    elif name == "sessions":
        scans = traits_cohort(folder, 100, sessions=2, clips=2, seed=3, effects=Effects(own=0.05))
    elif name == "images":
        scans = images_cohort(folder, 10, 48, effects=Effects(activity=0.06))
    else:
        scans = states_cohort(folder, 10)
    return fill_store(folder / "clips", "voxel" if name in ("images", "states") else "global", scans), folder


def fill_store(folder: Path, normalisation: str, scans: list[CohortScan]) -> Path:
    """Simulate the scans that are missing from a store, and return its folder."""
    store = ClipStore(folder, normalisation)
    for scan in scans:
        if scan.name not in store:
            store.add(scan.name, scan.simulate(), scan.participant, scan.session, {"task": "x"})
    return store.folder


def run(name: str, work: Path, quick: bool) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Evaluate a task, and return value and interval by method and metric."""
    store, tables = make_cohort(ALL[name].cohort, work)
    report = work / f"report_{name}"
    options = ["--raw", str(tables), f"@{TASKS / name}.args", "--model", "demo", "--output", str(report)]
    if name == "images":
        options += ["--images", str(tables / "images.tsv")]
    if quick:
        options += ["--permutations", "0", "--repeats", "2"]
    if train(["evaluate", str(store), *options]):
        raise SystemExit(f"{name}: the evaluation failed")
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    with open(report / "scores.tsv", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            numbers = (float(row["value"]), float(row["low"]), float(row["high"]))
            found.setdefault(row["method"], {})[row["score"]] = numbers
    return found


def minimum_of(name: str, work: Path) -> float:
    """Return the minimum that the metric of a task should reach."""
    if name != "images":
        return ALL[name].minimum
    report = (work / "report_images" / "report.md").read_text()
    pool = int(report.split("Images per pool | ")[1].split(" ")[0])
    return 10 / pool


def cell_of(numbers: tuple[float, float, float] | None) -> str:
    """Format a value with its interval; empty if the method was not evaluated."""
    return "" if numbers is None else f"{numbers[0]:.3f} ({numbers[1]:.3f} to {numbers[2]:.3f})"


def main() -> int:
    """Run the tasks and print the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("tasks", nargs="*", metavar="TASK", help=f"some of {', '.join(ALL)} (default: all)")
    p.add_argument("--work", type=Path, default=Path("five-tasks"), help="cohorts (about 1.5 GB) and reports")
    p.add_argument("--quick", action="store_true", help="no permutation test, fewer repeats")
    arguments = p.parse_args()
    unknown = sorted(set(arguments.tasks) - set(ALL))
    if unknown:
        p.error(f"unknown task: {', '.join(unknown)}")
    lines, missed = [], []
    for name in arguments.tasks or ALL:
        metric = ALL[name].metric
        found = run(name, arguments.work, arguments.quick)
        minimum = minimum_of(name, arguments.work)
        cells = [cell_of(found.get(method, {}).get(metric)) for method in METHODS]
        lines.append(f"| {name} | {metric} | {minimum:.2f} | {' | '.join(cells)} |")
        if found["encoder"][metric][0] < minimum:
            missed.append(name)
    header = ["task", "metric", "minimum", *METHODS.values()]
    print(f"\n| {' | '.join(header)} |\n" + "| --- " * len(header) + "|")
    print("\n".join(lines))
    if missed:
        print(f"Below the minimum: {', '.join(missed)}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
