"""Time until figures of ``neurostorm-review`` are shown in Chromium, for a simulated output folder.

The figures are those of an output folder of the app (``--figures``), or are plotted from a simulated head by its own
functions; each run of the simulated folder has its own copies. Times are measured in the page: from the start of the
navigation, or from the key press, until the figure is decoded and the next frame is drawn.

    python benchmarks/review.py [--runs 1000] [--figures OUT] [--static]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from chromium import Browser

RUNS_PER_PARTICIPANT = 2
SHOWN = "document.getElementById('figure').getAttribute('aria-busy') === 'false'"
WATCH = """
new Promise((done) => {
  let start = 0;
  const figure = document.getElementById("figure"), frame = document.getElementById("frame");
  const finish = () => requestAnimationFrame(() => requestAnimationFrame((now) => done(now - start)));
  const observer = new MutationObserver((records) => {
    if (!start || !records.some((record) => record.target === frame)) return;
    observer.disconnect();
    finish();
  });
  observer.observe(figure, { subtree: true, childList: true });
  addEventListener("keydown", (event) => { start = event.timeStamp; }, { capture: true, once: true });
  const input = document.getElementById("go");
  input.addEventListener("change", () => { start = start || performance.now(); }, { capture: true, once: true });
  window.watched = true;
})
"""
"""Promise of the time from the next key press until its figure is drawn, ms."""
FIRST = """
new Promise((done) => {
  const figure = document.getElementById("figure");
  const finish = () => requestAnimationFrame((now) => done(now));
  const look = () => (figure.getAttribute("aria-busy") === "false" ? finish() : requestAnimationFrame(look));
  look();
})
"""
"""Promise of the time from the start of the navigation until the first figure is drawn, ms."""


def plot_figures(folder: Path) -> None:
    """Plot the figures of one run and its anatomy from a simulated head, as the app does."""
    import nibabel as nib
    import pandas as pd

    from bids_app.reports.figures.brains import plot_flicker, plot_outlines
    from bids_app.reports.figures.charts import plot_carpet
    from bids_app.reports.figures.model_grid import GridView, plot_model_grid

    rng = np.random.default_rng(0)
    shape = (96, 96, 96)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(sum((axis / size) ** 2 for axis, size in zip(axes, (0.8, 0.9, 0.8), strict=True)))
    data = (900 * (radius < 0.85) + 400 * (radius < 1) + rng.normal(0, 40, shape)).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -96
    image, mask = nib.Nifti1Image(data, affine), nib.Nifti1Image((radius < 0.85).astype(np.uint8), affine)
    folder.mkdir(parents=True)
    for name in ("sub-01_desc-norm_T1w", "sub-01_task-rest_desc-coreg_bold", "sub-01_task-rest_desc-norm_bold"):
        plot_flicker(image, image, folder / f"{name}.svg", outline=mask, names=("T1w", "BOLD"), title=name)
    for name in ("sub-01_desc-mask_T1w", "sub-01_task-rest_desc-mask_bold"):
        plot_outlines(image, {"brain mask": mask}, folder / f"{name}.svg", title=name)
    confounds = pd.DataFrame({"framewise_displacement": rng.random(200), "std_dvars": rng.random(200)})
    carpet = folder / "sub-01_task-rest_desc-carpet_bold.svg"
    plot_carpet(rng.normal(1000, 10, (200, 2000)), 2.0, confounds, carpet, title="rest")
    grid = folder / "sub-01_task-rest_desc-grid_bold.svg"
    plot_model_grid([GridView("Mean of the run", data)], affine, grid, mask=radius < 0.85, title="rest")


def simulate(out_dir: Path, figures: Path, n_runs: int) -> int:
    """Copy the figures of one run and its anatomy for each participant and session; return the number of figures."""
    from bids_app.bids.entities import split_name

    examples: dict[str, Path] = {}
    for path in sorted(figures.glob("sub-*/figures/*.svg")):
        entities, suffix, _ = split_name(path.name)
        examples.setdefault(f"desc-{entities.get('desc')}_{suffix}.svg", path)
    n_figures = 0
    for number in range(n_runs):
        label, session = number // RUNS_PER_PARTICIPANT + 1, number % RUNS_PER_PARTICIPANT + 1
        folder = out_dir / f"sub-{label:04d}" / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        for ending, source in examples.items():
            is_anatomy = ending.endswith("_T1w.svg")
            if is_anatomy and session > 1:
                continue
            start = f"sub-{label:04d}_" + ("" if is_anatomy else f"ses-{session}_task-rest_")
            shutil.copyfile(source, folder / f"{start}{ending}")
            n_figures += 1
    return n_figures


def measure(browser: Browser, keys: Sequence[str], pause: float) -> np.ndarray:
    """Return the time from each key press until its figure is drawn, ms."""
    times = []
    for key in keys:
        browser.run(f"window.answer = {WATCH}; 0")
        browser.press(key)
        times.append(browser.run("window.answer"))
        time.sleep(pause)
    return np.array(times)


def measure_jumps(browser: Browser, images: Sequence[str]) -> np.ndarray:
    """Return the time until a figure that was not loaded before is drawn, ms."""
    times = []
    for name in images:
        browser.run(f"window.answer = {WATCH}; 0")
        browser.run(f"byId('go').value = {json.dumps(name)}; byId('go').dispatchEvent(new Event('change'))")
        times.append(browser.run("window.answer"))
    return np.array(times)


def row(what: str, times: np.ndarray) -> str:
    """Format one row of the table."""
    return f"{what:<46} {len(times):4d} {np.median(times):8.0f} {np.quantile(times, 0.95):8.0f} {times.max():8.0f}"


def start_server(out_dir: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the command, and return it with the address of the page."""
    call = [sys.executable, "-m", "bids_app.cli.review", str(out_dir), "--rater", "AB"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[-1]


def main() -> int:
    """Simulate the output folder, measure the page and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--figures", type=Path, metavar="OUT", help="output folder of the app with example figures")
    parser.add_argument("--static", action="store_true", help="the page in the output folder instead of the server")
    parser.add_argument("--presses", type=int, default=60, help="key presses of each kind")
    parser.add_argument("--rest", type=float, default=0.3, help="time between two key presses, s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        examples = options.figures or Path(scratch) / "examples"
        if options.figures is None:
            plot_figures(examples / "sub-01" / "figures")
        out_dir = Path(scratch) / "out"
        simulate(out_dir, examples, options.runs)
        sizes = [path.stat().st_size for path in out_dir.glob("sub-*/figures/*.svg")]
        total, median = sum(sizes) / 1e9, np.median(sizes) / 1e3
        print(f"{options.runs} runs, {len(sizes)} files, {total:.2f} GB, median {median:.0f} kB")
        began = time.perf_counter()
        process = None
        if options.static:
            subprocess.run([sys.executable, "-m", "bids_app.cli.review", str(out_dir), "--static"], check=True)
            address = (out_dir / "review.html").as_uri()
        else:
            process, address = start_server(out_dir)
        print(f"start of the command: {time.perf_counter() - began:.1f} s; load {os.getloadavg()[0]:.0f}")
        try:
            with Browser() as browser:
                report(browser, address, options)
        finally:
            if process is not None:
                process.send_signal(signal.SIGINT)
                process.wait(30)
    return 0


def report(browser: Browser, address: str, options: argparse.Namespace) -> None:
    """Measure the page and print the table."""
    opened = []
    for _ in range(5):
        browser.open("about:blank")
        browser.open(address)
        opened.append(browser.run(FIRST))
    print(f"{browser.run('figures.length')} figures to review, page of {browser.run(PAGE_SIZE) / 1e3:.0f} kB")
    print(f"{'time until the figure is drawn':<46} {'n':>4} {'median':>8} {'95 %':>8} {'max, ms':>8}")
    print(row("first figure, from the start of the navigation", np.array(opened)))
    if options.static:
        browser.run("const r = document.getElementById('rater'); r.value = 'AB'; r.dispatchEvent(new Event('change'))")
    browser.wait(SHOWN)
    time.sleep(1)
    n = options.presses
    print(row("next figure (arrow key)", measure(browser, ["ArrowRight"] * n, options.rest)))
    print(row("rating and next figure", measure(browser, ["p", "f", "d"] * (n // 3), options.rest)))
    print(row("next figure, keys without a pause", measure(browser, ["ArrowRight"] * n, 0)))
    images = browser.run("images.filter((name) => !name.endsWith('_T1w'))")
    chosen = np.random.default_rng(0).choice(images, min(n // 2, len(images)), replace=False)
    print(row("figure of any other run, not loaded before", measure_jumps(browser, list(map(str, chosen)))))


PAGE_SIZE = "document.documentElement.outerHTML.length"


if __name__ == "__main__":
    sys.exit(main())
