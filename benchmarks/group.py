"""Time and memory of the group level on simulated derivatives, compared with reading the tables one by one with pandas.

    python benchmarks/group.py [--participants 5000] [--sessions 2] [--clips 30] [--features 288] [--no-reference]
                               [--figures [OUT]] [--browser]

The derivatives have the app's own format: image quality metrics, embeddings under two normalisations, and predictions,
with sidecars and logs; their values are random. Prints wall time, CPU time, peak memory (of all processes together,
shared pages counted once), and the sizes of the output files. With ``--figures``, each run has the figures of the first
run of an output folder, or of a simulated head. With ``--browser``, prints how long the page takes in Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from watching import Cost, watch

from bids_app.group.reading import NOT_NEGATIVE, SHARES

CARD = {"Model": "made", "WeightsSHA256": "0" * 64, "Demonstration": True, "Device": "cpu", "Template": "made"}
QUALITY = {
    "fd_mean": (0.2, 0.06), "fd_max": (0.9, 0.3), "fd_perc": (4, 2), "dvars_std": (1.1, 0.05), "dvars_nstd": (17, 2),
    "dvars_vstd": (1.0, 0.02), "tsnr": (60, 10), "snr": (8, 0.7), "gcor": (0.05, 0.01), "aor": (0.004, 0.001),
    "aqi": (0.007, 0.001), "efc": (0.5, 0.02), "fber": (5000, 800), "fwhm_avg": (3.2, 0.15), "fwhm_x": (3.1, 0.15),
    "fwhm_y": (3.1, 0.15), "fwhm_z": (3.5, 0.15), "gsr_x": (-0.007, 0.002), "gsr_y": (0.02, 0.005),
    "coverage": (0.96, 0.008), "coreg_dice": (0.96, 0.005), "coreg_stands_out": (0.5, 0.05),
    "norm_correlation": (0.95, 0.01), "norm_dice": (0.99, 0.002), "norm_coverage": (0.995, 0.001),
    "brain_ml": (1350, 90), "n_motion_outliers": (6, 2), "csf_voxels": (160, 20), "white_matter_voxels": (2600, 200),
    "coreg_similarity": (0.28, 0.02), "coreg_brain_seen": (0.97, 0.01), "epi_mask_dice": (0.96, 0.01),
    "size_t": (600, 0), "dummy_trs": (0, 0), "spacing_tr": (0.8, 0), "size_x": (96, 0), "spacing_x": (2.2, 0),
}  # fmt: skip
"""Mean and standard deviation of each image quality metric."""


@dataclass(frozen=True)
class Study:
    """Simulated participants, sites and sessions; the values of a run depend only on the seed and its name."""

    participants: int = 12
    sessions: int = 2
    clips: int = 4
    features: int = 16
    sites: int = 3
    motion_in_age: float = 0.0
    """Increase of the predicted age per millimetre of motion, years."""
    site_in_embedding: float = 0.3
    noise: float = 0.6
    """Standard deviation of embeddings over sessions; it is 1 between participants."""
    swapped: tuple[tuple[int, int, int], ...] = ()
    """Pairs of participants whose runs of a session are swapped: (one, other, session), numbered from 1."""
    verdicts: bool = True
    seed: int = 0

    def label(self, number: int) -> str:
        """Return the label of a participant."""
        return f"{number:0{max(2, len(str(self.participants)))}d}"

    def site(self, number: int) -> int:
        """Return the site of a participant."""
        return number % self.sites

    def person(self, number: int) -> tuple[np.random.Generator, float, np.ndarray]:
        """Return a generator, the age and the embedding of a participant, which are the same in all sessions."""
        rng = np.random.default_rng([self.seed, number])
        own = rng.normal(size=self.features)
        shift = np.random.default_rng([self.seed, 10**6 + self.site(number)]).normal(size=self.features)
        return rng, float(rng.uniform(20, 80)), own + self.site_in_embedding * shift

    def write(self, out_dir: Path, raw_dir: Path) -> None:
        """Write derivatives, and a raw dataset with participants.tsv and empty images."""
        from bids_app.bids.description import describe_outputs

        raw_dir.mkdir(parents=True)
        (raw_dir / "dataset_description.json").write_text(json.dumps({"Name": "Simulated", "BIDSVersion": "1.10.0"}))
        rows = ["participant_id\tage\tsite"]
        for number in range(1, self.participants + 1):
            _, age, _ = self.person(number)
            rows.append(f"sub-{self.label(number)}\t{age:.1f}\tsite{self.site(number)}")
            self.write_participant(out_dir, raw_dir, number)
        (raw_dir / "participants.tsv").write_text("\n".join(rows) + "\n")
        describe_outputs(out_dir, raw_dir)

    def write_participant(self, out_dir: Path, raw_dir: Path, number: int) -> None:
        """Write one participant's runs and log."""
        label, runs = self.label(number), []
        for session in range(1, self.sessions + 1):
            swapped = {
                a: b for one, other, when in self.swapped if when == session for a, b in [(one, other), (other, one)]
            }
            run = {"sub": label} | ({"ses": str(session)} if self.sessions > 1 else {}) | {"task": "rest"}
            stem = "_".join(f"{k}-{v}" for k, v in run.items())
            self.write_run(out_dir, run, swapped.get(number, number), session)
            image = (
                raw_dir
                / f"sub-{label}"
                / (f"ses-{session}/func" if self.sessions > 1 else "func")
                / f"{stem}_bold.nii.gz"
            )
            image.parent.mkdir(parents=True)
            image.touch()
            runs.append({"stem": stem, "status": "ok", "step": "", "reason": "", "hint": "", "exit_code": 0,
                         "steps": {f"step{i}": {"seconds": 1.0, "peak_rss_mb": 900} for i in range(15)}})  # fmt: skip
        self.write_log(out_dir, label, runs)

    def write_log(self, out_dir: Path, label: str, runs: list[dict[str, Any]], when: str = "20260101-120000") -> None:
        """Write the log of a participant's runs."""
        log = out_dir / f"sub-{label}" / "log" / f"{when}_{self.seed}"
        log.mkdir(parents=True)
        (log / "summary.json").write_text(json.dumps({"participant": label, "runs": runs}, indent=2))

    def write_run(self, out_dir: Path, run: Mapping[str, str], number: int, session: int) -> None:
        """Write image quality metrics, embeddings and predictions of a run, with the values of participant `number`."""
        from bids_app.bids.writer import output_path
        from bids_app.reports.contents import quality_columns

        rng = np.random.default_rng([self.seed, number, session])
        _, age, own = self.person(number)
        quality = {name: float(rng.normal(mean, sd)) for name, (mean, sd) in QUALITY.items()}
        quality |= {name: max(quality[name], 0.0) for name in NOT_NEGATIVE}
        quality |= {name: min(quality[name], 1.0) for name in SHARES}
        sources = {"Sources": [f"bids:raw:sub-{run['sub']}/func/x_bold.nii.gz"]}
        self._json(output_path(out_dir, run, "metrics", ".json", desc="quality"),
                   {**sources, "route": "t1w", "template": "made", "quality": quality, "warnings": [], "notes": [],
                    **quality_columns(quality)})  # fmt: skip
        has_motion = quality["fd_mean"] > 0.3
        checks = [{"Check": name, "Level": "pass", "Value": 1.0, "Limits": "0.5 to 2", "Message": ""}
                  for name in ("tr", "duration", "coverage", "orientation", "tsnr", "embedding")]  # fmt: skip
        checks.append({"Check": "fd_mean", "Level": "warn" if has_motion else "pass", "Value": quality["fd_mean"],
                       "Limits": "at most 0.3 mm", "Message": "It moved more." if has_motion else ""})  # fmt: skip
        card = (
            CARD
            | sources
            | ({"Verdict": {"Level": "warn" if has_motion else "pass", "Checks": checks}} if self.verdicts else {})
        )
        predicted = age + self.motion_in_age * quality["fd_mean"] + rng.normal(0, 4)
        table = output_path(out_dir, run, "embeddings", ".tsv", desc="made")
        halves = {name: {"Correlation": 0.9, "SpearmanBrown": 0.95, "Clips": [2, 2]} for name in ("global", "voxel")}
        self._json(table.with_suffix(".json"), card | {"SplitHalf": halves})
        header = ["normalisation", "clip", "onset", "duration", *(f"e{i:04d}" for i in range(self.features))]
        lines = []
        for index, name in enumerate(("global", "voxel")):
            mean = own + 3 * index + rng.normal(0, self.noise, self.features)
            clips = mean + rng.normal(0, 0.1, (self.clips, self.features))
            lines += self._clip_lines([name], clips.astype(np.float32))
        self._table(table, header, lines)
        ages = (predicted + rng.normal(0, 1, (self.clips, 1))).astype(np.float32)
        path = output_path(out_dir, run, "predictions", ".tsv", desc="madeage")
        self._table(path, ["clip", "onset", "duration", "value"], self._clip_lines([], ages))
        task = {"Adapter": "madeage", "Task": "regression", "Target": "age", "Unit": "years", "Labels": []}
        interval = [float(ages.mean() - 8), float(ages.mean() + 8)]
        uncertainty = {"EffectiveClips": 2.5, "StandardError": 0.5, "Level": 0.9, "Interval": interval}
        self._json(path.with_suffix(".json"), card | task | {"Uncertainty": uncertainty})

    def _clip_lines(self, keys: list[str], clips: np.ndarray) -> list[str]:
        """Return the lines of the mean and of each clip, (clips, columns), in the app's format."""
        clips, total = clips.astype(np.float64), 16.0 * len(clips)
        rows = [["mean", "0.0", str(total), *map(repr, clips.mean(axis=0).tolist())]]
        rows += [[str(i), str(16.0 * i), "16.0", *map(repr, row)] for i, row in enumerate(clips.tolist())]
        return ["\t".join([*keys, *row]) for row in rows]

    def _table(self, path: Path, header: list[str], lines: list[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["\t".join(header), *lines]) + "\n")

    def _json(self, path: Path, content: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")


def measure(what: str, command: list[str]) -> Cost:
    """Run a command that must succeed, print its row of the table, and return its cost."""
    cost = watch(command, every=0.2)
    if cost.code:
        raise SystemExit(f"the command ended with {cost.code}")
    print(f"{what:<28} {cost.seconds:7.1f} {cost.cpu_seconds:12.1f} {cost.peak_gb:8.2f}", flush=True)
    return cost


REFERENCE = """
import json, sys
from pathlib import Path
import pandas as pd
out = Path(sys.argv[1])
tables = [pd.read_csv(path, sep="\\t") for path in sorted(out.glob("sub-*/**/*_embeddings.tsv"))]
means = pd.concat([table[table["clip"] == "mean"] for table in tables])
paths = sorted(out.glob("sub-*/**/*_predictions.tsv"))
predictions = pd.concat([pd.read_csv(path, sep="\\t").iloc[:1] for path in paths])
cards = [json.loads(path.read_text()) for path in sorted(out.glob("sub-*/**/*.json"))]
means.to_csv(out / "naive.tsv", sep="\\t", index=False)
"""
"""Reference: read the same files one by one and write the embeddings, without statistics, figures or page."""


def add_figures(out_dir: Path, examples: Path) -> None:
    """Link the figures of the first run of the example folder for each run."""
    figures: dict[str, Path] = {}
    for path in sorted(examples.glob("sub-*/figures/*_bold.svg")):
        figures.setdefault(path.name[path.name.index("_desc-") :], path)
    for sidecar in out_dir.rglob("*_desc-quality_metrics.json"):
        stem = sidecar.name.removesuffix("_desc-quality_metrics.json")
        folder = out_dir / stem.partition("_")[0] / "figures"
        folder.mkdir(exist_ok=True)
        for ending, path in figures.items():
            os.link(path, folder / f"{stem}{ending}")


DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame((now) => done(now - start))))"
ACTIONS = {
    "search for a participant": "set('[data-state=q]', 'sub-0123', 'input')",
    "filter by verdict": "set('[data-state=q]', '', 'input'); set('[data-state=is-verdict]', 'warn')",
    "sort by head motion": "set('[data-state=is-verdict]', ''); set('[data-state=sort]', 'fd_mean')",
    "next page": "document.querySelector('.pages button:nth-of-type(3)').click()",
    "table instead of thumbnails": "set('[data-state=view]', 'table')",
    "map coloured by temporal SNR": "pick(document.querySelectorAll('.map select')[1], 'Temporal SNR')",
}
HELPERS = """
window.set = (selector, value, type = "change") => {
  const element = document.querySelector(".runs " + selector);
  element.value = value;
  element.dispatchEvent(new Event(type));
};
window.pick = (list, text) => {
  list.value = [...list.options].find((option) => option.text === text).value;
  list.dispatchEvent(new Event("change"));
};
0
"""


