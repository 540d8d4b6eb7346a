"""Simulated cohorts with known effects, straight on the model grid: what training and evaluation are tried on.

A ball stands for the brain. Each voxel's signal is a baseline, changed by what is known of the participant, by what is
the participant's own, and by what goes on; every effect has a smooth map of its own. Nothing here looks like a brain:
the phantom is for that.

    P  participants      U  volumes at 0.8 s      V  voxels of the ball      E  effects
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
"""Of the ball, voxels."""
BASELINE = 1000.0
STATES = ("rest", "motor", "language", "memory")
GROUPS = ("control", "first", "second")
LAG_S = 4.0
"""By which the signal follows what goes on."""


@dataclass(frozen=True)
class Effects:
    """How strong effects are, in units of the baseline.

    Attributes
    ----------
    trait : float
        Of a standard deviation of age or score, of sex, and of a group.
    own : float
        What tells participants of the same traits apart.
    activity : float
        Of a state, or of an image with a vector of length 1.
    network, noise : float
        Slow fluctuations shared by neighbours, and each voxel's own.
    """

    trait: float = 0.03
    own: float = 0.03
    activity: float = 0.03
    network: float = 0.02
    noise: float = 0.05


@lru_cache(maxsize=1)
def ball() -> np.ndarray:
    """The mask, (96, 96, 96) bool."""
    axes = np.meshgrid(*(np.arange(n) - 47.5 for n in MODEL_GRID_SHAPE), indexing="ij")
    return sum(a**2 for a in axes) < RADIUS**2


@lru_cache(maxsize=256)
def smooth_map(*keys: int | str) -> np.ndarray:
    """A smooth random map of mean 0 and standard deviation 1, (V,) float32; the same keys give the same map."""
    noise = rng_for(*keys, "map").normal(size=[n // 4 for n in MODEL_GRID_SHAPE])
    smooth = gaussian_filter(noise, 1.5).repeat(4, 0).repeat(4, 1).repeat(4, 2)[ball()]
    return ((smooth - smooth.mean()) / smooth.std()).astype(np.float32)


@dataclass(frozen=True)
class Person:
    """What is known of a participant."""

    label: str
    age: float
    sex: str
    score: float
    group: str
    site: str

    @classmethod
    def draw(cls, seed: int, number: int) -> Person:
        """A participant by number."""
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
        """How the participant's baseline differs from all others', (V,)."""
        known = (
            (self.age - 50) / 17.3 * smooth_map("age")
            + (1.0 if self.sex == "M" else -1.0) * smooth_map("sex")
            + (self.score - 100) / 15 * smooth_map("score")
            + (smooth_map(self.group) * 1.5 if self.group != GROUPS[0] else 0.0)
        )
        return effects.trait * known + effects.own * smooth_map(seed, self.label)


@dataclass(frozen=True)
class CohortScan:
    """A scan of a cohort, simulated when it is asked for.

    Attributes
    ----------
    name : str
        Such as ``sub-001_ses-1_task-x``.
    participant, session : str
        Labels without prefix; the session may be empty.
    simulate : callable
        Gives the scan, a `GridSeries`.
    """

    name: str
    participant: str
    session: str
    simulate: Callable[[], GridSeries]


def simulate(
    person: Person, seed: int, n_vols: int, effects: Effects, session: str = "", activity: np.ndarray | None = None
) -> GridSeries:
    """One scan.

    Parameters
    ----------
    activity : np.ndarray, optional, (U, V)
        What goes on, in units of the baseline.
    """
    rng = rng_for(seed, person.label, session, "scan")
    values = effects.noise * rng.standard_normal((n_vols, int(ball().sum())), dtype=np.float32)
    for k in range(4):
        course = gaussian_filter(rng.normal(size=n_vols + 20), 3.0)[10:-10]
        values += effects.network * (course / course.std())[:, None].astype(np.float32) * smooth_map("network", k)
    values += 1 + person.pattern(seed, effects)
    if activity is not None:
        values += activity
    return GridSeries(BASELINE * values, ball(), MODEL_TR)


def block_design(seed: int, person: Person, blocks: int, seconds: float = 24.0) -> list[tuple[float, float, str]]:
    """Onset, duration and state of blocks without pauses, each state as often as the others."""
    order = np.concatenate([rng_for(seed, person.label, k, "order").permutation(len(STATES)) for k in range(blocks)])
    return [(i * seconds, seconds, STATES[k]) for i, k in enumerate(order)]


def state_activity(events: list[tuple[float, float, str]], n_vols: int, effects: Effects) -> np.ndarray:
    """The signal of blocks, (U, V)."""
    return _activity(events, lambda state: smooth_map("state", state), n_vols, effects)


def image_activity(
    events: list[tuple[float, float, str]], vectors: dict[str, np.ndarray], n_vols: int, effects: Effects
) -> np.ndarray:
    """The signal of images that are shown, by their vectors, (U, V)."""

    def pattern(name: str) -> np.ndarray:
        return np.sum([float(x) * smooth_map("image", k) for k, x in enumerate(vectors[name])], axis=0)

    return _activity(events, pattern, n_vols, effects)


def _activity(
    events: list[tuple[float, float, str]], pattern: Callable[[str], np.ndarray], n_vols: int, effects: Effects
) -> np.ndarray:
    """The signal of events whose kinds have patterns (V,), (U, V)."""
    times = MODEL_TR * np.arange(n_vols) - LAG_S
    activity = np.zeros((n_vols, int(ball().sum())), np.float32)
    for onset, duration, kind in events:
        activity[(times >= onset) & (times < onset + duration)] += effects.activity * pattern(kind)
    return activity


def write_tables(folder: Path, people: list[Person]) -> None:
    """A raw dataset's tables: ``participants.tsv``, and the score in ``phenotype/``."""
    rows = {"participant_id": [f"sub-{p.label}" for p in people]}
    columns = ("age", "sex", "group", "site")
    write_tsv(folder / "participants.tsv", rows | {name: [getattr(p, name) for p in people] for name in columns})
    write_tsv(folder / "phenotype" / "test.tsv", rows | {"score": [p.score for p in people]})
    write_json(folder / "dataset_description.json", {"Name": "simulated", "BIDSVersion": "1.10.0"})


