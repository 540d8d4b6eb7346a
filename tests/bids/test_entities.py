"""File names: entities in the order of the BIDS schema."""

from __future__ import annotations

from bidsschematools.schema import load_schema

from bids_app.bids.entities import ENTITY_ORDER, join_name


def test_entity_order_equals_the_bids_schema():
    schema = load_schema()
    order = [schema.objects.entities[name].name for name in schema.rules.entities]
    assert [key for key in ENTITY_ORDER if key in order] == [key for key in order if key in ENTITY_ORDER]
    assert set(ENTITY_ORDER) - set(order) == {"from", "to", "mode"}  # entities of transforms, not in the schema


def test_unlisted_entity_precedes_desc():
    name = join_name({"desc": "a", "odd": "b", "sub": "01", "res": "2"}, "bold", ".nii")
    assert name == "sub-01_res-2_odd-b_desc-a_bold.nii"
