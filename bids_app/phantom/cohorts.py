"""Simulated cohorts with known effects on the model grid, to test training and evaluation.

The brain is a sphere. Each voxel's signal is a baseline plus effects of the participant's traits, of individual
variability and of task events; each effect has a smooth spatial map. For realistic brains, use `grid_scans`; for
effects that are not in the mean image, `dynamic_cohorts`.

    P  participants      U  volumes at 0.8 s      V  voxels of the sphere      E  effects
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from bids_app.bids.writer import write_json, write_text, write_tsv
from bids_app.clips import CLIP_VOLUMES, MODEL_GRID_SHAPE, MODEL_TR, GridSeries
from bids_app.phantom.geometry import rng_for

RADIUS = 24
"""Radius of the sphere, voxels."""
BASELINE = 1000.0
STATES = ("rest", "motor", "language", "memory")
GROUPS = ("control", "first", "second")
LAG_S = 4.0
"""Delay of the signal after an event, s."""


@dataclass(frozen=True)
class Effects:
    """Effect sizes in units of the baseline.

    Attributes
    ----------
    trait : float
        Effect of one standard deviation of age or score, of sex, and of a group.
    own : float
        Individual variability between participants with the same traits.
    activity : float
        Effect of a state, or of an image with a feature vector of length 1.
    network, noise : float
        Slow fluctuations shared by neighbouring voxels, and independent noise of each voxel.
    """

    trait: float = 0.03
    own: float = 0.03
    activity: float = 0.03
    network: float = 0.02
    noise: float = 0.05


@lru_cache(maxsize=1)
def ball() -> np.ndarray:
    """Return the mask of the sphere, (96, 96, 96) bool."""
    axes = np.meshgrid(*(np.arange(n) - 47.5 for n in MODEL_GRID_SHAPE), indexing="ij")
    return sum(a**2 for a in axes) < RADIUS**2


@lru_cache(maxsize=256)
def smooth_map(*keys: int | str) -> np.ndarray:
    """Simulate a smooth map of mean 0 and standard deviation 1, (V,) float32; the same keys give the same map."""
    noise = rng_for(*keys, "map").normal(size=[n // 4 for n in MODEL_GRID_SHAPE])
    smooth = gaussian_filter(noise, 1.5).repeat(4, 0).repeat(4, 1).repeat(4, 2)[ball()]
    return ((smooth - smooth.mean()) / smooth.std()).astype(np.float32)


@dataclass(frozen=True)
class Participant:
    """A simulated participant's traits."""

    label: str
    age: float
    sex: str
    score: float
    group: str
    site: str

    @classmethod
    def random(cls, seed: int, number: int) -> Participant:
        """Simulate the traits of participant ``number``."""
        rng = rng_for(seed, number, "person")
        return cls(
            label=f"{number:03d}",
            age=round(float(rng.uniform(20, 80)), 1),
            sex="FM"[int(rng.integers(2))],
            score=round(float(rng.normal(100, 15)), 1),
            group=GROUPS[int(rng.integers(3))],
            site=("north", "south")[int(rng.integers(2))],
        )

    def pattern(self, seed: int, effects: Effects) -> np.ndarray:
        """Return the participant's deviation from the baseline, (V,)."""
        known = (
            (self.age - 50) / 17.3 * smooth_map("age")
            + (1.0 if self.sex == "M" else -1.0) * smooth_map("sex")
            + (self.score - 100) / 15 * smooth_map("score")
            + (smooth_map(self.group) * 1.5 if self.group != GROUPS[0] else 0.0)
        )
        return effects.trait * known + effects.own * smooth_map(seed, self.label)


@dataclass(frozen=True)
class CohortScan:
    """A scan of a cohort, simulated on demand.

    Attributes
    ----------
    name : str
        For example ``sub-001_ses-1_task-x``.
    participant, session : str
        Labels without prefix; the session may be empty.
    simulate : callable
        Returns the scan, a `GridSeries`.
    """

    name: str
    participant: str
    session: str
    simulate: Callable[[], GridSeries]


def simulate(
    participant: Participant,
    seed: int,
    n_vols: int,
    effects: Effects,
    session: str = "",
    activity: np.ndarray | None = None,
) -> GridSeries:
    """Simulate one scan.

    Parameters
    ----------
    activity : np.ndarray, optional, (U, V)
        Signal change by events, in units of the baseline.
    """
    rng = rng_for(seed, participant.label, session, "scan")
    values = effects.noise * rng.standard_normal((n_vols, int(ball().sum())), dtype=np.float32)
    for k in range(4):
        course = gaussian_filter(rng.normal(size=n_vols + 20), 3.0)[10:-10]
        values += effects.network * (course / course.std())[:, None].astype(np.float32) * smooth_map("network", k)
    values += 1 + participant.pattern(seed, effects)
    if activity is not None:
        values += activity
    return GridSeries(BASELINE * values, ball(), MODEL_TR)


def block_design(
    seed: int, participant: Participant, blocks: int, seconds: float = 24.0
) -> list[tuple[float, float, str]]:
    """Return onset, duration and state of consecutive blocks, balanced over states."""
    order = np.concatenate(
        [rng_for(seed, participant.label, k, "order").permutation(len(STATES)) for k in range(blocks)]
    )
    return [(i * seconds, seconds, STATES[k]) for i, k in enumerate(order)]


def state_activity(events: list[tuple[float, float, str]], n_vols: int, effects: Effects) -> np.ndarray:
    """Compute the signal change by state blocks, (U, V)."""
    return _activity(events, lambda state: smooth_map("state", state), n_vols, effects)


