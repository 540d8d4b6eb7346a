"""Simulated brain activity: four task states, spontaneous network fluctuations, and physiological noise.

Coordinates are template mm; time courses have one value per volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, stats

from bids_app.errors import UsageError


@dataclass(frozen=True)
class Focus:
    """An activation focus: centre (template mm), standard deviation (mm), gain relative to the state's amplitude."""

    centre: tuple[float, float, float]
    sigma_mm: float = 9.0
    gain: float = 1.0


def _hand(side: int) -> tuple[Focus, ...]:
    """Return the foci of one hand's movement; ``side`` is -1 for the left hand and +1 for the right (the sign of x)."""
    return (
        Focus((-side * 38.0, -24.0, 57.0), 10.0),  # contralateral hand knob
        Focus((-side * 44.0, -28.0, 46.0), 8.0, 0.6),
        Focus((-side * 5.0, -8.0, 56.0), 7.0, 0.5),  # supplementary motor area
        Focus((side * 20.0, -52.0, -22.0), 8.0, 0.6),  # ipsilateral cerebellum
        Focus((-side * 26.0, -6.0, 4.0), 6.0, 0.3),  # putamen
        Focus((side * 38.0, -24.0, 57.0), 9.0, -0.2),  # ipsilateral deactivation
    )


STATES: dict[str, tuple[Focus, ...]] = {
    "rest": (),
    "lefthand": _hand(-1),
    "righthand": _hand(+1),
    "visual": (
        Focus((-11.0, -86.0, 3.0), 12.0),
        Focus((11.0, -86.0, 3.0), 12.0),
        Focus((-30.0, -82.0, 2.0), 9.0, 0.6),
        Focus((30.0, -82.0, 2.0), 9.0, 0.6),
    ),
}
"""Task states of simulated runs and their activation foci; the names are also the BIDS task labels."""

NETWORKS: dict[str, tuple[Focus, ...]] = {
    "sensorimotor": (
        Focus((-40.0, -22.0, 54.0), 12.0),
        Focus((40.0, -22.0, 54.0), 12.0),
        Focus((0.0, -8.0, 58.0), 10.0),
    ),
    "visual": (Focus((-12.0, -86.0, 4.0), 14.0), Focus((12.0, -86.0, 4.0), 14.0)),
    "default": (
        Focus((0.0, 52.0, 0.0), 13.0),
        Focus((0.0, -54.0, 28.0), 12.0),
        Focus((-46.0, -66.0, 32.0), 10.0),
        Focus((46.0, -66.0, 32.0), 10.0),
    ),
    "salience": (Focus((-38.0, 18.0, -2.0), 9.0), Focus((38.0, 18.0, -2.0), 9.0), Focus((0.0, 24.0, 34.0), 10.0)),
    "attention": (
        Focus((-26.0, -62.0, 52.0), 10.0),
        Focus((26.0, -62.0, 52.0), 10.0),
        Focus((-26.0, -4.0, 54.0), 8.0),
        Focus((26.0, -4.0, 54.0), 8.0),
    ),
    "control_left": (Focus((-44.0, 24.0, 28.0), 11.0), Focus((-46.0, -52.0, 46.0), 10.0)),
    "control_right": (Focus((44.0, 24.0, 28.0), 11.0), Focus((46.0, -52.0, 46.0), 10.0)),
    "auditory": (Focus((-54.0, -22.0, 8.0), 11.0), Focus((54.0, -22.0, 8.0), 11.0)),
    "limbic": (Focus((-24.0, -10.0, -18.0), 8.0), Focus((24.0, -10.0, -18.0), 8.0), Focus((0.0, 34.0, -14.0), 9.0)),
    "cerebellum": (Focus((-28.0, -64.0, -34.0), 12.0), Focus((28.0, -64.0, -34.0), 12.0)),
}
"""Resting-state networks and their foci; they fluctuate in every state."""


@dataclass(frozen=True)
class Event:
    """One task block: onset and duration (s from the first volume), and trial type."""

    onset: float
    duration: float
    trial_type: str


def foci_of(state: str) -> tuple[Focus, ...]:
    """Return the activation foci of a state."""
    if state not in STATES:
        raise UsageError(f"Unknown state {state!r}.", f"Choose from {', '.join(STATES)}.")
    return STATES[state]


def spread(foci: tuple[Focus, ...], points: np.ndarray) -> np.ndarray:
    """Return the response of each point to a unit stimulus.

    Parameters
    ----------
    points : (N, 3)
        Template mm.

    Returns
    -------
    (N,) float32
    """
    total = np.zeros(len(points), np.float32)
    for focus in foci:
        squared = ((points - np.asarray(focus.centre, points.dtype)) ** 2).sum(axis=-1)
        total += np.float32(focus.gain) * np.exp(-squared / np.float32(2 * focus.sigma_mm**2))
    return total


def random_events(state: str, seconds: float, rng: np.random.Generator) -> tuple[Event, ...]:
    """Simulate task blocks of 10 to 15 s with pauses of the same length; none at rest."""
    if state == "rest":
        return ()
    events = []
    onset = rng.uniform(3.0, 9.0)
    while onset < seconds - 5.0:
        duration = rng.uniform(10.0, 15.0)
        events.append(Event(round(onset, 2), round(min(duration, seconds - onset), 2), state))
        onset += duration + rng.uniform(10.0, 15.0)
    return tuple(events)


def response(events: tuple[Event, ...], tr: float, n_volumes: int, step_s: float = 0.1) -> np.ndarray:
    """Convolve events with the haemodynamic response function, sampled at the middle of each volume.

    Returns
    -------
    (n_volumes,)
        1 is the plateau of a long block.
    """
    times = np.arange(0.0, n_volumes * tr + step_s, step_s)
    drive = np.zeros_like(times)
    for event in events:
        drive[(times >= event.onset) & (times < event.onset + event.duration)] = 1.0
    lags = np.arange(0.0, 32.0, step_s)
    kernel = stats.gamma.pdf(lags, 6.0) - stats.gamma.pdf(lags, 16.0) / 6.0
    smooth = np.convolve(drive, kernel / kernel.sum())[: len(times)]
    return np.interp((np.arange(n_volumes) + 0.5) * tr, times, smooth)


def slow_fluctuation(n_volumes: int, tr: float, rng: np.random.Generator, step_s: float = 0.5) -> np.ndarray:
    """Simulate spontaneous activity (n_volumes,): noise of about 0.01 to 0.1 Hz with unit standard deviation."""
    n = int(np.ceil((n_volumes * tr + 200.0) / step_s))
    noise = rng.standard_normal(n)
    band = ndimage.gaussian_filter1d(noise, 2.0 / step_s) - ndimage.gaussian_filter1d(noise, 16.0 / step_s)
    return np.interp((np.arange(n_volumes) + 0.5) * tr + 100.0, np.arange(n) * step_s, band / band.std())


def rhythm(n_volumes: int, tr: float, hertz: float, wobble: float, rng: np.random.Generator) -> np.ndarray:
    """Simulate respiration or heartbeat at each volume, (n_volumes, 2): sine and cosine of a drifting phase."""
    steps = rng.normal(0, wobble, n_volumes) * np.sqrt(tr)
    phase = 2 * np.pi * hertz * np.arange(n_volumes) * tr + np.cumsum(steps) + rng.uniform(0, 2 * np.pi)
    return np.stack([np.sin(phase), np.cos(phase)], axis=1)
