"""Accuracy of preprocessing on a simulated dataset: head motion, masks, registration to T1w and template.

    python benchmarks/accuracy.py                          # simulates four participants first
    python benchmarks/accuracy.py --dataset FOLDER         # a dataset of `neurostorm-phantom`
    python benchmarks/accuracy.py --routes direct
    python benchmarks/accuracy.py --fieldmaps              # distortion correction with each kind of fieldmap
    python benchmarks/accuracy.py --boundary               # BOLD to T1w with and without refinement
    python benchmarks/accuracy.py --t1w                    # T1w to template, compared with antspyx

The first run of each participant is preprocessed from its raw files by the app's own steps, with and without its T1w
image. Errors are in mm over the brain (head motion, BOLD to T1w) or over the template's grey matter (T1w to template,
whole chain).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import peers

from bids_app.bids.query import find_runs
from bids_app.catalog.templates import load_template
from bids_app.errors import NeurostormError
from bids_app.phantom.dataset import FIELDMAPS, DatasetPlan, Visit, write_dataset
from bids_app.phantom.protocol import anatomical_protocol_for
from bids_app.phantom.t1w import VARIANTS, simulate_t1w
from bids_app.phantom.tissues import TEMPLATE
from bids_app.phantom.truth import PointField
from bids_app.preprocess.anatomical import normalise_t1w, prepare_t1w
from bids_app.preprocess.hmc import MotionEstimate
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.preprocessed import PreprocessedRun
from bids_app.preprocess.registration.ants import Image, dice
from bids_app.preprocess.registration.bbr import SLOPE, Refinement, refine, white_matter_boundary
from bids_app.preprocess.registration.spaces import chain_between
from bids_app.preprocess.registration.transforms import (
    LPS,
    Chain,
    apply_matrix,
    grid_points,
    linear,
    resample_to,
    rigid,
)
from bids_app.settings import PreprocessSettings, QuerySettings
from bids_app.workflow.in_process import preprocess_in_process, run_in_process, steps_of
from bids_app.workflow.nodes import correct_distortion

ROUTES = ("t1w", "direct")
DISTORTION_COLUMNS = ("before", "maximum", "after", "removed %", "CPU s")
MAX_DISTORTION_MM = 8.0
T1W_COLUMNS = ("50%", "95%", "CPU s", "antspyx 50%", "antspyx 95%", "antspyx CPU")
BOUNDARY_COLUMNS = ("coreg", "gain %", "refined", "slope 0.5", "from 3mm off")
COLUMNS = ("motion mean", "motion max", "mask Dice", "EPI Dice", "T1w Dice", "coreg", "norm 50%", "norm 95%", "all 50%")


@dataclass(frozen=True)
class Truth:
    """True motion, mask and transforms of a simulated run, relative to the simulated boldref."""

    motion: np.ndarray
    brain: np.ndarray
    affine: np.ndarray
    boldref_to_t1w: np.ndarray
    template_to_t1w: PointField
    t1w_brain: Path

    @classmethod
    def of(cls, dataset: Path, bold: Path) -> Truth:
        """Read the truth of a run from the dataset's ``derivatives/truth``."""
        subject, stem = bold.name.split("_")[0], bold.name.removesuffix("_bold.nii.gz")
        func, anat = (dataset / "derivatives" / "truth" / subject / kind for kind in ("func", "anat"))
        mask = nib.nifti1.load(func / f"{stem}_desc-brain_mask.nii.gz")
        return cls(
            motion=np.load(func / f"{stem}_desc-motion_xfm.npy"),
            brain=np.asarray(mask.dataobj) > 0,
            affine=np.asarray(mask.affine),
            boldref_to_t1w=np.loadtxt(func / f"{stem}_from-boldref_to-T1w_mode-points_xfm.txt"),
            template_to_t1w=PointField.load(next(anat.glob("*_from-MNI*_to-T1w_mode-points_xfm.nii.gz"))),
            t1w_brain=next(anat.glob("*_desc-brain_mask.nii.gz")),
        )

    def boldref_offset(self, estimated: np.ndarray, n_dummy: int) -> np.ndarray:
        """Return the rigid transform from estimated to true boldref: the mean difference of motion (T, 4, 4)."""
        pairs = zip(self.motion[n_dummy:], estimated[n_dummy:], strict=True)
        matrix = np.mean([np.linalg.inv(true) @ ours for true, ours in pairs], axis=0)
        left, _, right = np.linalg.svd(matrix[:3, :3])
        matrix[:3, :3] = left @ right
        return matrix


