"""Verdicts on series that are not the BOLD signal of a brain, or not of the adapter's cohort, and on good scans.

    python benchmarks/impostors.py FOLDER [--base DERIVATIVES]... [--real-only] [--good N] [--only TEXT]
                                    [--signal-only]
    python benchmarks/impostors.py OUT --verdicts

A simulated scan on the model grid, and real ones given by ``--base`` (outputs of the command with
``--output-spaces MNI152NLin6Asym``), are spoiled in three strengths and given to the command as derivatives. FOLDER
keeps the answers in ``impostors.csv``; cases that are there are not repeated. The table has a line for each kind of
impostor, and for the good scans: how many were refused or warned of, and the checks that said so. ``--signal-only``
applies the checks of the signal alone, without the command, which takes seconds. ``--verdicts`` prints the verdicts on
the predictions in an output folder of the command, such as of good scans that went through preprocessing.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage, signal

from bids_app.adapters.verdict import judge_scan
from bids_app.catalog.templates import MODEL_SPACE
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE, GridSeries
from bids_app.clips.series import series_from_image
from bids_app.outputs.schema import PASS, PredictionSidecar
from bids_app.phantom.grid_scans import simulated_series
from bids_app.preprocess.brain_signal import measure_signal

SEED = 31
STATES = ("rest", "visual", "lefthand")
SIMULATED: dict[str, object] = {"ManufacturersModelName": "Simulated scanner"}


@dataclass(frozen=True)
class Case:
    """A series as derivative: volumes (96, 96, 96, T), brain mask, TR (s) and fields of its sidecar."""

    volumes: np.ndarray
    mask: np.ndarray
    tr: float
    sidecar: dict[str, object]


Spoil = Callable[[Case, float, np.random.Generator], Case]


def of_voxels(change: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]) -> Spoil:
    """Make a `Spoil` of a function of the brain's time courses (T, V)."""

    def spoil(case: Case, strength: float, rng: np.random.Generator) -> Case:
        volumes = np.zeros_like(case.volumes)
        volumes[case.mask] = change(case.volumes[case.mask].T.copy(), strength, rng).T
        return replace(case, volumes=volumes)

    return spoil


def of_volumes(change: Callable[[np.ndarray, float], np.ndarray]) -> Spoil:
    """Make a `Spoil` of a function of one volume, applied to all volumes and to the mask."""

    def spoil(case: Case, strength: float, rng: np.random.Generator) -> Case:
        volumes = np.stack([change(case.volumes[..., t], strength) for t in range(case.volumes.shape[3])], axis=3)
        mask = change(case.mask.astype(np.float32), strength) > 0.5
        return replace(case, volumes=volumes * mask[..., None], mask=mask)

    return spoil


