"""How far preprocessing is from the truth of a simulated dataset: motion, masks, alignment with T1w and template.

    python benchmarks/accuracy.py                          # simulates four participants first
    python benchmarks/accuracy.py --dataset FOLDER         # one that `neurostorm-phantom` wrote
    python benchmarks/accuracy.py --routes direct
    python benchmarks/accuracy.py --fieldmaps              # distortion of 8 mm, and what each kind of fieldmap leaves
    python benchmarks/accuracy.py --boundary               # what refining BOLD to T1w at the boundary would do
    python benchmarks/accuracy.py --t1w                    # T1w to template, odd images too, beside antspyx

Every first run of a participant goes from its raw files through the app's own steps, with its T1w and without. Errors
are mm over the brain (motion, BOLD to T1w) or over the template's grey matter (T1w to template, the whole chain).
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
from bids_app.phantom.truth import PointField
from bids_app.preprocess.anatomical import normalise_t1w, prepare_t1w
from bids_app.preprocess.hmc import MotionEstimate
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.preprocessed import PreprocessedRun
from bids_app.preprocess.registration.ants import Image, dice
from bids_app.preprocess.registration.bbr import SLOPE, Refinement, refine, white_matter_boundary
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
DISTORTION_COLUMNS = ("put in", "largest", "left", "removed %", "seconds")
LARGEST_MM = 8.0
T1W_COLUMNS = ("50%", "95%", "s", "antspyx 50%", "antspyx 95%", "antspyx s")
BOUNDARY_COLUMNS = ("coreg", "gain %", "refined", "slope 0.5", "from beside")
COLUMNS = ("motion mean", "motion max", "mask Dice", "EPI Dice", "T1w Dice", "coreg", "norm 50%", "norm 95%", "all 50%")


@dataclass(frozen=True)
class Truth:
    """What was put into a run. Its boldref is the simulation's; `gauge` leads to it from the boldref that was found."""

    motion: np.ndarray
    brain: np.ndarray
    affine: np.ndarray
    boldref_to_t1w: np.ndarray
    template_to_t1w: PointField
    t1w_brain: Path

    @classmethod
    def of(cls, dataset: Path, bold: Path) -> Truth:
        """Read it from the dataset's ``derivatives/truth``."""
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

    def gauge(self, found: np.ndarray, n_dummy: int) -> np.ndarray:
        """Found boldref to true boldref: what motion (T, 4, 4) has in common against the truth."""
        pairs = zip(self.motion[n_dummy:], found[n_dummy:], strict=True)
        matrix = np.mean([np.linalg.inv(true) @ ours for true, ours in pairs], axis=0)
        left, _, right = np.linalg.svd(matrix[:3, :3])
        matrix[:3, :3] = left @ right
        return matrix


