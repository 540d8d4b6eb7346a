"""A state decoded from a real run: blocks of a task against baseline, by a linear head in leave-one-block-out.

    python benchmarks/decode.py DATASET --roi ROI.nii...    # a BIDS dataset of one run with events of one condition
    python benchmarks/decode.py DATASET --keep FOLDER       # keeps outputs and scratch folder, and reads those there

The command processes the run from raw files. All methods are decoded from the series on the model grid that the encoder
reads, at two resolutions:

- clips: one clip (16 s) per block and one per baseline, starting `DELAY` s after their onsets (BOLD lags behind);
- volumes: the tokens of each volume (0.8 s) of the clips that the command encodes, which start at the run's beginning.

Methods: embeddings (mean over all tokens, as the command writes them) and tokens (mean over time only), under both
normalisations; the same of encoders with random weights; the mean image (cubes of 12 mm); the mean of each region of
interest, in the run's own space; functional connectivity (correlations of cubes of 24 mm, clips only); head motion.

For each block, a ridge classifier is trained on all examples that share no volume with the block and the baselines
around it, and tested on those. AUC and balanced accuracy are means over the blocks, with 95 % bootstrap intervals over
blocks. p is that of the AUC among random designs: labels of clips exchanged, or blocks of volumes placed at random.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from nibabel.processing import resample_from_to
from real_scans import process
from scipy.stats import rankdata

from bids_app.clips import CLIP_VOLUMES, MODEL_TR, NORMALISATIONS, ClipReader, GridSeries
from bids_app.model.api import load_model
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.training.data.labels import EventRule, read_events
from bids_app.training.evaluation.baselines import BLOCK_VOXELS, CUBE_VOXELS, MIN_PARCEL_VOXELS, cube_labels

DELAY = EventRule().delay
"""Delay of the BOLD response, s, as in `neurostorm-train`."""
CLIP_SECONDS = CLIP_VOLUMES * MODEL_TR
MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "framewise_displacement")
SEEDS = 3
"""Encoders with random weights."""
DRAWS = 2000
"""Bootstrap samples, and random designs."""


@dataclass(frozen=True)
class Design:
    """Examples of a run in time.

    Attributes
    ----------
    times : numpy.ndarray, (N,)
        Centres, s.
    labels : numpy.ndarray of bool, (N,)
        True in blocks.
    folds : tuple of (train, test), numpy.ndarray of bool, (N,) each
        One for each block.
    """

    times: np.ndarray
    labels: np.ndarray
    folds: tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclass(frozen=True)
class Decoded:
    """AUC and balanced accuracy of each block, (K,) each, and p value of the mean AUC."""

    auc: np.ndarray
    accuracy: np.ndarray
    p: float


def make_folds(
    times: np.ndarray, centres: Sequence[float], reach: float, margin: float
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return a fold per block: examples within ``reach`` s of its centre are tested, those ``margin`` s away train."""
    offsets = [times - centre for centre in centres]
    return tuple((np.abs(at) > reach + margin, (at >= -reach) & (at < reach)) for at in offsets)


