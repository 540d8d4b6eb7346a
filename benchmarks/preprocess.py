"""Time and peak memory of each preprocessing step, compared with other packages that do the same.

    python benchmarks/preprocess.py                                   # 60 and 200 volumes of 64x64x36
    python benchmarks/preprocess.py --protocol multiband --volumes 100 300 1200     # 2 mm, 104x104x72
    python benchmarks/preprocess.py --no-peers                        # peers need: pip install -e ".[peers]"
    python benchmarks/preprocess.py --bold sub-01_task-x_bold.nii.gz --t1w sub-01_T1w.nii.gz   # your own scan
    python benchmarks/preprocess.py --no-peers --device cuda          # steps that can use a GPU, also on the GPU

Each step and each peer runs in its own process, whose peak memory is shown (maximum resident set size, including pages
of mapped files); the row "imports" is a process that only imports packages. Peers get the same input in the same run. A
peer marked "of 20" was timed on 20 volumes, and its time is scaled to the length of the run. Simulated runs repeat 60
positions of a head with new noise in each volume; estimated motion is compared with them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import peers

from bids_app.bids.query import BoldRun
from bids_app.preprocess.hmc import MotionEstimate, correct_motion
from bids_app.workflow import nodes
from bids_app.workflow.graph import Step
from bids_app.workflow.in_process import run_in_process, steps_of

PEER_VOLUMES = 20
N_POSES = 60


@dataclass(frozen=True)
class Protocol:
    """A simulated scan: number of voxels along right, anterior, superior; voxel size in mm; repetition time in s."""

    shape: tuple[int, int, int]
    voxel_mm: tuple[float, float, float]
    tr: float


PROTOCOLS = {
    "standard": Protocol((64, 64, 36), (3.3, 3.3, 4.0), 2.0),
    "multiband": Protocol((104, 104, 72), (2.0, 2.0, 2.0), 0.8),
}


@dataclass(frozen=True)
class Cost:
    """Wall and CPU time (s) and peak memory (MB) of a call, and its return value."""

    seconds: float
    cpu_seconds: float
    megabytes: float
    value: Any


@dataclass(frozen=True)
class Peer:
    """Another package or device that does the same on the first ``n_volumes``."""

    name: str
    cost: Cost
    n_volumes: int


@dataclass
class Run:
    """A run to measure, with the costs of its steps and peers."""

    bold: Path
    tr: float
    t1w: Path | None
    motion: np.ndarray | None
    n_volumes: int
    costs: dict[str, Cost] = field(default_factory=dict)
    peers: dict[str, list[Peer]] = field(default_factory=dict)


def measure(function: Callable[..., Any], *arguments: Any, **options: Any) -> Cost:
    """Run a function in a new process, and return its cost."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_timed, function, arguments, options).result()


