"""Evaluation of the five tasks on simulated cohorts whose effects are in dynamics, not in the mean image.

    python benchmarks/dynamics.py --quick             # small cohorts, two repeats; see the README for the time
    python benchmarks/dynamics.py age identity        # some of the tasks
    python benchmarks/dynamics.py --published         # also random weights of the published configuration
    python benchmarks/dynamics.py --real DIR          # real regional time series beside simulated ones, no tasks

Cohorts are those of `bids_app.phantom.dynamic_cohorts`; scans have voxels of 4 mm on the model grid. Every method is
evaluated by `bids_app.training.evaluation` in the same folds. Functional connectivity and amplitudes are given the
regions of the template that the series were simulated in. "Three regions" are the amplitudes of both hand areas and the
visual cortex alone. Encoders read block averages of 12 mm, which gives the same output as their weights for voxels
(`scripts/make_demo_model.py`). The strategy is linear, the normalisation voxel.

The last table is about runs of one state, as in the demonstration dataset: the accuracy of a fixed rule that compares
the temporal SD of three regions, and of the demonstration adapter as it is, on these cohorts and on runs of
`grid_scans`, in which activation is stronger.
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy.signal import welch
from scipy.stats import binomtest

from bids_app.adapters.file import AdaptedModel, load_adapter
from bids_app.catalog.templates import MODEL_SPACE, brain_on
from bids_app.clips import CLIP_VOLUMES, MODEL_GRID_AFFINE, MODEL_GRID_SHAPE
from bids_app.model.api import Model, load_model
from bids_app.model.checkpoint import read_checkpoint, save_encoder
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.phantom.activity import STATES
from bids_app.phantom.dynamic_cohorts import (
    CohortPlan,
    DynamicCohortScan,
    DynamicEffects,
    dynamic_runs,
    dynamic_sessions,
    dynamic_states,
    dynamic_traits,
)
from bids_app.phantom.geometry import apply, rng_for
from bids_app.phantom.grid_scans import simulated_series
from bids_app.phantom.regional_series import PAIRS, make_model, own_covariance, regions, simulate_series
from bids_app.training.adapt import AdaptSettings
from bids_app.training.calibrate import predict_scans
from bids_app.training.data.examples import Dataset, label_scans
from bids_app.training.data.labels import EventRule
from bids_app.training.data.scan import Scan
from bids_app.training.data.store import ClipStore
from bids_app.training.evaluation.baselines import AMPLITUDE, parcel_series
from bids_app.training.evaluation.comparison import ENCODER
from bids_app.training.evaluation.evaluate import Evaluation, evaluate
from bids_app.training.evaluation.run import EvaluateSettings
from bids_app.training.tasks import Task

NORMALISATION = "voxel"
BLOCK = 6
COARSE = (MODEL_GRID_SHAPE[0] // BLOCK, MODEL_GRID_SHAPE[1] // BLOCK, MODEL_GRID_SHAPE[2] // BLOCK)
DATA = Path(__file__).parents[1] / "bids_app" / "data"
DEMONSTRATION, ADAPTER = DATA / "demo_encoder.safetensors", DATA / "demo_state.safetensors"
OWN_OF_SESSIONS = 0.4
"""Individual share of the connectome in the cohort of sessions; no other effect limits it there."""
THREE_REGIONS = {"righthand": ((-38, -24, 57),), "lefthand": ((38, -24, 57),), "visual": ((-11, -86, 3), (11, -86, 3))}
"""Foci of three states, mm; the state `rest` has none."""
RADIUS_MM = 12.0
CONNECTION, THREE, RANDOM, PUBLISHED = "connectivity", "three", "random", "published"
TITLES = {
    ENCODER: "encoder, demonstration weights",
    RANDOM: "random weights, same configuration",
    PUBLISHED: "random weights, published configuration",
    CONNECTION: "functional connectivity",
    AMPLITUDE: "amplitudes (SD, ALFF)",
    THREE: "three regions",
    "mean": "mean image",
    "confounds": "motion",
    "site": "site",
}


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes
    ----------
    effect, cohort, target : str
        Effect in words, name of the cohort, and target of the evaluation.
    kind : str, optional
        Of the task; default: from the values.
    folds : int
    """

    effect: str
    cohort: str
    target: str
    kind: str | None = None
    folds: int = 5