def _write_events(folder: Path, person: Person, events: list[tuple[float, float, str]], column: str) -> None:
    path = folder / f"sub-{person.label}" / "func" / f"sub-{person.label}_task-x_events.tsv"
    write_text(path, f"onset\tduration\t{column}\n" + "".join(f"{a}\t{b}\t{c}\n" for a, b, c in events))


def traits_cohort(
    folder: Path, participants: int, sessions: int = 1, clips: int = 2, seed: int = 0, effects: Effects | None = None
) -> list[CohortScan]:
    """People with age, sex, score and group, and one scan a session.

    Parameters
    ----------
    folder : Path
        Gets the tables of a raw dataset.
    clips : int
        Of a scan.
    """
    effects = effects or Effects()
    scans = []
    for person in _people(folder, participants, seed):
        for number in range(sessions):
            session = f"{number + 1}" if sessions > 1 else ""
            name = f"sub-{person.label}" + (f"_ses-{session}" if session else "") + "_task-x"
            scan = partial(simulate, person, seed, clips * CLIP_VOLUMES, effects, session)
            scans.append(CohortScan(name, person.label, session, scan))
    return scans


def states_cohort(
    folder: Path, participants: int, blocks: int = 2, seed: int = 1, effects: Effects | None = None
) -> list[CohortScan]:
    """People in blocks of four states; ``folder`` gets tables and events."""
    effects = effects or Effects()
    scans = []
    for person in _people(folder, participants, seed):
        events = block_design(seed, person, blocks)
        _write_events(folder, person, events, "trial_type")
        n_vols = round((events[-1][0] + events[-1][1] + LAG_S) / MODEL_TR)
        activity = partial(state_activity, events, n_vols, effects)
        scans.append(_active_scan(person, seed, n_vols, effects, activity))
    return scans


def images_cohort(
    folder: Path, participants: int, images: int, dimensions: int = 6, seed: int = 2, effects: Effects | None = None
) -> list[CohortScan]:
    """People who are shown images for a clip's length each; ``folder`` gets tables, events and ``images.tsv``."""
    effects = effects or Effects()
    people = _people(folder, participants, seed)
    rng = rng_for(seed, "images")
    drawn = rng.normal(size=(images, dimensions))
    vectors = {f"images/{k:03d}.png": row / np.linalg.norm(row) for k, row in enumerate(drawn)}
    columns = {f"x{k}": [row[k] for row in vectors.values()] for k in range(dimensions)}
    write_tsv(folder / "images.tsv", {"stim_file": list(vectors), **columns})
    duration = CLIP_VOLUMES * MODEL_TR
    n_vols = images * CLIP_VOLUMES + round(LAG_S / MODEL_TR)
    scans = []
    for person in people:
        order = rng_for(seed, person.label, "order").permutation(images)
        events = [(i * duration, duration, list(vectors)[k]) for i, k in enumerate(order)]
        _write_events(folder, person, events, "stim_file")
        activity = partial(image_activity, events, vectors, n_vols, effects)
        scans.append(_active_scan(person, seed, n_vols, effects, activity))
    return scans


def _people(folder: Path, participants: int, seed: int) -> list[Person]:
    """A cohort's participants, and the tables that say what is known of them."""
    people = [Person.draw(seed, number) for number in range(participants)]
    write_tables(folder, people)
    return people


def _active_scan(
    person: Person, seed: int, n_vols: int, effects: Effects, activity: Callable[[], np.ndarray]
) -> CohortScan:
    """A participant's only scan, in which something goes on."""

    def scan() -> GridSeries:
        return simulate(person, seed, n_vols, effects, activity=activity())

    return CohortScan(f"sub-{person.label}_task-x", person.label, "", scan)
