"""Simulated images compared with real ones: noise, smoothness, spectrum, histogram, bias, motion and ghosts.

    python benchmarks/phantom.py                            # the phantom's kinds, simulated first
    python benchmarks/phantom.py --dataset FOLDER ...       # and any folders that contain raw BIDS datasets
    python benchmarks/phantom.py --kinds adult flash --size small
    python benchmarks/phantom.py --no-phantom --dataset FOLDER

T1w figures are from a ball of 50 mm radius in the brain, found from the top of the head, so no brain mask is needed.
BOLD figures are from the EPI mask and the first 100 volumes after the first four. The lists give the range of the real
images and name the phantom's figures that are farther outside it than a third of its width.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage, stats
from skimage.filters import threshold_multiotsu

from bids_app.phantom.dataset import DatasetPlan, write_dataset
from bids_app.phantom.kinds import KINDS
from bids_app.preprocess.anatomical import bias_field
from bids_app.preprocess.hmc import correct_motion, framewise_displacement
from bids_app.preprocess.io.images import examine_bold
from bids_app.preprocess.masking import brain_mask, head_mask
from bids_app.preprocess.registration.ants import Image, isotropic
from bids_app.preprocess.registration.t1w_to_template import HEAD_MM, top_of_head
from bids_app.preprocess.registration.transforms import fsl_parameters, grid_points

BALL_MM = 50.0
BELOW_TOP_MM = 80.0
N_VOLUMES, N_FIRST = 100, 4
T1W_COLUMNS = ("bias", "GM/WM", "CSF/WM", "noise/WM", "head p99/WM", "kurtosis", "FWHM mm", "slope", "low share")
BOLD_COLUMNS = ("tSNR", "FWHM mm", "bias", "ghost %", "FD mm", "FD max", "low share", "noise air %")


def describe_t1w(path: Path) -> dict[str, float]:
    """Compute the figures of a T1w image, keys `T1W_COLUMNS`."""
    image = nib.funcs.as_closest_canonical(nib.nifti1.Nifti1Image.from_filename(path))
    data = np.asarray(image.dataobj, dtype=np.float32)
    native = Image(data - min(float(data.min()), 0.0), image.affine)
    coarse = isotropic(native, 2.0, order=1)
    head = head_mask(coarse.data, coarse.affine)
    points = grid_points(coarse.data.shape, coarse.affine)
    inside = points[head.ravel()]
    top = top_of_head(inside)
    upper = inside[inside[:, 2] > top - 130.0]
    centre = np.array([upper[:, 0].mean(), upper[:, 1].mean(), top - BELOW_TOP_MM])

    def ball(of: Image) -> np.ndarray:
        distance = np.linalg.norm(grid_points(of.data.shape, of.affine) - centre, axis=1)
        return distance.reshape(of.data.shape) < BALL_MM

    in_ball = ball(coarse)
    near = head & (points[:, 2].reshape(head.shape) > top - HEAD_MM)
    with tempfile.TemporaryDirectory() as folder:
        bias = bias_field(coarse, near, Path(folder))
    corrected = coarse.data / bias
    values = corrected[in_ball]
    low, high = threshold_multiotsu(np.clip(values, *np.percentile(values, [0.5, 99.5])), classes=3)
    csf, gm, wm = (
        float(np.median(values[part])) for part in (values < low, (values >= low) & (values < high), values >= high)
    )
    fine = ball(native)
    white = fine & (native.data > 0.9 * wm * float(np.median(bias[in_ball])))
    spacing = nib.affines.voxel_sizes(image.affine)
    return {
        "bias": float(np.divide(*np.percentile(bias[in_ball], [98, 2]))),
        "GM/WM": gm / wm,
        "CSF/WM": csf / wm,
        "noise/WM": high_frequency_noise(native.data, white) / wm,
        "head p99/WM": float(np.percentile(coarse.data[near], 99)) / wm,
        "kurtosis": float(stats.kurtosis(coarse.data[near])),
        "FWHM mm": smoothness(native.data - ndimage.gaussian_filter(native.data, 12.0 / spacing), fine, spacing),
        **spectrum(native, centre),
    }


def high_frequency_noise(data: np.ndarray, where: np.ndarray) -> float:
    """Estimate the standard deviation of noise from differences of neighbours along the first axis, robustly."""
    both = where[2:] & where[:-2] & where[1:-1]
    second = data[2:][both] - 2 * data[1:-1][both] + data[:-2][both]
    return float(1.4826 * np.median(np.abs(second)) / np.sqrt(6))


def smoothness(residual: np.ndarray, where: np.ndarray, spacing: np.ndarray) -> float:
    """Estimate the FWHM of a field (Forman et al. 1995), the geometric mean of the axes, mm."""
    widths = []
    variance = float(residual[where].var())
    for axis, size in enumerate(spacing):
        first, second = (np.moveaxis(a, axis, 0) for a in (residual, where))
        both = second[1:] & second[:-1]
        ratio = 1 - float((first[1:][both] - first[:-1][both]).var()) / (2 * variance)
        widths.append(size * np.sqrt(-2 * np.log(2) / np.log(ratio)) if 0 < ratio < 1 else size * 0.7)
    return float(np.exp(np.mean(np.log(widths))))


def spectrum(image: Image, centre: np.ndarray) -> dict[str, float]:
    """Return the slope of the log power from 1/40 to 1/6 cycles/mm, and the share of power below 1/20 cycles/mm."""
    cube = isotropic(image, 2.0, order=1)
    at = np.round(np.linalg.inv(cube.affine)[:3] @ np.append(centre, 1)).astype(int)
    low = np.maximum(at - 24, 0)
    box = cube.data[low[0] : low[0] + 48, low[1] : low[1] + 48, low[2] : low[2] + 48]
    windows = [np.hanning(n) for n in box.shape]
    weighted = (box - box.mean()) * windows[0][:, None, None] * windows[1][:, None] * windows[2]
    power = np.abs(np.fft.fftn(weighted)) ** 2
    f = np.sqrt(sum(np.square(a) for a in np.meshgrid(*(np.fft.fftfreq(n, 2.0) for n in box.shape), indexing="ij")))
    edges = np.geomspace(1 / 40, 1 / 6, 9)
    radial = [power[(f >= a) & (f < b)].mean() for a, b in itertools.pairwise(edges)]
    slope = np.polyfit(np.log(np.sqrt(edges[:-1] * edges[1:])), np.log(radial), 1)[0]
    return {"slope": float(slope), "low share": float(power[f < 1 / 20].sum() / power.sum())}


def describe_bold(path: Path) -> dict[str, float]:
    """Compute the figures of a BOLD run, keys `BOLD_COLUMNS`."""
    image = nib.nifti1.Nifti1Image.from_filename(path)
    sidecar = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
    metadata = json.loads(sidecar.read_text()) if sidecar.is_file() else {}
    n = min(image.shape[3] - N_FIRST, N_VOLUMES)
    data = np.asarray(image.dataobj[..., N_FIRST : N_FIRST + n], dtype=np.float32)
    mean = data.mean(axis=-1)
    where = brain_mask(mean, image.affine)
    core = ndimage.binary_erosion(where, iterations=2)
    trend = np.vander(np.linspace(-1, 1, n), 3)
    residual = data - (data @ np.linalg.pinv(trend).T @ trend.T).astype(np.float32)
    sd = residual.std(axis=-1)
    spacing = nib.affines.voxel_sizes(image.affine)
    series = residual[core].T - residual[core].mean(axis=0)[None].T.mean()
    power = np.abs(np.fft.rfft(series, axis=0)) ** 2
    hertz = np.fft.rfftfreq(n, float(image.header.get_zooms()[3]))
    level = ndimage.gaussian_filter(np.where(where, mean, 0), 12.0 / spacing) / np.maximum(
        ndimage.gaussian_filter(where.astype(np.float32), 12.0 / spacing), 1e-3
    )
    with tempfile.TemporaryDirectory() as scratch:
        motion = correct_motion(examine_bold(path, metadata, Path(scratch)), Path(scratch))
        fd = framewise_displacement(fsl_parameters(np.load(motion.motion), image.shape[:3], image.affine))[1:]
    signal = float(np.median(mean[where]))
    return {
        "tSNR": float(np.median(mean[core] / np.maximum(sd[core], 1e-6))),
        "FWHM mm": float(
            np.median([smoothness(residual[..., t] / np.maximum(sd, 1e-3), core, spacing) for t in range(0, n, 10)])
        ),
        "bias": float(np.divide(*np.percentile(level[where], [98, 2]))),
        "FD mm": float(fd.mean()),
        "FD max": float(fd.max()),
        "low share": float(power[hertz < 0.1].sum() / power.sum()),
        **ghost(mean, sd, where, image.affine, metadata, signal),
    }


def ghost(
    mean: np.ndarray, sd: np.ndarray, where: np.ndarray, affine: np.ndarray, metadata: dict[str, str], signal: float
) -> dict[str, float]:
    """Return the ghost above the background and the temporal noise of the background, % of the brain's signal."""
    codes = nib.orientations.aff2axcodes(affine)
    stated = str(metadata.get("PhaseEncodingDirection", ""))[:1]
    axis = "ijk".index(stated) if stated else next(i for i, code in enumerate(codes) if code in "AP")
    body = ndimage.binary_dilation(mean > 0.25 * signal, iterations=3)
    shifted = np.roll(where, where.shape[axis] // 2, axis=axis) & ~body
    quiet = ~np.roll(body, where.shape[axis] // 2, axis=axis) & ~body
    if shifted.sum() < 50 or quiet.sum() < 50:
        return {"ghost %": float("nan"), "noise air %": float("nan")}
    return {
        "ghost %": 100 * float(mean[shifted].mean() - mean[quiet].mean()) / signal,
        "noise air %": 100 * float(np.median(sd[quiet])) / signal,
    }


def print_table(title: str, columns: Sequence[str], rows: Iterable[tuple[str, dict[str, float]]]) -> None:
    """Print a Markdown table."""
    print(f"\n| {title} | " + " | ".join(columns) + " |")
    print("| --- " * (len(columns) + 1) + "|", flush=True)
    for name, row in rows:
        print(f"| {name} | " + " | ".join(f"{row[c]:.3g}" for c in columns) + " |", flush=True)


def compare(real: dict[str, dict[str, float]], phantom: dict[str, dict[str, float]], columns: Sequence[str]) -> None:
    """Print the range of the real images' figures, and the phantom's figures that lie beyond a third of it."""
    if not real or not phantom:
        return
    for column in columns:
        values = np.array([row[column] for row in real.values()])
        low, high = np.nanmin(values), np.nanmax(values)
        margin = (high - low) / 3
        outside = [f"{n} {r[column]:.3g}" for n, r in phantom.items() if not low - margin <= r[column] <= high + margin]
        print(f"- {column}: real {low:.3g} to {high:.3g}; outside: {', '.join(outside) or 'none'}")


def images_in(folder: Path, suffix: str) -> list[Path]:
    """Return the raw images of all BIDS datasets in a folder."""
    found = sorted(folder.rglob(f"sub-*_{suffix}.nii.gz"))
    return [path for path in found if "derivatives" not in path.relative_to(folder).parts]


def main() -> None:
    """Print one table of T1w images and one of BOLD runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="*", type=Path, default=[], help="folders with real BIDS datasets")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--volumes", type=int)
    parser.add_argument("--no-phantom", action="store_true")
    parser.add_argument("--only", choices=("T1w", "bold"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        simulated = Path(scratch) / "phantom"
        if not arguments.no_phantom:
            plan = DatasetPlan(
                participants=len(arguments.kinds),
                kinds=tuple(arguments.kinds),
                states=("rest",),
                volumes=arguments.volumes,
                size=arguments.size,
            )
            write_dataset(simulated, plan)
        for suffix, columns, describe in (("T1w", T1W_COLUMNS, describe_t1w), ("bold", BOLD_COLUMNS, describe_bold)):
            if arguments.only not in (None, suffix):
                continue
            real: dict[str, dict[str, float]] = {}
            for folder in arguments.dataset:
                for path in images_in(folder, suffix):
                    real[f"{path.parents[2].name} {path.name.removesuffix(f'_{suffix}.nii.gz')}"] = describe(path)
            made = {
                f"phantom {kind}": describe(path)
                for kind, path in zip(arguments.kinds, images_in(simulated, suffix), strict=False)
            }
            print_table(suffix, columns, {**real, **made}.items())
            compare(real, made, columns)


if __name__ == "__main__":
    main()
