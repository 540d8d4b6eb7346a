"""Hemispheres and networks are read from the names of regions, and decide their order."""

from __future__ import annotations

import pytest

from bids_app.catalog.region_names import Block, hemisphere_of, network_of, order_regions

AAL = ("Precentral_L", "Precentral_R", "Cuneus_L", "Cuneus_R", "Vermis_1_2")
SCHAEFER = ("7Networks_LH_Vis_1", "7Networks_LH_Default_PFC_1", "7Networks_RH_Vis_1", "7Networks_RH_Default_pCunPCC_1")


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("Precentral_L", "L"),
        ("Frontal_Sup_2_R", "R"),
        ("ctx-lh-cuneus", "L"),
        ("Right Putamen", "R"),
        ("7Networks_RH_Vis_1", "R"),
        ("LH_Cont_Par_1", "L"),
        ("Vermis_3", ""),
        ("Left Right border", ""),
        ("Rolandic_Oper", ""),
    ],
)
def test_the_hemisphere_is_a_word_of_the_name(name: str, side: str) -> None:
    assert hemisphere_of(name) == side


def test_only_names_of_schaefer_have_networks() -> None:
    assert [network_of(name) for name in (*SCHAEFER, "Precentral_L")] == ["Vis", "Default", "Vis", "Default", ""]


def test_regions_are_ordered_by_hemisphere_in_the_order_of_the_atlas() -> None:
    order, blocks = order_regions(AAL)
    assert order == [0, 2, 1, 3, 4]
    assert blocks == (Block("left", 0, 2), Block("right", 2, 2), Block("midline", 4, 1))


def test_regions_are_ordered_by_network_first() -> None:
    order, blocks = order_regions(("Brainstem", *SCHAEFER))
    assert order == [1, 3, 2, 4, 0]
    assert blocks == (Block("Vis", 0, 2), Block("Default", 2, 2), Block("other", 4, 1))


def test_names_that_tell_nothing_keep_the_order_of_the_atlas() -> None:
    assert order_regions(("b", "a", "c")) == ([0, 1, 2], ())
