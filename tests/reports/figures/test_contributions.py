"""Chart of contributions: both signs, the control, and regions that the encoder cannot resolve."""

from __future__ import annotations

import pandas as pd
import pytest

from bids_app.reports.figures.contributions import plot_contributions

TABLE = pd.DataFrame(
    {
        "name": ["Precentral_L", "Cuneus_R", "Thalamus_Re_L", "Vermis_3"],
        "attribution": [2.0, 0.5, -1.5, -0.1],
        "std": [0.1, 0.1, 0.2, 0.0],
        "tokens": [4, 3, 0, 1],
    }
)


def test_bars_of_both_signs_are_named_and_unresolved_regions_are_marked(tmp_path) -> None:
    text = plot_contributions(TABLE, tmp_path / "a.svg", title="Contributions", unit="log-odds").read_text()
    assert "2 positive and 2 negative contributions" in text
    assert text.index(">Precentral_L<") < text.index(">Cuneus_R<") < text.index(">Vermis_3<")
    assert ">Thalamus_Re_L †<" in text
    assert ">control<" not in text


def test_the_control_is_shown_and_significant_regions_are_marked(tmp_path) -> None:
    table = TABLE.assign(control=[0.1, -0.1, 0.2, 0.0], z=[5.0, 1.0, -1.0, 0.0], p=[0.002, 0.9, 0.4, 1.0])
    text = plot_contributions(table, tmp_path / "a.svg", title="Contributions").read_text()
    assert ">control<" in text
    assert ">Precentral_L *<" in text
    assert ">Cuneus_R<" in text


@pytest.mark.parametrize("rows", [slice(0, 0), slice(2, 4)])
def test_tables_without_a_sign_are_shown(rows, tmp_path) -> None:
    assert plot_contributions(TABLE[rows], tmp_path / "a.svg", title="Contributions").is_file()