def _noise(values: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    mean = values.mean(axis=0)
    return mean + mean * percent / 100 * rng.standard_normal(values.shape, dtype=np.float32)


def _walk(values: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    steps = np.cumsum(rng.standard_normal(values.shape, dtype=np.float32), axis=0)
    mean = values.mean(axis=0)
    return mean + mean * percent / 100 * (steps - steps.mean(axis=0)) / np.sqrt(len(values))


def _pink(values: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.rfft(rng.standard_normal(values.shape, dtype=np.float32), axis=0)
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))[:, None]
    spectrum[0] = 0
    courses = np.fft.irfft(spectrum, n=len(values), axis=0)
    mean = values.mean(axis=0)
    return mean + mean * percent / 100 * (courses / courses.std(axis=0)).astype(np.float32)


def _own_phases(values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Randomise the phases of each voxel, which keeps its spectrum."""
    spectrum = np.fft.rfft(values, axis=0)
    turn = np.exp(2j * np.pi * share * rng.random(spectrum.shape))
    turn[0] = 1
    return np.fft.irfft(spectrum * turn, n=len(values), axis=0).astype(np.float32)


def _permute(values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    chosen = rng.choice(values.shape[1], int(share * values.shape[1]), replace=False)
    values[:, chosen] = values[:, rng.permutation(chosen)]
    return values


def _reverse(values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    n = int(share * values.shape[1])
    return np.concatenate([values[:, :n][:, ::-1], values[:, n:]], axis=1)


def _shuffle(values: np.ndarray, block: float, rng: np.random.Generator) -> np.ndarray:
    blocks = np.array_split(np.arange(len(values)), max(1, len(values) // int(block)))
    return values[np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])]


def _sinusoid(values: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    wave = np.sin(2 * np.pi * 6 * np.arange(len(values)) / len(values))[:, None]
    return _noise(values, 0.1, rng) + values.mean(axis=0) * percent / 100 * wave.astype(np.float32)


def _drift(values: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    return _noise(values, 0.1, rng) + values.mean(axis=0) * percent / 100 * np.linspace(-1, 1, len(values))[:, None]


def _still(values: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    return _noise(np.repeat(values[:1], len(values), axis=0), percent, rng)


def _z_scored(values: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    spread = values.std(axis=0)
    return scale * (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)


def _alternate(values: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    """Arterial spin labelling: every other volume is labelled."""
    labelled = 1 - percent / 100 * (np.arange(len(values)) % 2)[:, None]
    return (_noise(values, 1.0, rng) * labelled).astype(np.float32)


def _bolus(values: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    """Dynamic susceptibility contrast: the signal falls once, by the passage of the contrast agent."""
    time = np.linspace(0, 1, len(values))[:, None]
    passage = np.where(time > 0.3, ((time - 0.3) / 0.1) ** 2 * np.exp(-2 * ((time - 0.3) / 0.1 - 1)), 0)
    amount = rng.gamma(4, 0.25, values.shape[1])
    return (_noise(values, 1.0, rng) * (1 - percent / 100 * amount * passage)).astype(np.float32)


def _diffusion(values: np.ndarray, b: float, rng: np.random.Generator) -> np.ndarray:
    """Diffusion weighting: each volume has its own direction, each voxel its own tensor."""
    directions = rng.normal(size=(len(values), 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    fibres = rng.normal(size=(values.shape[1], 3))
    fibres /= np.linalg.norm(fibres, axis=1)[:, None]
    decay = np.exp(-b / 1000 * (0.5 + 1.0 * (directions @ fibres.T) ** 2))
    decay[:: max(len(values) // 6, 1)] = 1
    return (_noise(values, 2.0, rng) * decay).astype(np.float32)


def _without_global(values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    mean = values.mean(axis=0)
    total = values.mean(axis=1) - values.mean()
    weights = total @ (values - mean) / max(float(total @ total), 1e-12)
    return (values - share * total[:, None] * weights).astype(np.float32)


def _low_pass(values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    mean = values.mean(axis=0)
    filtered = signal.sosfiltfilt(signal.butter(4, share, output="sos"), values - mean, axis=0)
    return (mean + filtered).astype(np.float32)


def _components(values: np.ndarray, kept: float, rng: np.random.Generator) -> np.ndarray:
    """Keep a share of the principal components, as ICA-based cleaning does; may pass."""
    mean = values.mean(axis=0)
    left, size, right = np.linalg.svd(values - mean, full_matrices=False)
    n = max(1, int(kept * len(size)))
    return (mean + (left[:, :n] * size[:n]) @ right[:n]).astype(np.float32)


def _smooth(volume: np.ndarray, fwhm_mm: float) -> np.ndarray:
    if set(np.unique(volume)) <= {0.0, 1.0}:
        return volume
    return ndimage.gaussian_filter(volume, fwhm_mm / 2.3548 / 2)


def _resampled(matrix: Callable[[float], np.ndarray]) -> Spoil:
    """Make a `Spoil` that moves the brain by a matrix about the grid's centre, without updating the affine."""

    def change(volume: np.ndarray, strength: float) -> np.ndarray:
        m, centre = matrix(strength), np.array([47.5, 47.5, 45.0])
        return ndimage.affine_transform(volume, m[:3, :3], centre - m[:3, :3] @ centre + m[:3, 3], order=1)

    return of_volumes(change)


def _turn(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])


def _smooth_noise(symmetric: bool) -> Spoil:
    def spoil(case: Case, fwhm_mm: float, rng: np.random.Generator) -> Case:
        volumes = np.zeros_like(case.volumes)
        mean = case.volumes.mean(axis=3)
        for t in range(volumes.shape[3]):
            field = ndimage.gaussian_filter(rng.standard_normal(MODEL_GRID_SHAPE), fwhm_mm / 2.3548 / 2)
            if symmetric:
                field = field + np.roll(field[::-1], 1, axis=0)
            volumes[..., t] = mean * (1 + 0.01 * field / field.std()) * case.mask
        return replace(case, volumes=volumes)

    return spoil


def _parcels(case: Case, size_mm: float, rng: np.random.Generator) -> Case:
    """Replace the voxels of each block by their mean."""
    places = np.argwhere(case.mask) // int(size_mm / 2)
    label = np.unique(places, axis=0, return_inverse=True)[1].ravel()
    counts = np.bincount(label)
    volumes = np.zeros_like(case.volumes)
    for t in range(volumes.shape[3]):
        volumes[..., t][case.mask] = (np.bincount(label, case.volumes[..., t][case.mask]) / counts)[label]
    return replace(case, volumes=volumes)


def _with_tr(case: Case, factor: float, rng: np.random.Generator) -> Case:
    return replace(case, tr=case.tr * factor)


def _water(case: Case, radius_mm: float, rng: np.random.Generator) -> Case:
    distance = np.linalg.norm((np.indices(MODEL_GRID_SHAPE).T - [47.5, 47.5, 45.0]).T * 2, axis=0)
    mask = distance < radius_mm
    volumes = 1000 * mask[..., None] * (1 + 0.01 * rng.standard_normal((*MODEL_GRID_SHAPE, case.volumes.shape[3])))
    return replace(case, volumes=volumes.astype(np.float32), mask=mask)


def _uniform(values: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    """CT-like: the same value everywhere in the brain."""
    return _noise(np.full_like(values, 1040.0), percent, rng)


def _inverted(values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Another contrast: the mean image inverted (T1w-like), with noise."""
    mean = values.mean(axis=0)
    other = (1 - share) * mean + share * (mean.max() * 1.1 - mean)
    return _noise(np.repeat(other[None], len(values), axis=0), 1.0, rng)


def _empty(case: Case, value: float, rng: np.random.Generator) -> Case:
    return replace(case, volumes=np.full_like(case.volumes, value) * case.mask[..., None])


IMPOSTORS: dict[str, tuple[Spoil, tuple[float, float, float]]] = {
    "white noise (%)": (of_voxels(_noise), (0.5, 1, 3)),
    "random walks (%)": (of_voxels(_walk), (0.5, 1, 3)),
    "1/f noise (%)": (of_voxels(_pink), (0.5, 1, 3)),
    "random phases": (of_voxels(_own_phases), (1, 1, 1)),
    "smooth noise (mm)": (_smooth_noise(False), (6, 12, 24)),
    "smooth symmetric noise (mm)": (_smooth_noise(True), (6, 12, 24)),
    "voxels permuted (share)": (of_voxels(_permute), (0.8, 0.9, 1)),
    "voxels reversed (share)": (of_voxels(_reverse), (0.8, 0.9, 1)),
    "volumes shuffled (blocks)": (of_voxels(_shuffle), (1, 1, 2)),
    "global sinusoid (%)": (of_voxels(_sinusoid), (1, 3, 10)),
    "drift only (%)": (of_voxels(_drift), (1, 3, 10)),
    "one volume repeated (noise %)": (of_voxels(_still), (0, 0.02, 0.2)),
    "empty": (_empty, (0, 1, 1000)),
    "water phantom (radius mm)": (_water, (50, 70, 85)),
    "CT-like (noise %)": (of_voxels(_uniform), (0.5, 1, 3)),
    "inverted contrast": (of_voxels(_inverted), (0.6, 0.8, 1)),
    "diffusion (b)": (of_voxels(_diffusion), (500, 1000, 3000)),
    "spin labelling (%)": (of_voxels(_alternate), (0.5, 1, 2)),
    "contrast bolus (%)": (of_voxels(_bolus), (10, 30, 60)),
    "mirrored": (of_volumes(lambda v, _: np.roll(v[::-1], 1, axis=0)), (1, 1, 1)),
    "upside down": (of_volumes(lambda v, _: v[:, :, ::-1]), (1, 1, 1)),
    "shifted (mm)": (_resampled(lambda mm: np.array([[1, 0, 0, 0], [0, 1, 0, mm / 2], [0, 0, 1, 0]])), (10, 20, 40)),
    "rotated (degrees)": (_resampled(_turn), (20, 45, 90)),
    "small brain (size)": (_resampled(lambda size: np.diag([1 / size, 1 / size, 1 / size, 1])), (0.3, 0.5, 0.7)),
    "TR (factor)": (_with_tr, (0.2, 3, 10)),
    "smoothed (mm)": (of_volumes(_smooth), (15, 20, 30)),
    "z scores (scale)": (of_voxels(_z_scored), (1, 10, 100)),
    "low-pass filter (share of Nyquist)": (of_voxels(_low_pass), (0.4, 0.2, 0.1)),
    "parcellated (mm)": (_parcels, (12, 18, 24)),
    "global signal removed (share)": (of_voxels(_without_global), (1, 1, 1)),
}
"""Impostors: how they are made, and three strengths."""
MAY_PASS: dict[str, tuple[Spoil, tuple[float, float, float]]] = {
    "time reversed": (of_voxels(lambda values, _, __: values[::-1]), (1, 1, 1)),
    "principal components kept (share)": (of_voxels(_components), (0.9, 0.7, 0.5)),
}
"""Changes that keep the signal of a brain; they are listed, and not counted."""


OF_THE_ADAPTER = ("origin", "duration", "embedding", "clips", "signal", "certainty")
"""Checks that compare a scan with the cohort of the demonstration adapter."""


def of_series(series: GridSeries, sidecar: dict[str, object]) -> Case:
    """Return a series on the model grid as volumes."""
    volumes = np.zeros((*MODEL_GRID_SHAPE, series.n_vols), np.float32)
    volumes[series.mask] = np.asarray(series.values).T
    return Case(volumes, series.mask, series.tr, sidecar)


def real_cases(folders: list[Path]) -> Iterator[tuple[str, Case]]:
    """Read preprocessed series of real scans in the model's space."""
    for folder in folders:
        for path in sorted(folder.glob(f"sub-*/**/*_space-{MODEL_SPACE}*_bold.nii.gz")):
            meta = json.loads(path.with_suffix("").with_suffix(".json").read_text())
            mask = nib.load(path.with_name(path.name.replace("desc-preproc_bold", "desc-brain_mask")))
            with tempfile.TemporaryDirectory() as scratch:
                series = series_from_image(nib.load(path), scratch, meta["RepetitionTime"], mask)
                yield path.name.split("_space")[0], of_series(series, {})


def write(case: Case, folder: Path) -> Path:
    """Write a case as derivatives of fMRIPrep; return the dataset."""
    shutil.rmtree(folder, ignore_errors=True)
    func = folder / "sub-01" / "func"
    func.mkdir(parents=True)
    described = {"Name": "fMRIPrep", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}
    (folder / "dataset_description.json").write_text(
        json.dumps(described | {"GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.0"}]})
    )
    stem = f"sub-01_task-rest_space-{MODEL_SPACE}_res-2"
    image = nib.Nifti1Image(case.volumes, MODEL_GRID_AFFINE)
    image.header.set_zooms((2, 2, 2, case.tr))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, func / f"{stem}_desc-preproc_bold.nii.gz")
    mask = nib.Nifti1Image(case.mask.astype(np.uint8), MODEL_GRID_AFFINE)
    nib.save(mask, func / f"{stem}_desc-brain_mask.nii.gz")
    content = {"RepetitionTime": case.tr, "SkullStripped": False, **case.sidecar}
    (func / f"{stem}_desc-preproc_bold.json").write_text(json.dumps(content))
    return folder


