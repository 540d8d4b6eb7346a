"""Figure of the correlations between regions."""

from __future__ import annotations

import numpy as np

from bids_app.reports.figures.connectivity import describe_matrix, plot_connectivity

MATRIX = np.array([[1.0, 0.5, -0.25], [0.5, 1.0, np.nan], [-0.25, np.nan, 1.0]])


def test_the_text_alternative_has_the_range_of_the_correlations() -> None:
    text = describe_matrix(MATRIX, ["left", "right"], 3)
    assert text == "Correlations between 3 regions, ordered by left, right, mean 0.12, from -0.25 to 0.50."


def test_one_region_has_no_pair() -> None:
    assert describe_matrix(np.ones((1, 1)), [], 1) == "Correlations between 1 regions."


def test_blocks_are_named_on_both_axes_and_colours_are_fixed(tmp_path) -> None:
    path = plot_connectivity(0.1 * MATRIX, [("left", 2), ("right", 1)], tmp_path / "a.svg", title="3 regions")
    text = path.read_text()
    assert text.count(">left<") == text.count(">right<") == 2
    assert ">−1.0<" in text
    assert ">1.0<" in text


def test_without_blocks_the_axes_say_the_order(tmp_path) -> None:
    text = plot_connectivity(MATRIX, [], tmp_path / "a.svg", title="3 regions").read_text()
    assert text.count("in the order of the atlas") == 2