ALL = {
    "age": Row("spectrum (slowing)", "traits", "participants.tsv:age"),
    "sex": Row("lag of the visual network", "traits", "participants.tsv:sex"),
    "phenotype": Row("variance, limbic and cerebellum", "traits", "phenotype/test.tsv:score"),
    "diagnosis": Row("connectivity of two pairs of networks", "traits", "participants.tsv:group"),
    "identity": Row("individual connectome", "sessions", "scan:participant", "embedding"),
    "states": Row("activation of 1 to 2 %, blocks of 16 s", "states", "events.tsv:trial_type"),
    "runs": Row("activation of 1 to 2 %, runs of one state", "runs", "scan:state"),
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the cohorts and of the evaluation.

    Attributes
    ----------
    traits, sessions, states, runs : int
        Participants of each cohort.
    seconds, session_seconds : float
        Duration of scans at rest, of traits and of sessions.
    repeats : int
        Of the folds.
    earlier : int
        Participants of the runs of `grid_scans`, of four states each.
    """

    traits: int = 200
    sessions: int = 100
    states: int = 40
    runs: int = 40
    seconds: float = 480.0
    session_seconds: float = 480.0
    repeats: int = 10
    earlier: int = 10


QUICK = Sizes(60, 40, 12, 16, 192.0, 384.0, 2, 5)


@dataclass(frozen=True)
class BlockScan(Scan):
    """A scan of a store whose clips are averages of blocks of 12 mm, (1, 16, 16, 16, T)."""

    quantised_clip = None  # type: ignore[assignment]  # clips are not read as they are stored

    def clip(self, start: int) -> torch.Tensor:
        """Return the clip that starts at volume ``start``."""
        rows = block_averages(self.folder)[start : start + self.clip_volumes]
        return torch.from_numpy(np.moveaxis(rows, 0, -1)[None].copy())


@lru_cache(maxsize=2)
def block_averages(folder: Path) -> np.ndarray:
    """Return the block averages of a stored scan, (U, 16, 16, 16) float32; voxels stand for those between them."""
    scan = ClipStore(folder.parents[2])[folder.name]
    values, indices = scan.rows()
    places = np.stack(np.unravel_index(indices, MODEL_GRID_SHAPE))
    step = 2 if (places % 2 == 0).all() else 1
    block = np.ravel_multi_index(tuple(places // BLOCK), COARSE)
    order = np.argsort(block, kind="stable")
    starts = np.flatnonzero(np.diff(block[order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    whole = (BLOCK // step) ** 3
    means = np.full((len(values), int(np.prod(COARSE))), scan.background, np.float32)
    sums = np.add.reduceat(values[:, order], starts, axis=1)
    means[:, block[order][starts]] = (sums + (whole - counts) * scan.background) / whole
    return means.reshape(-1, *COARSE)


def for_blocks(config: EncoderConfig, state: dict[str, torch.Tensor]) -> tuple[EncoderConfig, dict[str, torch.Tensor]]:
    """Return the encoder of block averages that is equivalent on images of equal values within each block."""
    patch = config.patch_size
    weight = state["patch_embed.fc.weight"]
    x, y, z = (edge // BLOCK for edge in patch[:3])
    blocks = weight.reshape(len(weight), x, BLOCK, y, BLOCK, z, BLOCK).sum(dim=(2, 4, 6)).reshape(len(weight), -1)
    coarse = replace(config, img_size=(*COARSE, CLIP_VOLUMES), patch_size=(x, y, z, patch[3]))
    return coarse, state | {"patch_embed.fc.weight": blocks}


def make_encoder(kind: str, work: Path) -> Model:
    """Return an encoder of block averages: `ENCODER` (demonstration weights), `RANDOM` or `PUBLISHED`."""
    demonstration = read_checkpoint(DEMONSTRATION)
    config, state = demonstration.config, demonstration.encoder
    if kind != ENCODER:
        config = EncoderConfig() if kind == PUBLISHED else config
        torch.manual_seed(0)
        state = Encoder(config).state_dict()
    coarse, weights = for_blocks(config, state)
    return load_model(save_encoder(work / f"{kind}.safetensors", coarse, weights, kind))


def region_labels() -> np.ndarray:
    """Return the template's regions on the model grid, (96, 96, 96) int32 from 1."""
    brain = brain_on(MODEL_SPACE, MODEL_GRID_SHAPE, MODEL_GRID_AFFINE)
    labels = np.zeros(MODEL_GRID_SHAPE, np.int32)
    labels[brain] = regions().owners(apply(MODEL_GRID_AFFINE, np.argwhere(brain).astype(float))) + 1
    return labels


def three_regions() -> np.ndarray:
    """Return spheres around the foci of `THREE_REGIONS` on the model grid, (96, 96, 96) int32 from 1."""
    brain = brain_on(MODEL_SPACE, MODEL_GRID_SHAPE, MODEL_GRID_AFFINE)
    points = apply(MODEL_GRID_AFFINE, np.moveaxis(np.indices(MODEL_GRID_SHAPE, dtype=np.float32), 0, -1))
    labels = np.zeros(MODEL_GRID_SHAPE, np.int32)
    for number, foci in enumerate(THREE_REGIONS.values(), start=1):
        for focus in foci:
            labels[brain & (np.linalg.norm(points - np.array(focus, np.float32), axis=-1) < RADIUS_MM)] = number
    return labels


def cohort_scans(name: str, folder: Path, sizes: Sizes, effects: DynamicEffects) -> list[DynamicCohortScan]:
    """Simulate the tables of a cohort, and return its scans."""
    plan = CohortPlan(seconds=sizes.seconds, effects=effects)
    if name == "traits":
        return dynamic_traits(folder, sizes.traits, plan)
    if name == "sessions":
        own = replace(effects, own=OWN_OF_SESSIONS)
        return dynamic_sessions(folder, sizes.sessions, replace(plan, seconds=sizes.session_seconds, effects=own))
    if name == "states":
        return dynamic_states(folder, sizes.states, plan)
    return dynamic_runs(folder, sizes.runs, replace(plan, seconds=80.0))


def make_cohort(name: str, work: Path, sizes: Sizes, effects: DynamicEffects) -> Dataset:
    """Simulate the scans of a cohort that are missing, and return them."""
    folder = work / name
    store = ClipStore(folder / "clips", NORMALISATION)
    for scan in cohort_scans(name, folder, sizes, effects):
        if scan.name not in store:
            made = scan.simulate()
            store.add(scan.name, made.series, scan.participant, scan.session, scan.labels, confounds=made.confounds)
    return Dataset(name, folder, [BlockScan(**vars(scan)) for scan in store])


def run(entry: Row, dataset: Dataset, models: dict[str, Model], repeats: int) -> dict[str, Evaluation]:
    """Evaluate a task; the key names the method that the evaluation's encoder or amplitudes stand for."""
    examples = label_scans([dataset], entry.target, dataset.path, EventRule(overlap=0.8))
    task = Task.from_values(entry.target.rpartition(":")[2], examples.data.values, entry.kind, 48)
    settings = EvaluateSettings(AdaptSettings("linear"), entry.folds, repeats=repeats, permutations=0)
    found = {ENCODER: evaluate(models[ENCODER], task, examples, settings, NORMALISATION, labels=region_labels())}
    amplitude = replace(settings, baselines=(AMPLITUDE,))
    found[THREE] = evaluate(models[ENCODER], task, examples, amplitude, NORMALISATION, labels=three_regions())
    for kind in models.keys() - {ENCODER}:
        found[kind] = evaluate(models[kind], task, examples, replace(settings, baselines=()), NORMALISATION)
    return found


def row(name: str, entry: Row, found: dict[str, Evaluation], columns: list[str]) -> str:
    """Return a row of the table."""
    whole = found[ENCODER]
    methods = {key: whole.methods[key] for key in whole.methods}
    methods |= {kind: found[kind].methods[ENCODER] for kind in (RANDOM, PUBLISHED) if kind in found}
    methods[THREE] = found[THREE].methods[AMPLITUDE]
    metric = whole.main_metric
    cells = []
    for column in columns:
        method = methods.get(column)
        value = method and "{:.3f} ({:.3f} to {:.3f})".format(method.metrics[metric], *method.intervals[metric])
        cells.append(value or "")
    relations = {TITLES[key]: whole.relation(key) for key in whole.methods if key != ENCODER}
    relations[TITLES[THREE]] = found[THREE].relation(AMPLITUDE)
    verdicts = [
        f"{verb} than {', '.join(names)}"
        for verb in ("worse", "better")
        if (names := [title for title, relation in relations.items() if f"is {verb} than" in relation])
    ]
    verdict = "; ".join(verdicts) or "none"
    highest = max((key for key in columns if key in methods), key=lambda key: methods[key].metrics[metric])
    n = f"{whole.facts['Participants']}, {whole.facts['Examples']}"
    return f"| {name} | {entry.effect} | {n} | {metric} | {' | '.join(cells)} | {TITLES[highest]} | {verdict} |"


def rule_features(scans: list[Scan]) -> np.ndarray:
    """Return the temporal SD of the three regions of scans, (scans, 3)."""
    labels = three_regions()
    return np.stack([parcel_series(scan, labels, 3)[0].std(axis=0) for scan in scans])


def apply_rule(sds: np.ndarray, threshold: float) -> np.ndarray:
    """Return the state of runs by a rule: the region whose SD is largest, or rest if it is not above a threshold.

    Parameters
    ----------
    sds : np.ndarray, (N, 3)
        Relative to the SD of single voxels.
    threshold : float
    """
    states = np.array(list(THREE_REGIONS))[sds.argmax(axis=1)]
    return np.where(sds.max(axis=1) > threshold, states, "rest")


def best_threshold(sds: np.ndarray, states: np.ndarray) -> float:
    """Return the threshold with the highest accuracy on these runs."""
    candidates = np.linspace(0.0, 1.0, 201)
    return float(candidates[np.argmax([(apply_rule(sds, t) == states).mean() for t in candidates])])


def earlier_runs(work: Path, participants: int) -> list[Scan]:
    """Simulate runs of the demonstration dataset on the model grid (`grid_scans`)."""
    store = ClipStore(work / "earlier", NORMALISATION)
    for number in range(participants):
        for state in STATES:
            name = f"sub-{number:03d}_task-{state}"
            if name not in store:
                series = simulated_series(state, 0, name, participant=(0, number))
                store.add(name, series, f"{number:03d}", labels={"state": state})
    return [BlockScan(**vars(scan)) for scan in store]


def adapter_states(model: Model, runs: list[Scan]) -> np.ndarray:
    """Return the states that the demonstration adapter predicts, with its encoder as that of block averages."""
    adapter = load_adapter(ADAPTER)
    adapter = replace(adapter, card=replace(adapter.card, encoder_sha256=model.weights_sha256))
    predictions = predict_scans(model, AdaptedModel(model, adapter), runs, 8)
    return np.array(adapter.card.labels)[predictions.argmax(axis=1)]


def report_rule(model: Model, runs: list[Scan], earlier: list[Scan]) -> None:
    """Print the accuracy of the fixed rule and of the demonstration adapter on these runs and those of `grid_scans`."""
    cohorts = {"runs of this benchmark": runs, "runs of grid_scans": earlier}
    states = {name: np.array([scan.labels["state"] for scan in scans]) for name, scans in cohorts.items()}
    sds = {name: rule_features(scans) for name, scans in cohorts.items()}
    fixed = best_threshold(sds["runs of grid_scans"], states["runs of grid_scans"])
    print("\n| runs of one state | runs | method | accuracy |\n" + "| --- " * 4 + "|")
    for name, scans in cohorts.items():
        own = best_threshold(sds[name], states[name])
        predictions = {
            f"three regions, rule with the best threshold on grid_scans ({fixed:.2f})": apply_rule(sds[name], fixed),
            f"three regions, rule with the best threshold on these runs ({own:.2f})": apply_rule(sds[name], own),
            "demonstration adapter as it is": adapter_states(model, scans),
        }
        for method, found in predictions.items():
            n_correct = int((found == states[name]).sum())
            low, high = binomtest(n_correct, len(scans)).proportion_ci(method="wilson")
            print(f"| {name} | {len(scans)} | {method} | {n_correct / len(scans):.3f} ({low:.3f} to {high:.3f}) |")


def real_series(folder: Path) -> dict[str, list[np.ndarray]]:
    """Read real regional time series, (T, R) each, without regions that are constant."""
    example = folder / "brainfc-rest01-schaefer100"
    series = np.loadtxt(example / "timeseries.tsv", skiprows=1)[5:]
    confounds = np.genfromtxt(example / "confounds.tsv", skip_header=1)[5:]
    with open(example / "confounds.tsv", newline="") as file:
        names = next(csv.reader(file, delimiter="\t"))
    keep = [k for k, name in enumerate(names) if name != "framewise_displacement"]
    trend = np.linspace(-1, 1, len(series))
    design = np.column_stack([np.ones(len(series)), trend, trend**2, confounds[:, keep]])
    design[:, 1:] = (design[:, 1:] - design[:, 1:].mean(axis=0)) / design[:, 1:].std(axis=0)
    clean = series - design @ np.linalg.lstsq(design, series, rcond=None)[0] + series.mean(axis=0)
    rest = [np.load(path)[:, 1:] for path in sorted((folder / "connattractor-rest-mist122").glob("*.npy"))]
    return {"brainfc, rest, 1 person": [clean], "connattractor, rest": rest}


def describe(runs: list[np.ndarray], networks: np.ndarray | None, pairs: list[tuple[int, int]]) -> list[str]:
    """Return cells about series: mean r, within and between networks, homologous r, and similarity of people."""
    usable = np.all([values.std(axis=0) > 0 for values in runs], axis=0)
    maps = np.array([np.corrcoef(np.where(usable, values, np.arange(len(values))[:, None]).T) for values in runs])
    upper = np.triu(np.outer(usable, usable), 1)
    cells = [f"{maps[:, upper].mean():.2f}"]
    if networks is None:
        cells += ["", ""]
    else:
        same = np.equal.outer(networks, networks)
        other = upper.copy()
        for a, b in pairs:
            other[a, b] = other[b, a] = False
        cells += [f"{maps[:, other & same].mean():.2f}", f"{maps[:, other & ~same].mean():.2f}"]
    cells.append(f"{np.mean([maps[:, a, b].mean() for a, b in pairs if usable[a] and usable[b]]):.2f}")
    between = np.corrcoef(maps[:, upper]) if len(runs) > 1 else None
    cells.append("" if between is None else f"{between[np.triu_indices(len(runs), 1)].mean():.2f}")
    return cells


def spectral_slope(values: np.ndarray, tr: float) -> float:
    """Return the slope of the logarithm of power over that of frequency from 0.02 to 0.1 Hz."""
    frequencies, power = welch(values, 1 / tr, nperseg=min(128, len(values)), axis=0, detrend="linear")
    band = (frequencies >= 0.02) & (frequencies <= 0.1)
    mean = (power / power.sum(axis=0)).mean(axis=1)
    return float(np.polyfit(np.log(frequencies[band]), np.log(mean[band]), 1)[0])


def report_real(folder: Path, n_vols: int = 145, tr: float = 2.0) -> None:
    """Print summaries of real and simulated regional time series."""
    real = real_series(folder)
    with open(folder / "brainfc-rest01-schaefer100" / "rois.tsv", newline="") as file:
        rois = list(csv.DictReader(file, delimiter="\t"))
    networks = np.array([roi["network"] for roi in rois])
    centres = np.array([[float(roi[axis]) for axis in "xyz"] for roi in rois])
    distance = np.linalg.norm((centres * [-1, 1, 1])[:, None] - centres[None], axis=2)
    near = [(k, int(distance[k].argmin())) for k in range(len(rois)) if abs(centres[k, 0]) > 8]
    brainfc = [(a, b) for a, b in near if a < b and distance[a, b] < 12]
    names = (folder / "connattractor-rest-mist122" / "columns.txt").read_text().split()[1:]
    mist = [(k, names.index("R" + n[1:])) for k, n in enumerate(names) if n[:2] == "L_" and "R" + n[1:] in names]
    models = [make_model(own_covariance(0, k), DynamicEffects().own) for k in range(8)]
    fine = [simulate_series(model, 8 * n_vols, tr / 8, rng_for(0, k, "real")) for k, model in enumerate(models)]
    simulated = [values.reshape(n_vols, 8, -1).mean(axis=1) for values in fine]
    own = [(k, k + PAIRS) for k in range(PAIRS)]
    print("| series | mean r | within | between | homologous | similarity of people | slope | SD, % |")
    print("| --- " * 8 + "|")
    rows = {
        "brainfc, rest, 1 person": (networks, brainfc, True),
        "connattractor, rest": (None, mist, False),
    }
    for name, (known, pairs, whole) in rows.items():
        cells = describe(real[name], known, pairs)
        values = real[name][0]
        if whole:  # the other series were filtered, and have no mean
            sd = float(np.median(values.std(axis=0) / values.mean(axis=0))) * 100
            cells += [f"{spectral_slope(values, tr):.2f}", f"{sd:.2f}"]
        else:
            cells += ["", ""]
        print(f"| {name} | {' | '.join(cells)} |")
    cells = describe(simulated, np.array(regions().networks), own)
    slope = np.mean([spectral_slope(values, tr) for values in simulated])
    sd = np.median(np.concatenate([values.std(axis=0) for values in simulated])) * 100
    print(f"| simulated, {len(simulated)} people | {' | '.join(cells)} | {slope:.2f} | {sd:.2f} |")


def main() -> None:
    """Run the benchmark and print its table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("tasks", nargs="*", metavar="TASK", help=f"some of {', '.join(ALL)} (default: all)")
    p.add_argument("--work", type=Path, default=Path("dynamics"), help="cohorts and encoders")
    p.add_argument("--quick", action="store_true", help="small cohorts, two repeats")
    p.add_argument("--published", action="store_true", help="also random weights of the published configuration (slow)")
    p.add_argument(
        "--real",
        type=Path,
        metavar="DIR",
        help="compare with real regional time series, and stop: folders brainfc-rest01-schaefer100 (of brainfc 0.5.1) "
        "and connattractor-rest-mist122 (of github pni-lab/connattractor)",
    )
    p.add_argument("--threads", type=int, default=1, help="threads of the encoder (default: %(default)s)")
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", UserWarning)  # of scikit-learn, about the size of strata
    if arguments.real:
        report_real(arguments.real)
        return
    unknown = sorted(set(arguments.tasks) - set(ALL))
    if unknown:
        p.error(f"unknown task: {', '.join(unknown)}")
    started = time.monotonic(), time.process_time()
    sizes = QUICK if arguments.quick else Sizes()
    work = arguments.work / ("quick" if arguments.quick else "full")
    work.mkdir(parents=True, exist_ok=True)
    kinds = [ENCODER, RANDOM, *([PUBLISHED] if arguments.published else [])]
    models = {kind: make_encoder(kind, work) for kind in kinds}
    columns = [name for name in TITLES if name != PUBLISHED or arguments.published]
    lines, runs = [], None
    for name in arguments.tasks or ALL:
        dataset = make_cohort(ALL[name].cohort, work, sizes, DynamicEffects())
        lines.append(row(name, ALL[name], run(ALL[name], dataset, models, sizes.repeats), columns))
        runs = dataset.scans if name == "runs" else runs
        print(f"{name}: {time.process_time() - started[1]:.0f} s of CPU time so far", flush=True)
    header = ["task", "effect in", "participants, examples", "metric", *(TITLES[c] for c in columns)]
    print(
        f"\n| {' | '.join([*header, 'highest', 'clear differences of the encoder'])} |\n"
        + "| --- " * (len(header) + 2)
        + "|"
    )
    print("\n".join(lines))
    if runs is not None:
        report_rule(models[ENCODER], runs, earlier_runs(work, sizes.earlier))
    wall, cpu = time.monotonic() - started[0], time.process_time() - started[1]
    print(f"\n{sizes}: {wall / 60:.1f} minutes, {cpu / 60:.1f} of CPU time")


if __name__ == "__main__":
    main()