def ask(case: Case, folder: Path) -> dict[str, str]:
    """Run the command on a case, and return the verdicts, the checks that did not pass, and the answer."""
    dataset = write(case, folder / "dataset")
    out, work = folder / "out", folder / "work"
    for path in (out, work):
        shutil.rmtree(path, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "bids_app.cli.neurostorm",
        str(dataset),
        str(out),
        "participant",
        "--model",
        "demo",
    ]
    done = subprocess.run([*command, "-w", str(work), "--nprocs", "1"], capture_output=True, text=True, check=False)
    found = next(out.glob("sub-*/**/*demostate_predictions.json"), None)
    if found is None:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or [
            f"exit code {done.returncode}"
        ]
        return {"verdict": "error", "checks": lines[0][-160:], "answer": "", "scan": "error"}
    verdict = json.loads(found.read_text())["Verdict"]
    checks = [check["Check"] for check in verdict["Checks"] if check["Level"] != "pass"]
    scan = json.loads(next(out.glob("sub-*/**/*_embeddings.json")).read_text())["Verdict"]["Level"]
    rows = list(csv.DictReader(found.with_suffix(".tsv").read_text().splitlines(), delimiter="\t"))
    answer = rows[0].get("label", "")
    return {"verdict": verdict["Level"], "checks": " ".join(checks), "answer": answer, "scan": scan}