def distance_mm(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the distances between points (N, 3)."""
    return np.linalg.norm(a - b, axis=1)


def errors_of(run: PreprocessedRun, truth: Truth) -> dict[str, float]:
    """Return the errors of a run in mm, and Dice coefficients; see `COLUMNS`."""
    estimated = np.load(run.motion) if run.motion else truth.motion
    offset = truth.boldref_offset(estimated, run.n_dummy)
    brain = grid_points(truth.brain.shape, truth.affine, truth.brain)[::10]
    poses = list(zip(truth.motion, estimated, strict=True))[run.n_dummy :]
    motion = [distance_mm(apply_matrix(a @ offset, brain), apply_matrix(b, brain)).mean() for a, b in poses]
    true_brain = truth.brain.astype(np.float32)
    expected = resample_to(true_brain, truth.affine, truth.brain.shape, truth.affine, linear(offset)) > 0.5
    template = load_template(run.template)
    grey = grid_points(template.gm.shape, template.affine, template.gm > 0.5)[::3]
    in_t1w = truth.template_to_t1w(chain_between(template.name, TEMPLATE)(grey))
    to_t1w = truth.boldref_to_t1w @ offset
    chain = Chain.load(run.chain) if run.chain else Chain()
    errors = {
        "motion mean": float(np.mean(motion)),
        "motion max": float(np.max(motion)),
        "mask Dice": dice(read_volume(run.brain_mask)[0] > 0.5, expected),
        "all 50%": float(np.median(distance_mm(chain(grey), apply_matrix(np.linalg.inv(to_t1w), in_t1w)))),
    }
    if run.epi_mask:
        errors["EPI Dice"] = dice(read_volume(run.epi_mask)[0] > 0.5, expected)
    if run.anatomy and run.coreg_file:
        mask, affine = read_volume(run.anatomy.mask)
        true_mask = resample_to(*read_volume(truth.t1w_brain), mask.shape, affine) > 0.5
        normalised = distance_mm(Chain.load(run.anatomy.chain)(grey), in_t1w)
        back = apply_matrix(read_itk_matrix(run.coreg_file), apply_matrix(to_t1w, brain))
        errors |= {
            "T1w Dice": dice(mask > 0.5, true_mask),
            "coreg": float(np.median(distance_mm(back, brain))),
            "norm 50%": float(np.median(normalised)),
            "norm 95%": float(np.percentile(normalised, 95)),
        }
    return errors


def boundary_errors(run: PreprocessedRun, truth: Truth) -> dict[str, float]:
    """Return the errors (mm) of BOLD to T1w before and after boundary-based refinement, which is always applied.

    See `BOUNDARY_COLUMNS`; the last refinement starts about 3 mm off.
    """
    anatomy = run.anatomy
    assert anatomy is not None
    assert run.coreg_file is not None
    assert run.epi_mask is not None
    tissues, affine = nib.nifti1.load(anatomy.tissues), read_volume(anatomy.mask)[1]
    boundary = white_matter_boundary(np.asarray(tissues.dataobj, dtype=np.float32) / 255, affine)
    boldref = Image(*read_volume(run.epi_mask.parent / "boldref_corrected.nii.gz"))
    to_t1w = truth.boldref_to_t1w @ truth.boldref_offset(np.load(str(run.motion)), run.n_dummy)
    brain = grid_points(truth.brain.shape, truth.affine, truth.brain)[::10]
    estimated = read_itk_matrix(run.coreg_file)
    displaced = estimated @ rigid(np.radians([1.5, -1.5, 1.5]), [1.5, -1.5, 1.5], boundary.points.mean(axis=0))

    def error(matrix: np.ndarray) -> float:
        return float(np.median(distance_mm(apply_matrix(matrix, apply_matrix(to_t1w, brain)), brain)))

    def refined(start: np.ndarray, slope: float = SLOPE) -> Refinement:
        result = refine(boundary, boldref, start, min_gain=0.0, slope=slope)
        assert result is not None
        return result

    default = refined(estimated)
    return {
        "coreg": error(estimated),
        "gain %": 100 * (1 - default.cost / default.cost_start),
        "refined": error(default.matrix),
        "slope 0.5": error(refined(estimated, 0.5).matrix),
        "from 3mm off": error(refined(displaced).matrix),
    }


def read_itk_matrix(path: Path) -> np.ndarray:
    """Return the matrix of an ITK text file, RAS mm."""
    line = next(line for line in path.read_text().splitlines() if line.startswith("Parameters:"))
    values = np.array(line.split()[1:], dtype=float)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = values[:9].reshape(3, 3), values[9:]
    return LPS @ matrix @ LPS


def show(rows: Iterable[tuple[str, dict[str, float]]], columns: Sequence[str] = COLUMNS) -> None:
    """Print one line per run as soon as it is available, then the mean of each column."""
    print(f"{'':16s}" + "".join(f"{name:>13s}" for name in columns))
    table = []
    for name, errors in rows:
        print(
            f"{name:16s}" + "".join(f"{errors[c]:13.3f}" if c in errors else f"{'':13s}" for c in columns), flush=True
        )
        table.append(errors)
    means = [np.mean([e[c] for e in table if c in e]) if any(c in e for e in table) else None for c in columns]
    print(f"{'mean':16s}" + "".join(f"{'':13s}" if m is None else f"{m:13.3f}" for m in means))


def runs_of(
    dataset: Path,
    routes: Iterable[str],
    work: Path,
    measure: Callable[[PreprocessedRun, Truth], dict[str, float]] = errors_of,
) -> Iterable[tuple[str, dict[str, float]]]:
    """Preprocess the first run of each participant, and yield its name and errors."""
    for route in routes:
        first = {run.participant: run for run in reversed(find_runs(dataset, QuerySettings()))}
        for participant, found in sorted(first.items()):
            run = found if route == "t1w" else replace(found, t1w=None, t1w_repeats=())
            name = f"sub-{participant} {route}"
            try:
                threads = len(os.sched_getaffinity(0))
                preprocessed = preprocess_in_process(run, work / participant / route, threads=threads)
            except NeurostormError as error:
                print(f"{name}: {error}")
                continue
            yield name, measure(preprocessed, Truth.of(dataset, run.bold))


def distortions(work: Path, participants: int, seed: int, max_mm: float) -> Iterable[tuple[str, dict[str, float]]]:
    """Simulate distorted runs with each kind of fieldmap, correct them from their files, and yield the displacements.

    Displacements are means over the brain in mm.
    """
    for kind in FIELDMAPS:
        dataset = work / kind
        plan = DatasetPlan(
            participants, seed, states=("rest",), t1w=False, volumes=40, distortion=max_mm, fieldmaps=kind
        )
        write_dataset(dataset, plan)
        for run in find_runs(dataset, QuerySettings()):
            folder = work / "steps" / kind / run.participant
            graph, _ = steps_of(run, folder, PreprocessSettings(dummy_scans=0))
            (correction,) = (step for step in graph.steps.values() if step.function is correct_distortion)
            before = run_in_process(graph, folder, correction.upstream["motion"])
            started = time.process_time()
            estimate = run_in_process(graph, folder, correction, results=before)[correction.name]
            seconds = time.process_time() - started
            yield f"sub-{run.participant} {kind}", displacements(estimate, dataset, run.stem) | {"CPU s": seconds}


def normalisations(work: Path, participants: int, seed: int) -> Iterable[tuple[str, dict[str, float]]]:
    """Register T1w images of every kind to the template, with our step and with antspyx's defaults.

    Errors are in mm over the template's grey matter. Both start from the bias-corrected image at 2 mm.
    """
    template = load_template()
    grey = grid_points(template.gm.shape, template.affine, template.gm > 0.5)[::3]
    fixed = save_image(work / "template.nii.gz", template.t1w, template.affine)
    plan = DatasetPlan(participants, seed, states=("rest",))
    for participant in range(participants):
        visit = Visit(plan, participant, 0)
        true = visit.head_shape().template_to_t1w(chain_between(template.name, TEMPLATE)(grey))
        for kind in ("", *VARIANTS):
            scan = simulate_t1w(visit.head_shape(), anatomical_protocol_for(participant), visit.keys, kind)
            folder = work / f"{participant}{kind}"
            folder.mkdir()
            image = save_image(folder / "sub-01_T1w.nii.gz", np.round(scan.image).astype(np.int16), scan.affine)
            prepared = prepare_t1w(image, folder)
            started = time.process_time()
            ours = Chain.load(normalise_t1w(prepared, folder).chain)
            between = time.process_time()
            theirs = peers.antspyx_normalisation(prepared.image, fixed)
            ended = time.process_time()
            errors = {"CPU s": between - started, "antspyx CPU": ended - between}
            for name, chain in (("", ours), ("antspyx ", theirs)):
                distances = distance_mm(chain(grey), true)
                errors |= {f"{name}{q}%": float(np.percentile(distances, q)) for q in (50, 95)}
            yield f"sub-{participant + 1:02d} {kind or 'usual'}", errors


def displacements(estimate: MotionEstimate, dataset: Path, stem: str) -> dict[str, float]:
    """Return the displacements (mm) in the brain before and after distortion correction; see `DISTORTION_COLUMNS`."""
    folder = dataset / "derivatives" / "truth" / stem.partition("_")[0] / "func"
    truth = PointField.load(folder / f"{stem}_from-boldref_to-distorted_mode-points_xfm.nii.gz")
    brain, affine = read_volume(folder / f"{stem}_desc-brain_mask.nii.gz")
    points = grid_points(brain.shape, affine, brain > 0.5)
    shifts = truth(points) - points
    poses = np.load(folder / f"{stem}_desc-motion_xfm.npy")
    here = apply_matrix(np.linalg.inv(np.load(estimate.motion)[0]) @ poses[0], points)  # true to estimated boldref
    assert estimate.sdc is not None
    left = np.linalg.norm(estimate.sdc.distort_points(here)[0] - here - shifts, axis=1).mean()
    lengths = np.linalg.norm(shifts, axis=1)
    return {
        "before": float(lengths.mean()),
        "maximum": float(lengths.max()),
        "after": float(left),
        "removed %": float(100 * (1 - left / lengths.mean())),
    }


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="a simulated dataset (default: simulate one)")
    parser.add_argument("--participants", type=int, default=4, help="participants to simulate")
    parser.add_argument("--seed", type=int, default=1, help="seed of the simulation")
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES))
    parser.add_argument("--boundary", action="store_true", help="only BOLD to T1w, with and without refinement")
    parser.add_argument("--fieldmaps", action="store_true", help="only distortion correction, by kind of fieldmap")
    parser.add_argument("--t1w", action="store_true", help="only T1w to template, compared with antspyx")
    arguments = parser.parse_args()
    if arguments.t1w:
        with tempfile.TemporaryDirectory() as name:
            show(normalisations(Path(name), arguments.participants, arguments.seed), T1W_COLUMNS)
        return
    if arguments.fieldmaps:
        with tempfile.TemporaryDirectory() as name:
            show(distortions(Path(name), arguments.participants, arguments.seed, MAX_DISTORTION_MM), DISTORTION_COLUMNS)
        return
    with tempfile.TemporaryDirectory() as name:
        dataset = arguments.dataset or Path(name) / "raw"
        if arguments.dataset is None:
            write_dataset(dataset, DatasetPlan(arguments.participants, arguments.seed, states=("rest",)))
        if arguments.boundary:
            show(runs_of(dataset, ["t1w"], Path(name) / "work", boundary_errors), BOUNDARY_COLUMNS)
        else:
            show(runs_of(dataset, arguments.routes, Path(name) / "work"))


if __name__ == "__main__":
    main()