def image_activity(
    events: list[tuple[float, float, str]], vectors: dict[str, np.ndarray], n_vols: int, effects: Effects
) -> np.ndarray:
    """Compute the signal change by presented images from their feature vectors, (U, V)."""

    def pattern(name: str) -> np.ndarray:
        return np.sum([float(x) * smooth_map("image", k) for k, x in enumerate(vectors[name])], axis=0)

    return _activity(events, pattern, n_vols, effects)


def _activity(
    events: list[tuple[float, float, str]], pattern: Callable[[str], np.ndarray], n_vols: int, effects: Effects
) -> np.ndarray:
    """Compute the signal change (U, V) by events; ``pattern`` maps an event type to (V,)."""
    times = MODEL_TR * np.arange(n_vols) - LAG_S
    activity = np.zeros((n_vols, int(ball().sum())), np.float32)
    for onset, duration, kind in events:
        activity[(times >= onset) & (times < onset + duration)] += effects.activity * pattern(kind)
    return activity


def write_tables(folder: Path, people: list[Participant]) -> None:
    """Write the tables of a raw dataset: ``participants.tsv``, and the score in ``phenotype/``."""
    rows = {"participant_id": [f"sub-{p.label}" for p in people]}
    columns = ("age", "sex", "group", "site")
    write_tsv(folder / "participants.tsv", rows | {name: [getattr(p, name) for p in people] for name in columns})
    write_tsv(folder / "phenotype" / "test.tsv", rows | {"score": [p.score for p in people]})
    write_json(folder / "dataset_description.json", {"Name": "simulated", "BIDSVersion": "1.10.0"})


def _write_events(folder: Path, participant: Participant, events: list[tuple[float, float, str]], column: str) -> None:
    path = folder / f"sub-{participant.label}" / "func" / f"sub-{participant.label}_task-x_events.tsv"
    write_text(path, f"onset\tduration\t{column}\n" + "".join(f"{a}\t{b}\t{c}\n" for a, b, c in events))


def traits_cohort(
    folder: Path, participants: int, sessions: int = 1, clips: int = 2, seed: int = 0, effects: Effects | None = None
) -> list[CohortScan]:
    """Simulate participants with age, sex, score and group, and one scan per session.

    Parameters
    ----------
    folder : Path
        Where the tables of a raw dataset are written.
    clips : int
        Clips per scan.
    """
    effects = effects or Effects()
    scans = []
    for participant in _people(folder, participants, seed):
        for number in range(sessions):
            session = f"{number + 1}" if sessions > 1 else ""
            name = f"sub-{participant.label}" + (f"_ses-{session}" if session else "") + "_task-x"
            scan = partial(simulate, participant, seed, clips * CLIP_VOLUMES, effects, session)
            scans.append(CohortScan(name, participant.label, session, scan))
    return scans


def states_cohort(
    folder: Path, participants: int, blocks: int = 2, seed: int = 1, effects: Effects | None = None
) -> list[CohortScan]:
    """Simulate participants in blocks of four states; write tables and events into ``folder``."""
    effects = effects or Effects()
    scans = []
    for participant in _people(folder, participants, seed):
        events = block_design(seed, participant, blocks)
        _write_events(folder, participant, events, "trial_type")
        n_vols = round((events[-1][0] + events[-1][1] + LAG_S) / MODEL_TR)
        activity = partial(state_activity, events, n_vols, effects)
        scans.append(_active_scan(participant, seed, n_vols, effects, activity))
    return scans


def images_cohort(
    folder: Path, participants: int, images: int, dimensions: int = 6, seed: int = 2, effects: Effects | None = None
) -> list[CohortScan]:
    """Simulate participants who view images, one per clip; write tables, events and ``images.tsv`` into ``folder``."""
    effects = effects or Effects()
    people = _people(folder, participants, seed)
    rng = rng_for(seed, "images")
    features = rng.normal(size=(images, dimensions))
    vectors = {f"images/{k:03d}.png": row / np.linalg.norm(row) for k, row in enumerate(features)}
    columns = {f"x{k}": [row[k] for row in vectors.values()] for k in range(dimensions)}
    write_tsv(folder / "images.tsv", {"stim_file": list(vectors), **columns})
    duration = CLIP_VOLUMES * MODEL_TR
    n_vols = images * CLIP_VOLUMES + round(LAG_S / MODEL_TR)
    scans = []
    for participant in people:
        order = rng_for(seed, participant.label, "order").permutation(images)
        events = [(i * duration, duration, list(vectors)[k]) for i, k in enumerate(order)]
        _write_events(folder, participant, events, "stim_file")
        activity = partial(image_activity, events, vectors, n_vols, effects)
        scans.append(_active_scan(participant, seed, n_vols, effects, activity))
    return scans


def _people(folder: Path, participants: int, seed: int) -> list[Participant]:
    """Simulate a cohort's participants and write their tables."""
    people = [Participant.random(seed, number) for number in range(participants)]
    write_tables(folder, people)
    return people


def _active_scan(
    participant: Participant, seed: int, n_vols: int, effects: Effects, activity: Callable[[], np.ndarray]
) -> CohortScan:
    """Return a participant's only scan, with task activity."""

    def scan() -> GridSeries:
        return simulate(participant, seed, n_vols, effects, activity=activity())

    return CohortScan(f"sub-{participant.label}_task-x", participant.label, "", scan)