def ask_signal(case: Case) -> dict[str, str]:
    """Judge a case by its signal alone."""
    series = GridSeries(case.volumes[case.mask].T.copy(), case.mask, case.tr)
    verdict = judge_scan(measure_signal(series))
    checks = [check.name for check in verdict.checks if check.level != "pass"]
    return {"verdict": verdict.level, "checks": " ".join(checks), "answer": "", "scan": verdict.level}


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, str, str, Callable[[], Case]]]:
    """Yield base, kind, strength and the case for all scans to be judged."""
    bases: list[tuple[str, Callable[[], Case]]] = []
    if not arguments.real_only:
        bases.append(("simulated", partial(simulate, "rest", "base")))
    bases += [(name, partial(as_given, case)) for name, case in real_cases(arguments.base)]
    for number in range(0 if arguments.real_only else arguments.good):
        yield f"simulated-{number}", "good", "", partial(simulate, STATES[number % len(STATES)], number)
    for base, make in bases:
        yield base, "good", "", make
        for number in range(3):
            for kind, (spoil, strengths) in {**IMPOSTORS, **MAY_PASS}.items():
                strength = strengths[number]
                yield base, kind, f"{strength:g}/{number}", partial(spoiled, make, spoil, strength, number)


@lru_cache(maxsize=1)
def simulate(state: str, key: int | str) -> Case:
    """Simulate a scan; the same key gives the same scan."""
    return of_series(simulated_series(state, SEED, "impostors", key), SIMULATED)


