"""Curves of training runs: long ones, and values over several decades."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

from bids_app.reports.figures.curves import MAX_POINTS, Curve, plot_curves

SVG = "{http://www.w3.org/2000/svg}"


def points_of(svg: str) -> int:
    """Return the number of points of the longest line."""
    paths = [node.get("d", "") for node in ElementTree.fromstring(svg).iter(f"{SVG}path")]
    return max(path.count("L") + path.count("M") for path in paths)


def test_long_curves_are_averaged_in_bins():
    x = np.arange(100_000.0)
    short, long = (plot_curves([Curve("", x[:n], np.sin(x[:n]))], "Loss", ("step", "loss")) for n in (300, len(x)))
    assert 200 < points_of(short) <= 300
    assert points_of(long) <= MAX_POINTS
    assert len(long) < 100_000


def test_the_description_has_the_last_values():
    svg = plot_curves([Curve("training", [1, 2], [3.0, 0.5]), Curve("held out", [2], [0.25])], "Loss", ("step", "loss"))
    assert "training ends at 0.5; held out ends at 0.25" in svg


def test_values_over_decades_have_a_logarithmic_axis():
    narrow, wide = (
        plot_curves([Curve("", [1, 2, 3], [1.0, 5.0, top])], "Norm", ("step", "norm")) for top in (9.0, 1e6)
    )
    assert "10^{4}" in wide
    assert "10^{4}" not in narrow
