"""Observed ranges of the measures of the signal, for `bids_app/catalog/normal_ranges.json`.

    python benchmarks/normal_ranges.py FOLDER... [--simulated N] [--write]

FOLDER: outputs of the command on real scans, with their ``desc-quality_metrics.tsv``. N scans are simulated on the
model grid. Prints minimum and maximum of each measure, and the range that passes; ``--write`` stores the observed
ranges in the catalog. The limits there and the description of the scans are written by hand.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from bids_app.catalog.normal_ranges import PATH
from bids_app.phantom.grid_scans import simulated_series
from bids_app.preprocess.brain_signal import SIGNAL_MEASURES, measure_signal

MEASURES = ("fd_mean", *SIGNAL_MEASURES)
STATES = ("rest", "visual", "lefthand", "righthand")
SEED = 600


def read_runs(folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Read the measures of all runs in an output folder."""
    for path in sorted(folder.glob("sub-*/**/func/*_desc-quality_metrics.tsv")):
        with path.open(newline="") as file:
            row = next(csv.DictReader(file, delimiter="\t"))
        yield (
            path.name.partition("_desc-")[0],
            {name: float(row[name]) for name in MEASURES if row.get(name, "n/a") != "n/a"},
        )


def observed(runs: Mapping[str, Mapping[str, float]], name: str) -> dict[str, float] | None:
    """Return the number of runs with a measure, and its range, rounded to 3 significant digits."""
    values = [run[name] for run in runs.values() if name in run]
    return {"runs": len(values), "minimum": _round(min(values)), "maximum": _round(max(values))} if values else None


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--simulated", type=int, default=8)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    real = {f"{folder.name} {name}": run for folder in arguments.folders for name, run in read_runs(folder)}
    simulated = {
        str(k): measure_signal(simulated_series(STATES[k % len(STATES)], SEED + k, "ranges"))
        for k in range(arguments.simulated)
    }
    content = json.loads(PATH.read_text())
    print(f"{len(real)} real runs: {', '.join(real)}; {len(simulated)} simulated ones\n")
    print("| measure | passes | real | simulated |\n| --- | --- | --- | --- |")
    for name in MEASURES:
        entry = content["measures"].setdefault(name, {})
        entry["real"], entry["simulated"] = observed(real, name), observed(simulated, name)
        cells = [
            f"{found['minimum']} to {found['maximum']} ({found['runs']})" if found else ""
            for found in (entry["real"], entry["simulated"])
        ]
        print(f"| {name} | {entry.get('low', '')} to {entry.get('high', '')} | {cells[0]} | {cells[1]} |")
    if arguments.write:
        PATH.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