def as_given(case: Case) -> Case:
    """Return the case itself."""
    return case


def spoiled(make: Callable[[], Case], spoil: Spoil, strength: float, number: int) -> Case:
    """Make a scan and spoil it."""
    return spoil(make(), strength, np.random.default_rng([SEED, number]))


def main() -> int:
    """Judge all cases and print the tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--base", type=Path, action="append", default=[], help="derivatives of real scans")
    p.add_argument("--real-only", action="store_true", help="only scans of --base")
    p.add_argument("--good", type=int, default=20, help="unspoiled simulated scans")
    p.add_argument("--only", default="", help="only kinds that contain this text")
    p.add_argument("--signal-only", action="store_true", help="only the checks of the signal")
    p.add_argument("--verdicts", action="store_true", help="only the verdicts in this output folder")
    arguments = p.parse_args()
    if arguments.verdicts:
        show_verdicts(arguments.folder)
        return 0
    arguments.folder.mkdir(parents=True, exist_ok=True)
    table = arguments.folder / "impostors.csv"
    columns = ("base", "kind", "strength", "verdict", "checks", "answer", "scan")
    known = list(csv.DictReader(table.open())) if table.is_file() else []
    done = {(row["base"], row["kind"], row["strength"]) for row in known}
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if not known:
            writer.writeheader()
        for base, kind, strength, make in cases(arguments):
            if (base, kind, strength) in done or arguments.only not in kind:
                continue
            row = {"base": base, "kind": kind, "strength": strength}
            row |= ask_signal(make()) if arguments.signal_only else ask(make(), arguments.folder)
            writer.writerow(row)
            file.flush()
            known.append(row)
            print(row, file=sys.stderr, flush=True)
    show(known)
    return 0


def show(rows: list[dict[str, str]]) -> None:
    """Print a line for each kind of impostor, and the good scans: of simulated scans, then of real ones."""
    for title, of_base in (("Simulated", is_simulated), ("Real", lambda row: not is_simulated(row))):
        own = [row for row in rows if of_base(row)]
        if own:
            print(f"\n{title} scans\n")
            show_base(own)


def show_verdicts(out_dir: Path) -> None:
    """Print how many predictions in an output folder passed, and the reasons of all others."""
    verdicts = {
        path.name.partition("_desc-")[0]: PredictionSidecar.read(path).verdict
        for path in sorted(out_dir.rglob("*_predictions.json"))
    }
    others = {name: verdict for name, verdict in verdicts.items() if verdict is not None and verdict.level != PASS}
    print(f"{len(verdicts) - len(others)} of {len(verdicts)} runs passed.\n")
    print("| run | verdict | reasons |\n| --- | --- | --- |")
    for name, verdict in others.items():
        print(f"| {name} | {verdict.level} | {' '.join(check.message or '' for check in verdict.failed)} |")


def is_simulated(row: dict[str, str]) -> bool:
    """Tell whether a case is made of a simulated scan."""
    return row["base"].startswith("simulated")


def show_base(rows: list[dict[str, str]]) -> None:
    """Print the table of simulated or of real scans.

    The adapter refuses all real scans by their origin, so of these the verdict on the scan is counted, in which
    the adapter has no part.
    """
    column = "verdict" if is_simulated(rows[0]) else "scan"
    print("| impostor | cases | refused | warned of | passed | checks |\n| --- | --- | --- | --- | --- | --- |")
    for kind in (*IMPOSTORS, *MAY_PASS, "good"):
        own = [row for row in rows if row["kind"] == kind]
        counts = [sum(row[column] in levels for row in own) for levels in (("refuse", "error"), ("warn",), ("pass",))]
        names: dict[str, int] = {}
        for row in own:
            for name in row["checks"].split() if row["verdict"] != "error" else [row["checks"][:40]]:
                if column == "verdict" or name not in OF_THE_ADAPTER:
                    names[name] = names.get(name, 0) + 1
        said = ", ".join(f"{name} {n}" for name, n in sorted(names.items(), key=lambda item: -item[1])[:6])
        print(f"| {kind} | {len(own)} | {' | '.join(map(str, counts))} | {said} |")
    counted = [row for row in rows if row["kind"] in IMPOSTORS]
    noticed = sum(row[column] != "pass" for row in counted)
    good = [row for row in rows if row["kind"] == "good"]
    false = sum(row[column] != "pass" for row in good)
    print(f"\nImpostors noticed: {noticed} of {len(counted)}. Good scans not passed: {false} of {len(good)}.")


if __name__ == "__main__":
    sys.exit(main())