def _timed(function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Cost:
    import torch  # imports, and the start of a GPU, do not count as the cost of a step

    torch.zeros(1, device=options.get("device", "cpu"))
    from bids_app.workflow import method  # noqa: F401

    started, cpu = time.perf_counter(), _cpu_seconds()
    value = function(*arguments, **options)
    return Cost(time.perf_counter() - started, _cpu_seconds() - cpu, _peak_mb(), value)


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of the programs that it has run, such as ANTs, s."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak_mb() -> float:
    """Return the peak resident memory of this process, MB; `getrusage` would include its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def simulate(folder: Path, protocol: Protocol, n_volumes: int, seed: int = 0) -> Run:
    """Simulate a BOLD run of a moving head, and a T1w image."""
    from scipy import ndimage

    from bids_app.catalog.templates import load_template
    from bids_app.preprocess.io.images import save_image
    from bids_app.preprocess.registration.bold_to_template import epi_like
    from bids_app.preprocess.registration.transforms import linear, resample_to, rigid

    template, grid = load_template(), protocol.shape
    affine = np.diag([*protocol.voxel_mm, 1.0])
    affine[:3, 3] = np.array([0, -18, 8]) - (np.array(grid) - 1) / 2 * protocol.voxel_mm
    head = resample_to(ndimage.gaussian_filter(epi_like(template) * 1000, 0.6), template.affine, grid, affine)
    rng = np.random.default_rng(seed)
    walk = rng.normal(size=(N_POSES, 6)).cumsum(axis=0)
    walk = (walk - walk[N_POSES // 2]) / np.abs(walk).max(axis=0) * ([np.radians(2.0)] * 3 + [2.5] * 3)
    poses = np.stack([rigid(w[:3], w[3:], (0, -20, 10)) for w in walk])
    moved = [
        resample_to(head, affine, grid, affine, linear(np.linalg.inv(pose)), order=3) for pose in poses[:n_volumes]
    ]
    mapped = np.lib.format.open_memmap(folder / "series.npy", "w+", np.int16, (*grid, n_volumes), fortran_order=True)
    for t in range(n_volumes):
        noise = rng.standard_normal(grid, dtype=np.float32) * 10
        mapped[..., t] = np.round(moved[t % N_POSES] + noise)
    path = save_image(folder / f"sub-01_run-{n_volumes}_bold.nii.gz", mapped, affine, tr=protocol.tr)
    del mapped
    (folder / "series.npy").unlink()
    fine = np.diag([1.0, 1.0, 1.0, 1.0])
    fine[:3, 3] = (-90, -126, -72)
    t1w = save_image(
        folder / "sub-01_T1w.nii.gz", resample_to(template.t1w, template.affine, (181, 217, 181), fine), fine
    )
    return Run(path, protocol.tr, t1w, poses[np.arange(n_volumes) % N_POSES], n_volumes)


def motion_error_mm(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Return mean and maximum error (mm) over a brain, after removing the offset common to all volumes."""
    from bids_app.preprocess.registration.transforms import apply_matrix

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


def first_volumes(bold: Path, n_volumes: int, folder: Path) -> Path:
    """Write the first volumes of a run to a file, and return its path."""
    image = nib.nifti1.load(bold)
    path = folder / f"first{n_volumes}_{bold.name}"
    if not path.exists():
        nib.nifti1.save(image.slicer[..., :n_volumes], path)
    return path


def measure_run(
    run: Run, folder: Path, threads: int, with_peers: bool, device: str | None, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure the app's steps, each in its own process, and their peers; return the results of the T1w steps."""
    folder.mkdir(exist_ok=True)
    few = first_volumes(run.bold, min(PEER_VOLUMES, run.n_volumes), folder)
    entities = {"sub": "01", "task": "benchmark"}
    graph, steps = steps_of(BoldRun(run.bold, entities, {"RepetitionTime": run.tr}, run.t1w), folder, threads=threads)

    def call(step: Step, arguments: Mapping[str, Any]) -> Any:
        title = title_of(step)
        run.costs[title] = measure(step.function, **arguments)
        peers_of = peers_for(title, run, few, folder, arguments, run.costs[title].value) if with_peers else ()
        n_done = min(PEER_VOLUMES, run.n_volumes) if title in ("head motion", "model grid") else run.n_volumes
        run.peers[title] = [Peer(name, cost, n_done) for name, cost in measured(peers_of)]
        if device and "device" in arguments:
            other = Path(arguments["out_dir"]).with_name(f"{step.name}_other")
            other.mkdir()
            cost = measure(step.function, **{**arguments, "device": device, "out_dir": other})
            run.peers[title].append(Peer(f"on {device}", cost, run.n_volumes))
        return run.costs[title].value

    run.costs["imports"] = measure(int)
    results = run_in_process(graph, folder, steps.preprocessed, call, known)
    results = run_in_process(graph, folder, steps.grid, call, results)
    return {name: value for name, value in results.items() if "_T1w_" in name}


def title_of(step: Step) -> str:
    """Return the name of a step in the table."""
    titles = {
        nodes.prepare_anatomy: "T1w bias field",
        nodes.normalise_anatomy: "T1w to template",
        nodes.examine: "header check",
        correct_motion: "head motion",
        nodes.mask_run: "EPI mask",
        nodes.search_alignment: "search for BOLD to T1w",
        nodes.align: "BOLD to T1w" if "anatomy" in step.upstream else "BOLD to template",
        nodes.confounds: "confounds",
        nodes.collect: "collect",
        nodes.resample: "model grid",
    }
    return titles[step.function]


def peers_for(
    title: str, run: Run, few: Path, folder: Path, given: Mapping[str, Any], returned: Any
) -> Iterable[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Return the peers of a step with their arguments, from the arguments and the result of the step."""
    if title == "header check":
        return [(peers.nibabel_load, (run.bold,))]
    if title == "head motion":
        return [(peer, (few,)) for peer in (peers.simpleitk_motion, peers.nipy_motion, peers.antspyx_motion)]
    if title == "EPI mask":
        return [(peers.antspyx_mask, (run.bold, given["motion"].boldref))]
    if title == "T1w bias field":
        return [(peer, (run.t1w,)) for peer in (peers.antspyx_bias_field, peers.simpleitk_bias_field)]
    if title == "T1w to template":
        return [(peers.antspyx_normalisation, (given["prepared"].image, _template(folder)))]
    if title == "BOLD to T1w":
        images = (given["reference"].corrected, given["anatomy"].image)
        return [(peer, images) for peer in (peers.simpleitk_rigid, peers.antspyx_rigid)]
    if title == "confounds":
        return [(peers.scipy_confounds, (returned.carpet,))]
    if title == "model grid":
        return [(peer, (few,)) for peer in (peers.scipy_resampling, peers.antspyx_resampling)]
    return []


def _template(folder: Path) -> Path:
    from bids_app.catalog.templates import load_template
    from bids_app.preprocess.io.images import save_image

    template = load_template()
    return save_image(folder / "template.nii.gz", template.t1w, template.affine)


def measured(others: Iterable[tuple[Callable[..., Any], tuple[Any, ...]]]) -> Iterator[tuple[str, Cost]]:
    """Yield name and cost of each peer that is installed."""
    for function, arguments in others:
        name = function.__name__.split("_")[0]
        try:
            yield name, measure(function, *arguments)
        except ImportError as missing:
            print(f"{name}: not installed ({missing})")


def show(run: Run, threads: int) -> None:
    """Print a table with one line per step, each followed by its peers."""
    shape = " x ".join(map(str, nib.nifti1.load(run.bold).shape))
    print(f"\n{run.bold.name}: {shape}, {threads} threads")
    print(f"{'step':34s} {'s':>8s} {'CPU s':>8s} {'MB':>7s} {'ratio':>11s}")
    for name, cost in run.costs.items():
        print(f"{name:34s} {cost.seconds:8.1f} {cost.cpu_seconds:8.1f} {cost.megabytes:7.0f}{_error(run, cost)}")
        for peer in run.peers.get(name, []):
            theirs, scale = peer.cost, run.n_volumes / peer.n_volumes
            title = f"    {peer.name}" + (f" (of {peer.n_volumes})" if scale > 1 else "")
            ratio = theirs.seconds * scale / cost.seconds
            print(
                f"{title:34s} {theirs.seconds * scale:8.1f} {theirs.cpu_seconds * scale:8.1f} "
                f"{theirs.megabytes:7.0f} {ratio:11.1f}{_error(run, theirs)}"
            )
    costs = run.costs.values()
    total, cpu, largest = sum(c.seconds for c in costs), sum(c.cpu_seconds for c in costs), max(costs, key=_size)
    print(f"{'total; maximum memory':34s} {total:8.1f} {cpu:8.1f} {largest.megabytes:7.0f}", flush=True)


def _size(cost: Cost) -> float:
    return cost.megabytes


def _error(run: Run, cost: Cost) -> str:
    """Return the motion error as text, or nothing if the call returned no motion or the truth is unknown."""
    found = np.load(cost.value.motion) if isinstance(cost.value, MotionEstimate) else cost.value
    if run.motion is None or not isinstance(found, np.ndarray) or found.ndim != 3:
        return ""
    return "   error {:.3f} mm, maximum {:.3f}".format(*motion_error_mm(found, run.motion[: len(found)]))


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="standard", help="protocol of simulated runs")
    parser.add_argument("--volumes", type=int, nargs="+", default=[60, 200], help="lengths of simulated runs")
    parser.add_argument("--bold", type=Path, help="a BOLD file instead of simulated ones")
    parser.add_argument("--t1w", type=Path, help="the T1w image of --bold")
    parser.add_argument("--tr", type=float, help="repetition time of --bold, s (default: from its sidecar)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-peers", action="store_true", help="do not run other packages")
    parser.add_argument("--device", help="device on which steps that can use it are measured, too, such as cuda")
    parser.add_argument("--peers-at", type=int, help="run peers only at this number of volumes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known: dict[str, Any] = {}
        for n_volumes in [0] if arguments.bold else arguments.volumes:
            if arguments.bold:
                sidecar = Path(str(arguments.bold).split(".nii")[0] + ".json")
                tr = arguments.tr or json.loads(sidecar.read_text())["RepetitionTime"]
                run = Run(arguments.bold, tr, arguments.t1w, None, nib.nifti1.load(arguments.bold).shape[3])
            else:
                run = simulate(folder, PROTOCOLS[arguments.protocol], n_volumes)
            with_peers = not arguments.no_peers and arguments.peers_at in (None, run.n_volumes)
            given = arguments.threads, with_peers, arguments.device
            known = measure_run(run, folder / str(run.n_volumes), *given, known)
            show(run, arguments.threads)


if __name__ == "__main__":
    main()
