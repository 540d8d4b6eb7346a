"""What preprocessing costs: seconds and peak memory of each step, and beside a step the packages that do the same.

    python benchmarks/preprocess.py                                  # a simulated head, 60 and 200 volumes of 64x64x36
    python benchmarks/preprocess.py --volumes 100 300 1200 --no-peers
    python benchmarks/preprocess.py --bold sub-01_task-x_bold.nii.gz --t1w sub-01_T1w.nii.gz   # a scan of yours

Each step runs in a process of its own, whose peak memory is shown; the row "imports" is one that does nothing else.
Peers get the same input in the same run. Motion is compared with the simulated truth.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE, VOXEL_MM, TR = (64, 64, 36), (3.3, 3.3, 4.0), 2.0
PEER_VOLUMES = 20
"""Peers of motion correction are timed on so many volumes, and their time is scaled."""


@dataclass(frozen=True)
class Cost:
    """What a call took, and what it returned."""

    seconds: float
    megabytes: float
    value: Any


def measure(function: Callable[..., Any], *arguments: Any, **options: Any) -> Cost:
    """Run a function in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_timed, function, arguments, options).result()


def _timed(function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Cost:
    import ants  # noqa: F401  (imports are not a step's cost)
    import torch  # noqa: F401

    from bids_app.preprocess import run  # noqa: F401

    started = time.perf_counter()
    value = function(*arguments, **options)
    return Cost(time.perf_counter() - started, _peak_mb(), value)


def _peak_mb() -> float:
    """Most memory that this process was resident in, MB; `getrusage` would count its parent's as well."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def simulate(folder: Path, n_volumes: int, seed: int = 0) -> tuple[Path, Path, np.ndarray]:
    """A head in motion as BOLD, its T1w, and the motion (T, 4, 4): boldref point to point of volume t."""
    from scipy import ndimage

    from bids_app.catalog.templates import load_template
    from bids_app.preprocess.coregister import epi_like
    from bids_app.preprocess.images import save_image
    from bids_app.preprocess.transforms import draw, linear, rigid

    template = load_template()
    affine = np.diag([*VOXEL_MM, 1.0])
    affine[:3, 3] = (-104, -124, -66)
    still = draw(ndimage.gaussian_filter(epi_like(template) * 1000, 0.6), template.affine, SHAPE, affine)
    draws = np.random.default_rng(seed)
    walk = draws.normal(size=(n_volumes, 6)).cumsum(axis=0)
    walk = (walk - walk[n_volumes // 2]) / np.abs(walk).max(axis=0) * ([np.radians(2.0)] * 3 + [2.5] * 3)
    motion = np.stack([rigid(w[:3], w[3:], (0, -20, 10)) for w in walk])
    shape = (*SHAPE, n_volumes)
    bold = np.lib.format.open_memmap(folder / f"series{n_volumes}.npy", "w+", np.int16, shape, fortran_order=True)
    for t, pose in enumerate(motion):
        volume = draw(still, affine, SHAPE, affine, linear(np.linalg.inv(pose)), order=3)
        bold[..., t] = np.round(volume + draws.normal(0, 10, SHAPE))
    path = save_image(folder / f"sub-01_run-{n_volumes}_bold.nii.gz", bold, affine, tr=TR)
    fine = np.diag([1.0, 1.0, 1.0, 1.0])
    fine[:3, 3] = (-90, -126, -72)
    t1w = draw(template.t1w, template.affine, (181, 217, 181), fine)
    return path, save_image(folder / "sub-01_T1w.nii.gz", t1w, fine), motion


def motion_error_mm(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Mean and largest error over a brain's volume, after removing what is common to all volumes."""
    from bids_app.preprocess.transforms import apply_matrix

    between = np.mean([np.linalg.inv(a) @ b for a, b in zip(true, found, strict=True)], axis=0)
    left, _, right = np.linalg.svd(between[:3, :3])
    between[:3, :3] = left @ right
    axes = np.linspace(-1, 1, 9)
    ball = np.stack(np.meshgrid(axes, axes, axes), axis=-1).reshape(-1, 3)
    points = ball[np.linalg.norm(ball, axis=1) <= 1] * (65, 80, 60) + (0, -20, 10)
    errors = [
        np.linalg.norm(apply_matrix(a @ between, points) - apply_matrix(b, points), axis=1).mean()
        for a, b in zip(true, found, strict=True)
    ]
    return float(np.mean(errors)), float(np.max(errors))


def simpleitk_motion(bold: Path) -> np.ndarray:
    """Rigid, squared differences, three levels, each volume to the middle one."""
    import SimpleITK as sitk

    series = sitk.ReadImage(str(bold), sitk.sitkFloat32)
    n_volumes = series.GetSize()[3]
    volumes = [sitk.Extract(series, [*series.GetSize()[:3], 0], [0, 0, 0, t]) for t in range(n_volumes)]
    reference = volumes[n_volumes // 2]
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(0.5, 1e-3, 50)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([3, 1.7])
    centre = [-v for v in (0.0, -20.0)] + [10.0]
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    found = []
    for volume in volumes:
        start = sitk.Euler3DTransform()
        start.SetCenter(centre)
        method.SetInitialTransform(start, inPlace=False)
        transform = method.Execute(reference, volume)
        matrix = np.eye(4)
        matrix[:3, 3] = transform.TransformPoint((0, 0, 0))
        for axis in range(3):
            unit = [0.0, 0.0, 0.0]
            unit[axis] = 1.0
            matrix[:3, axis] = np.array(transform.TransformPoint(unit)) - matrix[:3, 3]
        found.append(flip @ matrix @ flip)
    return np.stack(found)


def antspyx_motion(bold: Path) -> np.ndarray:
    """`ants.motion_correction` with its defaults for BOLD."""
    import ants
    from scipy.io import loadmat

    series = ants.image_read(str(bold))
    reference = ants.slice_image(series, axis=3, idx=series.shape[3] // 2)
    result = ants.motion_correction(series, fixed=reference, type_of_transform="BOLDRigid")
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    found = []
    for files in result["motion_parameters"]:
        content = loadmat(files[0])
        values, centre = content["AffineTransform_float_3_3"].ravel(), content["fixed"].ravel()
        matrix = np.eye(4)
        matrix[:3, :3] = values[:9].reshape(3, 3)
        matrix[:3, 3] = values[9:] + centre - matrix[:3, :3] @ centre
        found.append(flip @ matrix @ flip)
    return np.stack(found)


def antspyx_resampling(bold: Path, n_volumes: int) -> None:
    """Linear resampling of volumes onto the 2 mm grid by ANTs, with an affine only."""
    import ants

    series = ants.image_read(str(bold))
    target = ants.make_image((91, 109, 91), spacing=(2, 2, 2), origin=(-90, -90, -72))
    for t in range(n_volumes):
        volume = ants.slice_image(series, axis=3, idx=t)
        ants.resample_image_to_target(volume, target, interp_type="linear")


def first_volumes(bold: Path, n_volumes: int, folder: Path) -> Path:
    """A file with a run's first volumes."""
    image = nib.nifti1.load(bold)
    path = folder / f"first{n_volumes}_{bold.name}"
    nib.nifti1.save(image.slicer[..., :n_volumes], path)
    return path


def steps_of(
    bold: Path, tr: float, t1w: Path | None, folder: Path, threads: int, anatomy: Any = None
) -> tuple[dict[str, Cost], Any]:
    """Run all steps, each in its own process; what each cost, and the run's anatomy."""
    from bids_app.preprocess.anatomy import normalise_t1w, prepare_t1w
    from bids_app.preprocess.confounds import measure_confounds
    from bids_app.preprocess.coregister import coregister, mask_boldref, normalise_boldref
    from bids_app.preprocess.epi import prepare_bold
    from bids_app.preprocess.motion import correct_motion
    from bids_app.preprocess.resample import grid_series
    from bids_app.preprocess.run import collect_run

    costs: dict[str, Cost] = {"imports": measure(int)}

    def step(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        out_dir = folder / name.replace(" ", "_")
        out_dir.mkdir(parents=True, exist_ok=True)
        costs[name] = measure(function, *arguments, out_dir=out_dir, **options)
        return costs[name].value

    series = step("examine", prepare_bold, bold, {"RepetitionTime": tr})
    motion = step("motion", correct_motion, series, threads=threads)
    reference = step("EPI mask", mask_boldref, bold, motion.boldref)
    if t1w is not None and anatomy is None:
        prepared = step("T1w bias field", prepare_t1w, t1w)
        anatomy = step("T1w to template", normalise_t1w, prepared)
    if anatomy is not None:
        alignment = step("BOLD to T1w", coregister, reference, anatomy)
    else:
        alignment = step("BOLD to template", normalise_boldref, reference)
    confounds = step("confounds", measure_confounds, series, motion, alignment, threads=threads)
    run = collect_run(series, motion, reference, alignment, confounds, anatomy)
    step("model grid", grid_series, run, threads=threads)
    return costs, anatomy


def show(title: str, costs: dict[str, Cost]) -> None:
    """Print one table."""
    print(f"\n{title}\n{'step':20s} {'s':>8s} {'MB':>8s}")
    for name, cost in costs.items():
        print(f"{name:20s} {cost.seconds:8.1f} {cost.megabytes:8.0f}")
    total, largest = sum(c.seconds for c in costs.values()), max(c.megabytes for c in costs.values())
    print(f"{'sum, largest':20s} {total:8.1f} {largest:8.0f}")


def compare_motion(bold: Path, ours: Cost, true: np.ndarray | None, folder: Path) -> None:
    """Print our motion correction beside its peers."""
    n_volumes = nib.nifti1.load(bold).shape[3]
    few = first_volumes(bold, min(PEER_VOLUMES, n_volumes), folder)
    rows = [("ours", ours.seconds, np.load(ours.value.motion), true)]
    for name, peer in (("SimpleITK", simpleitk_motion), ("antspyx", antspyx_motion)):
        try:
            cost = measure(peer, few)
        except ImportError as missing:
            print(f"{name}: not here ({missing})")
            continue
        n_done = len(cost.value)
        rows.append((name, cost.seconds * n_volumes / n_done, cost.value, None if true is None else true[:n_done]))
    print(f"\nmotion of {n_volumes} volumes   {'s':>8s} {'ratio':>7s}   error mm, mean / largest")
    for name, seconds, found, truth in rows:
        error = "" if truth is None else "{:.3f} / {:.3f}".format(*motion_error_mm(found, truth))
        print(f"{name:24s} {seconds:8.1f} {seconds / rows[0][1]:7.1f}   {error}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, nargs="+", default=[60, 200], help="lengths of simulated runs")
    parser.add_argument("--bold", type=Path, help="a BOLD file instead of simulated ones")
    parser.add_argument("--t1w", type=Path, help="its T1w")
    parser.add_argument("--tr", type=float, help="its repetition time, s; default: its sidecar's")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-peers", action="store_true", help="leave other packages out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs: list[tuple[Path, float, Path | None, np.ndarray | None]] = []
        if arguments.bold:
            sidecar = Path(str(arguments.bold).split(".nii")[0] + ".json")
            tr = arguments.tr or json.loads(sidecar.read_text())["RepetitionTime"]
            inputs.append((arguments.bold, tr, arguments.t1w, None))
        else:
            for n_volumes in arguments.volumes:
                series, head, motion = simulate(folder, n_volumes)
                inputs.append((series, TR, head, motion))
        anatomy = None
        for bold, tr, t1w, true in inputs:
            costs, anatomy = steps_of(bold, tr, t1w, folder / bold.name.split(".")[0], arguments.threads, anatomy)
            shape = " x ".join(map(str, nib.nifti1.load(bold).shape))
            show(f"{bold.name}: {shape}, {arguments.threads} threads", costs)
            if not arguments.no_peers:
                compare_motion(bold, costs["motion"], true, folder)
                n_peer = min(PEER_VOLUMES, nib.nifti1.load(bold).shape[3])
                peer = measure(antspyx_resampling, bold, n_peer).seconds * nib.nifti1.load(bold).shape[3] / n_peer
                ours = costs["model grid"].seconds
                print(
                    f"\nonto 2 mm: ours (cubic, motion and warps) {ours:.1f} s, ANTs (linear, affine only) {peer:.1f} s"
                )


if __name__ == "__main__":
    main()