def fit_and_score(features: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the matrix (n_test, n_train) that maps training labels, -1 and 1, to scores of a ridge classifier.

    Features are standardised on the training set. The penalty is the number of features, i.e. the expected squared
    length of an example, so no parameter is selected.
    """
    mean, std = features[train].mean(axis=0), features[train].std(axis=0)
    varies = std > 1e-9 * np.abs(features).max(axis=0, initial=1e-9)
    x, x_test = ((features[rows][:, varies] - mean[varies]) / std[varies] for rows in (train, test))
    n = len(x)
    kernel = x @ x.T + max(x.shape[1], 1) * np.eye(n)
    weights = np.linalg.solve(kernel, x @ x_test.T).T
    centre = np.eye(n) - 1 / n
    return weights @ centre + 1 / n


def decode(features: np.ndarray, design: Design, others: np.ndarray) -> Decoded:
    """Decode blocks from baseline, one block left out at a time.

    Parameters
    ----------
    features : numpy.ndarray, (N, F)
    design : Design
    others : numpy.ndarray of bool, (P, N)
        Labels of random designs.
    """
    maps = [(fit_and_score(features, train, test), train, test) for train, test in design.folds]
    auc, accuracy = (values[:, 0] for values in measure_blocks(maps, design.labels[None]))
    null = np.nanmean(measure_blocks(maps, others)[0], axis=0)
    p = (1 + (null >= auc.mean() - 1e-12).sum()) / (1 + len(null))
    return Decoded(auc, accuracy, float(p))


def measure_blocks(
    maps: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute AUC and balanced accuracy of each block and design, (K, P); NaN where a block has one label only."""
    auc, accuracy = np.full((2, len(maps), len(labels)), np.nan)
    for k, (matrix, train, test) in enumerate(maps):
        scores = matrix @ np.where(labels[:, train], 1.0, -1.0).T  # (n_test, P)
        truth = labels[:, test].T
        n_true, n_false = truth.sum(axis=0), (~truth).sum(axis=0)
        both = (n_true > 0) & (n_false > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            ranks = (rankdata(scores, axis=0) * truth).sum(axis=0)
            found = (ranks - n_true * (n_true + 1) / 2) / (n_true * n_false)
            right = ((scores > 0) & truth).sum(axis=0) / n_true + ((scores <= 0) & ~truth).sum(axis=0) / n_false
        auc[k, both], accuracy[k, both] = found[both], right[both] / 2
    return auc, accuracy


def interval(values: np.ndarray, draws: int = DRAWS) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over blocks."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (draws, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def random_blocks(times: np.ndarray, n_blocks: int, duration: float, n_designs: int) -> np.ndarray:
    """Place blocks at random with gaps of any length between them; labels (P, N)."""
    rng = np.random.default_rng(0)
    start, stop = times[0], times[-1] - n_blocks * duration
    found = np.zeros((n_designs, len(times)), bool)
    for labels in found:
        onsets = np.sort(rng.uniform(start, stop, n_blocks)) + duration * np.arange(n_blocks)
        for onset in onsets:
            labels |= (times >= onset) & (times < onset + duration)
    return found


class Run:
    """A processed run: its series on the model grid and its events.

    Parameters
    ----------
    out, work : pathlib.Path
        Output and scratch folders of the command.
    events : list of (onset, duration)
    """

    def __init__(self, out: Path, work: Path, events: Sequence[tuple[float, float]]) -> None:
        self.out, self.events = out, list(events)
        (meta,) = work.rglob("meta.json")
        self.series = GridSeries.open(meta.parent)
        self.reader = ClipReader(self.series)
        self.n_volumes = self.reader.n_clips * CLIP_VOLUMES  # those that the command encodes

    def at_volumes(self, rows: np.ndarray) -> np.ndarray:
        """Interpolate rows at the run's repetition time, (T, F), to 0.8 s, (U, F)."""
        return self.reader.time.sample(lambda a, b: rows[a:b], 0, self.reader.time.n_out)

    @property
    def times(self) -> np.ndarray:
        """Centres of the volumes at 0.8 s, (U,) s."""
        return self.series.start + MODEL_TR * (np.arange(self.reader.time.n_out) + 0.5)

    @property
    def centres(self) -> list[float]:
        """Centres of the blocks, with the delay, s."""
        return [onset + duration / 2 + DELAY for onset, duration in self.events]

    def clips(self) -> tuple[np.ndarray, Design]:
        """Return first volumes and design of a clip per block, and of one in the baseline before each and the last."""
        pauses = [start for start, _ in self.baselines()]
        starts = sorted([(onset, True) for onset, _ in self.events] + [(start, False) for start in pauses])
        first = np.array([round((start + DELAY - self.series.start) / MODEL_TR) for start, _ in starts])
        inside = (first >= 0) & (first <= self.reader.time.n_out - CLIP_VOLUMES)
        first, labels = first[inside], np.array([label for _, label in starts])[inside]
        times = self.series.start + MODEL_TR * (first + CLIP_VOLUMES / 2)
        centres = times[labels]
        reach = max(np.abs(times[~labels][:, None] - centres).min(axis=1)) + 1
        return first, Design(times, labels, make_folds(times, centres, reach, CLIP_SECONDS))

    def volumes(self) -> Design:
        """Return the design of all volumes that the command encodes."""
        times = self.times[: self.n_volumes]
        labels = np.zeros(len(times), bool)
        for onset, duration in self.events:
            labels |= (times >= onset + DELAY) & (times < onset + DELAY + duration)
        reach = np.diff(self.centres).min() / 2
        return Design(times, labels, make_folds(times, self.centres, reach, CLIP_SECONDS))

    def baselines(self) -> Iterator[tuple[float, float]]:
        """Yield onset and duration of the baselines, of at most the duration of a block."""
        duration = self.events[0][1]
        yield self.events[0][0] - duration, duration
        for (onset, length), following in zip(self.events, [*self.events[1:], (np.inf, 0.0)], strict=True):
            yield onset + length, min(following[0] - onset - length, duration)

    def cubes(self, edge: int) -> np.ndarray:
        """Compute means of cubes of z-scored voxels, (U, cubes)."""
        label = cube_labels(edge)[self.series.mask]
        counts = np.bincount(label)
        used = np.flatnonzero(counts >= MIN_PARCEL_VOXELS)
        used = used[used > 0]
        rows = self.reader.normalisation("voxel")
        found = np.empty((self.reader.time.n_out, len(used)))
        for k in range(len(found)):
            (values,) = self.reader.time.sample(self.series.rows, k, k + 1)
            found[k] = np.bincount(label, (values - rows.shift) / rows.scale)[used] / counts[used]
        return found

    def regions(self, paths: Sequence[Path]) -> np.ndarray:
        """Read the mean signal of each region in the run's own space, (U, regions)."""
        (path,) = (p for p in self.out.glob("sub-*/**/*_desc-preproc_bold.nii.gz") if "_space-" not in p.name)
        image = nib.nifti1.Nifti1Image.from_filename(path)
        values = np.asarray(image.dataobj, np.float32)[..., -self.series.n_vols :]
        masks = [resample_from_to(nib.load(p), (image.shape[:3], image.affine), order=0) for p in paths]
        return self.at_volumes(np.stack([values[np.asarray(m.dataobj) > 0].mean(axis=0) for m in masks], axis=1))

    def motion(self) -> np.ndarray:
        """Read the head motion, (U, 7)."""
        (path,) = self.out.glob("sub-*/**/*_desc-confounds_timeseries.tsv")
        rows = pd.read_csv(path, sep="\t")[list(MOTION)].fillna(0).to_numpy()
        return self.at_volumes(rows[-self.series.n_vols :])


@torch.inference_mode()
def encode(
    encoders: Sequence[Encoder], reader: ClipReader, first: Iterable[int], normalisation: str
) -> list[np.ndarray]:
    """Encode clips that start at volumes ``first``; (clips, T, tokens of a volume, C) for each encoder."""
    rows: list[list[np.ndarray]] = [[] for _ in encoders]
    for start in first:
        clip = reader.volumes(start, start + CLIP_VOLUMES, normalisation)[None, None]
        for found, encoder in zip(rows, encoders, strict=True):
            (features,) = encoder(clip)  # (C, X, Y, Z, T)
            found.append(features.flatten(1, 3).permute(2, 1, 0).numpy())
    return [np.stack(found) for found in rows]


def features_of_encoders(
    encoders: Sequence[Encoder], run: Run, first: np.ndarray
) -> Iterator[tuple[int, str, np.ndarray, np.ndarray]]:
    """Yield index of the encoder, and name, features of clips and features of volumes under each normalisation."""
    for name in NORMALISATIONS:
        of_clips = encode(encoders, run.reader, first.tolist(), name)
        of_volumes = encode(encoders, run.reader, range(0, run.n_volumes, CLIP_VOLUMES), name)
        for index, (clips, blocks) in enumerate(zip(of_clips, of_volumes, strict=True)):
            volumes = blocks.reshape(-1, *blocks.shape[2:])
            yield index, f"embeddings, {name}", clips.mean(axis=(1, 2)), volumes.mean(axis=1)
            yield (
                index,
                f"tokens, {name}",
                clips.mean(axis=1).reshape(len(clips), -1),
                volumes.reshape(len(volumes), -1),
            )


def random_encoder(config: EncoderConfig, seed: int) -> Encoder:
    """Make an encoder with the random weights with which pre-training starts."""
    torch.manual_seed(seed)
    return Encoder(config).eval()


def connectivity(cubes: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Compute the correlations between cubes in each clip, (clips, pairs)."""
    upper = np.triu_indices(cubes.shape[1], 1)
    return np.stack([np.nan_to_num(np.corrcoef(cubes[k : k + CLIP_VOLUMES].T))[upper] for k in first])


def methods(run: Run, model: str, rois: Sequence[Path], first: np.ndarray) -> Iterator[tuple[str, list, list]]:
    """Yield name, and features of clips and of volumes (a list: several encoders) of each method."""

    def per_volume(rows: np.ndarray) -> tuple[list, list]:
        return [np.stack([rows[k : k + CLIP_VOLUMES].mean(axis=0) for k in first])], [rows[: run.n_volumes]]

    yield "mean image", *per_volume(run.cubes(BLOCK_VOXELS))
    if rois:
        yield f"regions ({len(rois)})", *per_volume(run.regions(rois))
    yield "functional connectivity", [connectivity(run.cubes(CUBE_VOXELS), first)], []
    yield "head motion", *per_volume(run.motion())
    loaded = load_model(model)
    sizes = {f"random, {model}'s size": loaded.config, "random, published size": EncoderConfig()}
    random = [(label, random_encoder(config, seed)) for label, config in sizes.items() for seed in range(SEEDS)]
    labels, encoders = zip((model, loaded.encoder), *random, strict=True)
    found: dict[str, tuple[list, list]] = {}
    for index, name, clips, volumes in features_of_encoders(encoders, run, first):
        of_clips, of_volumes = found.setdefault(f"{labels[index]}: {name}", ([], []))
        of_clips.append(clips)
        of_volumes.append(volumes)
    yield from ((name, *found[name]) for name in sorted(found, key=lambda name: labels.index(name.partition(":")[0])))


def cells(decoded: Sequence[Decoded]) -> str:
    """Format AUC, balanced accuracy and p; with several encoders, means over them and the range of p."""
    if not decoded:
        return "| | | "
    texts = []
    for name in ("auc", "accuracy"):
        values = np.mean([getattr(d, name) for d in decoded], axis=0)
        low, high = interval(values)
        texts.append(f"{values.mean():.3f} ({low:.3f} to {high:.3f})")
    ps = sorted({f"{d.p:.3g}" for d in decoded}, key=float)
    return f"| {' | '.join(texts)} | {ps[0] if len(ps) == 1 else f'{ps[0]} to {ps[-1]}'} "


def main() -> int:
    """Process the run, decode it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--roi", type=Path, nargs="+", default=[], help="regions in the space of the run")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="folder for outputs and scratch folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out, work = ((options.keep or Path(scratch)) / name for name in ("out", "work"))
        if not any(out.glob("sub-*/log/*/summary.json")):
            print(process(options.dataset, out, work, options.model, "--output-spaces", "func"), flush=True)
        (table,) = options.dataset.glob("sub-*/**/*_events.tsv")
        run = Run(out, work, [(onset, duration) for onset, duration, _ in read_events(table, "trial_type")])
        first, clips = run.clips()
        volumes = run.volumes()
        rng = np.random.default_rng(0)
        shuffled = np.stack([rng.permutation(clips.labels) for _ in range(DRAWS)])
        placed = random_blocks(volumes.times, len(run.events), run.events[0][1], DRAWS)
        print(
            f"{len(run.events)} blocks; {len(first)} clips, {clips.labels.sum()} of blocks; "
            f"{len(volumes.times)} volumes\n\n"
            "| method | AUC, clips | balanced accuracy | p | AUC, volumes | balanced accuracy | p |\n|" + " --- |" * 7
        )
        for name, of_clips, of_volumes in methods(run, options.model, options.roi, first):
            found = [decode(x, clips, shuffled) for x in of_clips], [decode(x, volumes, placed) for x in of_volumes]
            print(f"| {name} {cells(found[0])}{cells(found[1])}|", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
