"""Names of files: entities in the order of the BIDS schema."""

from __future__ import annotations

from bidsschematools.schema import load_schema

from bids_app.bids.entities import ENTITY_ORDER, join_name


def test_entities_have_the_order_of_the_bids_schema():
    schema = load_schema()
    order = [schema.objects.entities[name].name for name in schema.rules.entities]
    assert [key for key in ENTITY_ORDER if key in order] == [key for key in order if key in ENTITY_ORDER]
    assert set(ENTITY_ORDER) - set(order) == {"from", "to", "mode"}  # of transforms, which the schema does not list


def test_an_entity_that_is_not_listed_comes_before_desc():
    name = join_name({"desc": "a", "odd": "b", "sub": "01", "res": "2"}, "bold", ".nii")
    assert name == "sub-01_res-2_odd-b_desc-a_bold.nii"