def measure_page(address: str, times: int = 5) -> None:
    """Print how long the page takes until it is drawn, and after each action."""
    from chromium import Browser

    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    found: dict[str, list[float]] = {}
    with Browser() as browser:
        for _ in range(times):
            browser.open("about:blank")
            browser.open(address)
            found.setdefault("first paint", []).append(browser.run(paint))
            found.setdefault("loaded", []).append(
                browser.run("performance.getEntriesByType('navigation')[0].loadEventEnd")
            )
            browser.run(HELPERS)
            for name, action in ACTIONS.items():
                script = f"(() => {{ const start = performance.now(); {action}; return {DRAWN}; }})()"
                found.setdefault(name, []).append(browser.run(script))
    print(f"{'group.html in Chromium':<30} {'median':>7} {'max, ms':>9}; load {os.getloadavg()[0]:.0f}")
    for name, values in found.items():
        print(f"{name:<30} {np.median(values):7.0f} {max(values):9.0f}")


def main() -> int:
    """Simulate the derivatives, measure the group level and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--participants", type=int, default=5000)
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--features", type=int, default=288)
    parser.add_argument("--nprocs", default="2")
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--keep", type=Path, help="write the derivatives here, or use existing ones")
    parser.add_argument(
        "--figures", type=Path, nargs="?", const=Path(), metavar="OUT", help="add figures of this folder"
    )
    parser.add_argument("--browser", action="store_true", help="measure the page in Chromium")
    options = parser.parse_args()
    study = Study(options.participants, options.sessions, options.clips, options.features, sites=8)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        out, raw = folder / "out", folder / "raw"
        if not out.is_dir():
            study.write(out, raw)
            if options.figures is not None:
                examples = options.figures if options.figures.name else folder / "examples"
                if not options.figures.name:
                    from review import plot_figures

                    plot_figures(examples / "sub-01" / "figures")
                add_figures(out, examples)
        size = sum(path.stat().st_size for path in out.rglob("sub-*_*"))
        print(f"{options.participants * options.sessions} runs, {size / 1e9:.2f} GB in sidecars and tables")
        print(f"{'command':<28} {'s':>7} {'CPU s':>12} {'peak GB':>8}")
        program = Path(sys.executable).with_name("neurostorm")
        command = [str(program), str(raw), str(out), "group", "--nprocs", options.nprocs]
        ours = measure("group", command)
        if not options.no_reference:
            naive = measure("reading one by one, pandas", [sys.executable, "-c", REFERENCE, str(out)])
            wall, cpu = naive.seconds / ours.seconds, naive.cpu_seconds / ours.cpu_seconds
            print(f"ratios: {wall:.1f} in wall time, {cpu:.1f} in CPU time")
            (out / "naive.tsv").unlink()
        print(f"group.html: {(out / 'group.html').stat().st_size / 1e3:.0f} kB")
        for path in sorted((out / "group_figures").glob("*.svg")):
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
        thumbnails = [path.stat().st_size for path in (out / "group_figures" / "wall").glob("*.jpg")]
        print(f"thumbnails: {len(thumbnails)} files, {sum(thumbnails) / 1e6:.0f} MB")
        if options.browser:
            measure_page((out / "group.html").as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
