"""Imperfections of EPI series are where they are in real scans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_app.phantom.epi import (
    EpiImperfections,
    add_ghosts,
    add_physiological_noise,
    add_spikes,
    noise_level,
    receive_field,
    remaining_signal,
)
from bids_app.phantom.geometry import rng_for
from bids_app.phantom.protocol import Protocol

PROTOCOL = Protocol(voxel_mm=(6.0, 6.0, 6.0), matrix=(34, 36, 24), n_volumes=6)


def test_signal_is_lost_above_the_sinuses_and_ears_only():
    points = np.array([[0, 46, -24], [52, -22, -34], [0, -20, 50], [0, -90, 0]], np.float32)
    left = remaining_signal(points, 0.8)
    assert left[:2].max() < 0.3
    assert left[2:].min() > 0.97


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "PSR"])
def test_the_ghost_is_along_the_anterior_posterior_axis(orientation):
    protocol = replace(PROTOCOL, orientation=orientation)
    shape, _ = protocol.grid()
    bold = np.zeros((*shape, 1), np.float32)
    bold[2, 2, 2] = 100.0
    add_ghosts(bold, protocol, EpiImperfections(ghost=0.04))
    axis = next(i for i, code in enumerate(orientation) if code in "AP")
    at = [2, 2, 2]
    at[axis] += shape[axis] // 2
    assert bold[(*at, 0)] == pytest.approx(4.0)
    assert bold.sum() == pytest.approx(104.0)


def test_multiband_leaks_between_slices_and_amplifies_noise():
    shape, _ = PROTOCOL.grid()
    what = EpiImperfections(ghost=0.0, acceleration=4.0)
    bold = np.zeros((*shape, 1), np.float32)
    bold[17, 18, 3] = 100.0
    add_ghosts(bold, PROTOCOL, what)
    slices = np.flatnonzero(bold.sum(axis=(0, 1, 3)))
    assert slices.tolist() == [3, 3 + shape[2] // 4]
    assert noise_level(PROTOCOL, what, 1.0, rng_for(1)).max() > 1.3


def test_physiological_noise_is_proportional_to_the_signal_smooth_and_autocorrelated():
    protocol = Protocol(tr=1.0, voxel_mm=(3.0, 3.0, 3.0), matrix=(24, 24, 12), n_volumes=80)
    shape, _ = protocol.grid()
    bold = np.full((*shape, 80), 100.0, np.float32)
    bold[:12] = 1000.0
    add_physiological_noise(bold, protocol, EpiImperfections(physiological=0.01), rng_for(3))
    sd = bold.std(axis=-1)
    assert np.median(sd[12:]) == pytest.approx(1.0, rel=0.15)
    assert np.median(sd[:12]) == pytest.approx(10.0, rel=0.15)
    noise = bold[:12] - bold[:12].mean(axis=-1, keepdims=True)
    assert np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1] > 0.1
    assert np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1] == pytest.approx(
        np.exp(-1 / 2.2), abs=0.08
    )


def test_the_stated_number_of_volumes_has_spikes():
    bold = np.full((12, 12, 4, 10), 100.0, np.float32)
    bold[:3] = 10.0
    before = bold.copy()
    add_spikes(bold, EpiImperfections(spikes=3), rng_for(1))
    assert sum((bold[..., t] != before[..., t]).any() for t in range(10)) == 3


def test_the_receive_field_follows_the_coil():
    weak, strong = (receive_field(PROTOCOL, EpiImperfections(coil=c), rng_for(1)) for c in (1.2, 4.0))
    assert strong.max() / strong.min() > 2 * weak.max() / weak.min()
