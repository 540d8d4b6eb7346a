"""Comparison of our functions with their counterparts in niworkflows and nireports.

    python benchmarks/nipreps.py

Imports are timed in new processes that have already imported the packages of a worker of the app.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

WORKER = "import nipype.pipeline.engine, pandas, scipy.ndimage, matplotlib.figure, torch"
MODULES = (
    "niworkflows.interfaces.confounds",
    "niworkflows.engine.workflows",
    "niworkflows.interfaces.header",
    "niworkflows.utils.spaces",
    "niworkflows.interfaces.bids",
    "nireports.reportlets.utils",
    "nireports.reportlets.modality.func",
    "nireports.assembler.report",
)
VOLUMES, VOXELS, TR = 300, 4000, 2.0


def import_seconds(module: str) -> float:
    """Return the time that importing a module adds to the start of a worker, s."""
    code = f"{WORKER}; import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return float(output.split()[-1])


def seconds(function: Callable[[], object]) -> float:
    """Return the minimum time of three calls, s."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def compare_carpets(folder: Path) -> None:
    """Plot the same run with both, and print seconds and kB of each figure."""
    from matplotlib import pyplot as plt
    from nireports.reportlets.modality.func import fMRIPlot

    from bids_app.reports.figures.charts import plot_carpet

    rng = np.random.default_rng(0)
    values = rng.normal(1000, 10, (VOLUMES, VOXELS)).astype(np.float32)
    confounds = pd.DataFrame({"framewise_displacement": rng.gamma(2, 0.05, VOLUMES)})
    confounds["std_dvars"] = rng.normal(1, 0.05, VOLUMES)
    ours, theirs = folder / "ours.svg", folder / "theirs.svg"
    plt.switch_backend("Agg")

    def plot_theirs() -> None:
        fMRIPlot(values.T.copy(), {"brain": list(range(VOXELS))}, confounds=confounds, tr=TR).plot(out_file=theirs)

    rows = (
        ("ours: plot_carpet", lambda: plot_carpet(values, TR, confounds, ours, title="run"), ours),
        ("nireports: fMRIPlot", plot_theirs, theirs),
    )
    print(f"\n{'carpet plot of 300 volumes':<40} {'s':>7} {'kB':>7}")
    for name, plot, path in rows:
        time_s = seconds(plot)
        print(f"{name:<40} {time_s:7.2f} {path.stat().st_size / 1e3:7.0f}")


def compare_pages() -> None:
    """Print how many files each report's template loads from other hosts."""
    import nireports.assembler.data as theirs

    from bids_app import reports

    ours = Path(str(reports.__file__)).parent / "templates" / "participant.html.jinja"
    print(f"\n{'report':<40} {'external files':>14}")
    for name, path in (("ours", ours), ("nireports.assembler", Path(str(theirs.__file__)).with_name("report.tpl"))):
        external = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"https?://", path.read_text())
        print(f"{name:<40} {len(external):14d}")


def compare_names() -> None:
    """Print the time that both need to build an output name."""
    import json

    from bids.layout.writing import build_path
    from niworkflows import data

    from bids_app.bids.writer import output_path

    patterns = json.loads(Path(str(data.load("nipreps.json"))).read_text())["default_path_patterns"]
    own = {"sub": "01", "ses": "a", "task": "rest"}
    full = {"subject": "01", "session": "a", "task": "rest", "desc": "brain", "suffix": "mask", "extension": ".nii.gz"}
    full["datatype"] = "func"
    ours = seconds(lambda: [output_path(Path(), own, "mask", ".nii.gz", desc="brain") for _ in range(100)])
    theirs = seconds(lambda: [build_path(full, patterns) for _ in range(100)])
    print(f"\n{'output name':<40} {'ms':>7}\n{'ours: output_path':<40} {10 * ours:7.3f}")
    print(f"{'nipreps.json with build_path':<40} {10 * theirs:7.3f}")


def main() -> None:
    """Print all comparisons."""
    print(f"{'import in a worker':<40} {'s':>7}")
    for module in MODULES:
        print(f"{module:<40} {import_seconds(module):7.2f}")
    compare_names()
    with tempfile.TemporaryDirectory() as folder:
        compare_carpets(Path(folder))
    compare_pages()


if __name__ == "__main__":
    main()