def distance_mm(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances between points (N, 3)."""
    return np.linalg.norm(a - b, axis=1)


def errors_of(run: PreprocessedRun, truth: Truth) -> dict[str, float]:
    """Errors of a run, mm and Dice; see `COLUMNS`."""
    found = np.load(run.motion) if run.motion else truth.motion
    gauge = truth.gauge(found, run.n_dummy)
    brain = grid_points(truth.brain.shape, truth.affine, truth.brain)[::10]
    poses = list(zip(truth.motion, found, strict=True))[run.n_dummy :]
    motion = [distance_mm(apply_matrix(a @ gauge, brain), apply_matrix(b, brain)).mean() for a, b in poses]
    seen = (
        resample_to(truth.brain.astype(np.float32), truth.affine, truth.brain.shape, truth.affine, linear(gauge)) > 0.5
    )
    template = load_template(run.template)
    grey = grid_points(template.gm.shape, template.affine, template.gm > 0.5)[::3]
    in_t1w = truth.template_to_t1w(grey)
    to_t1w = truth.boldref_to_t1w @ gauge
    chain = Chain.load(run.chain) if run.chain else Chain()
    errors = {
        "motion mean": float(np.mean(motion)),
        "motion max": float(np.max(motion)),
        "mask Dice": dice(read_volume(run.brain_mask)[0] > 0.5, seen),
        "all 50%": float(np.median(distance_mm(chain(grey), apply_matrix(np.linalg.inv(to_t1w), in_t1w)))),
    }
    if run.epi_mask:
        errors["EPI Dice"] = dice(read_volume(run.epi_mask)[0] > 0.5, seen)
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
    """Errors (mm) of BOLD to T1w as it was found, and after refinements at the boundary, used whatever they gain.

    See `BOUNDARY_COLUMNS`; the last begins some 3 mm beside.
    """
    anatomy = run.anatomy
    assert anatomy is not None
    assert run.coreg_file is not None
    assert run.epi_mask is not None
    tissues, affine = nib.nifti1.load(anatomy.tissues), read_volume(anatomy.mask)[1]
    boundary = white_matter_boundary(np.asarray(tissues.dataobj, dtype=np.float32) / 255, affine)
    boldref = Image(*read_volume(run.epi_mask.parent / "boldref_corrected.nii.gz"))
    to_t1w = truth.boldref_to_t1w @ truth.gauge(np.load(str(run.motion)), run.n_dummy)
    brain = grid_points(truth.brain.shape, truth.affine, truth.brain)[::10]
    found = read_itk_matrix(run.coreg_file)
    beside = found @ rigid(np.radians([1.5, -1.5, 1.5]), [1.5, -1.5, 1.5], boundary.points.mean(axis=0))

    def error(matrix: np.ndarray) -> float:
        return float(np.median(distance_mm(apply_matrix(matrix, apply_matrix(to_t1w, brain)), brain)))

    def refined(start: np.ndarray, slope: float = SLOPE) -> Refinement:
        made = refine(boundary, boldref, start, min_gain=0.0, slope=slope)
        assert made is not None
        return made

    soft = refined(found)
    return {
        "coreg": error(found),
        "gain %": 100 * (1 - soft.cost / soft.cost_start),
        "refined": error(soft.matrix),
        "slope 0.5": error(refined(found, 0.5).matrix),
        "from beside": error(refined(beside).matrix),
    }


def read_itk_matrix(path: Path) -> np.ndarray:
    """The one matrix of an ITK text file, RAS mm."""
    line = next(line for line in path.read_text().splitlines() if line.startswith("Parameters:"))
    values = np.array(line.split()[1:], dtype=float)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = values[:9].reshape(3, 3), values[9:]
    return LPS @ matrix @ LPS


def show(rows: Iterable[tuple[str, dict[str, float]]], columns: Sequence[str] = COLUMNS) -> None:
    """Print one line a run, as it comes, and the mean of each column."""
    print(f"{'':16s}" + "".join(f"{name:>13s}" for name in columns))
    kept = []
    for name, errors in rows:
        print(
            f"{name:16s}" + "".join(f"{errors[c]:13.3f}" if c in errors else f"{'':13s}" for c in columns), flush=True
        )
        kept.append(errors)
    means = [np.mean([e[c] for e in kept if c in e]) if any(c in e for e in kept) else None for c in columns]
    print(f"{'mean':16s}" + "".join(f"{'':13s}" if m is None else f"{m:13.3f}" for m in means))


def runs_of(
    dataset: Path,
    routes: Iterable[str],
    work: Path,
    judge: Callable[[PreprocessedRun, Truth], dict[str, float]] = errors_of,
) -> Iterable[tuple[str, dict[str, float]]]:
    """Preprocess the first run of each participant, and compare it with the truth."""
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
            yield name, judge(preprocessed, Truth.of(dataset, run.bold))


def distortions(work: Path, participants: int, seed: int, largest_mm: float) -> Iterable[tuple[str, dict[str, float]]]:
    """Simulate distorted runs with each kind of fieldmap, correct them from their files, compare with the truth.

    Mean lengths over the brain, mm; the seconds are processor time.
    """
    for kind in FIELDMAPS:
        dataset = work / kind
        plan = DatasetPlan(
            participants, seed, states=("rest",), t1w=False, volumes=40, distortion=largest_mm, fieldmaps=kind
        )
        write_dataset(dataset, plan)
        for run in find_runs(dataset, QuerySettings()):
            folder = work / "steps" / kind / run.participant
            graph, _ = steps_of(run, folder, PreprocessSettings(dummy_scans=0))
            (correction,) = (step for step in graph.steps.values() if step.function is correct_distortion)
            before = run_in_process(graph, folder, correction.upstream["motion"])
            started = time.process_time()
            found = run_in_process(graph, folder, correction, results=before)[correction.name]
            seconds = time.process_time() - started
            yield f"sub-{run.participant} {kind}", left_over(found, dataset, run.stem) | {"seconds": seconds}


def normalisations(work: Path, participants: int, seed: int) -> Iterable[tuple[str, dict[str, float]]]:
    """Align T1w images of every kind with the template, by our step and by antspyx's defaults.

    Distances over the template's grey matter, mm; seconds of the processor. Both begin from the image at 2 mm without
    its bias field.
    """
    template = load_template()
    grey = grid_points(template.gm.shape, template.affine, template.gm > 0.5)[::3]
    fixed = save_image(work / "template.nii.gz", template.t1w, template.affine)
    plan = DatasetPlan(participants, seed, states=("rest",))
    for participant in range(participants):
        visit = Visit(plan, participant, 0)
        true = visit.head_shape().template_to_t1w(grey)
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
            errors = {"s": between - started, "antspyx s": ended - between}
            for name, chain in (("", ours), ("antspyx ", theirs)):
                distances = distance_mm(chain(grey), true)
                errors |= {f"{name}{q}%": float(np.percentile(distances, q)) for q in (50, 95)}
            yield f"sub-{participant + 1:02d} {kind or 'usual'}", errors


def left_over(found: MotionEstimate, dataset: Path, stem: str) -> dict[str, float]:
    """How long the displacement in the brain is before and after a correction."""
    folder = dataset / "derivatives" / "truth" / stem.partition("_")[0] / "func"
    truth = PointField.load(folder / f"{stem}_from-boldref_to-distorted_mode-points_xfm.nii.gz")
    brain, affine = read_volume(folder / f"{stem}_desc-brain_mask.nii.gz")
    points = grid_points(brain.shape, affine, brain > 0.5)
    moves = truth(points) - points
    poses = np.load(folder / f"{stem}_desc-motion_xfm.npy")
    here = apply_matrix(np.linalg.inv(np.load(found.motion)[0]) @ poses[0], points)  # two references of one run
    assert found.sdc is not None
    left = np.linalg.norm(found.sdc.aim(here)[0] - here - moves, axis=1).mean()
    lengths = np.linalg.norm(moves, axis=1)
    return {
        "put in": float(lengths.mean()),
        "largest": float(lengths.max()),
        "left": float(left),
        "removed %": float(100 * (1 - left / lengths.mean())),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="a simulated dataset; default: a new one")
    parser.add_argument("--participants", type=int, default=4, help="of the new one")
    parser.add_argument("--seed", type=int, default=1, help="of the new one")
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES))
    parser.add_argument("--boundary", action="store_true", help="only BOLD to T1w, with and without refinement")
    parser.add_argument("--fieldmaps", action="store_true", help="only distortion, with each kind of fieldmap")
    parser.add_argument("--t1w", action="store_true", help="only T1w to template, usual and odd images, and antspyx")
    arguments = parser.parse_args()
    if arguments.t1w:
        with tempfile.TemporaryDirectory() as name:
            show(normalisations(Path(name), arguments.participants, arguments.seed), T1W_COLUMNS)
        return
    if arguments.fieldmaps:
        with tempfile.TemporaryDirectory() as name:
            show(distortions(Path(name), arguments.participants, arguments.seed, LARGEST_MM), DISTORTION_COLUMNS)
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
