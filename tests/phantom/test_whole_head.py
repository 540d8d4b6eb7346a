"""Whole heads have the layers of real ones, around the template's brain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_app.phantom.brain_anatomy import individual_brain
from bids_app.phantom.geometry import sample
from bids_app.phantom.tissues import TissueMaps, template_brain
from bids_app.phantom.whole_head import Person, whole_head_tissues

KEYS = (1, "someone")


@pytest.fixture(scope="module")
def head() -> TissueMaps:
    return whole_head_tissues(Person(), KEYS, 2)


def at(maps: TissueMaps, tissue: str, *points: tuple[float, float, float]) -> np.ndarray:
    """Return a tissue's fraction at template positions."""
    return sample(maps.fractions[tissue], maps.affine, np.array(points, np.float32))


def above_the_vertex(maps: TissueMaps) -> dict[str, float]:
    """Return the thickness of tissues along a line up from the brain, mm."""
    line = np.array([[20.0, -20.0, z] for z in np.arange(60.0, 112.0, 0.25)], np.float32)
    outside = sample(maps.brain, maps.affine, line) < 0.5
    return {name: 0.25 * float(sample(v, maps.affine, line)[outside].sum()) for name, v in maps.fractions.items()}


def test_fractions_sum_to_at_most_one(head):
    total = sum(head.fractions.values())
    assert total.max() <= 1.001
    assert min(values.min() for values in head.fractions.values()) >= 0


def test_skull_with_marrow_fat_and_skin_lie_above_the_brain(head):
    layers = above_the_vertex(head)
    assert 1.5 < layers["bone"] < 7
    assert 2 < layers["fat"] < 9  # of scalp and marrow
    assert 0.5 < layers["muscle"] < 5  # skin
    assert 0.3 < layers["csf"] < 5


@pytest.mark.slow
def test_thickness_follows_the_person(head):
    thin = above_the_vertex(whole_head_tissues(Person(skull_mm=2.5, scalp_mm=3.0), KEYS, 2))
    usual = above_the_vertex(head)
    assert thin["bone"] + thin["fat"] < 0.75 * (usual["bone"] + usual["fat"])


def test_eyes_orbital_fat_sinuses_and_spinal_cord_are_in_their_places(head):
    assert at(head, "fluid", (32, 61, -37), (-32, 61, -37)).min() > 0.8
    assert at(head, "fat", (33, 45, -38), (-33, 45, -38)).min() > 0.6
    everything = sum(head.fractions.values())
    nose, sinus = (0.0, 72.0, -54.0), (30.0, 50.0, -62.0)
    assert sample(everything, head.affine, np.array([nose, sinus], np.float32)).max() < 0.2
    assert at(head, "wm", (0, -52, -120))[0] > 0.3
    assert at(head, "muscle", (35, -40, -110), (-35, -40, -110)).min() > 0.3  # neck


@pytest.mark.slow
def test_individual_brains_fill_the_templates_mask_with_their_own_folds():
    template = template_brain(2)
    one, other = (individual_brain(template, 0.0, 0, (1, name)) for name in "ab")
    inside = template.brain > 0.9
    total = sum(one.fractions.values())
    np.testing.assert_allclose(total[inside], template.brain[inside], atol=0.01)
    assert np.corrcoef(one.fractions["gm"][inside], other.fractions["gm"][inside])[0, 1] < 0.8
    sharp = [np.mean(np.max(np.stack(list(m.fractions.values())), axis=0)[inside]) for m in (template, one)]
    assert sharp[1] > sharp[0] + 0.05


@pytest.mark.slow
def test_atrophy_widens_fluid_and_lesions_replace_white_matter():
    template = template_brain(2)
    young, old, ill = (individual_brain(template, *what, KEYS).fractions for what in ((0.0, 0), (0.8, 0), (0.0, 10)))
    assert old["csf"].sum() > 1.3 * young["csf"].sum()
    assert ill["wm"].sum() < 0.99 * young["wm"].sum()


@pytest.mark.slow
def test_the_anatomy_is_the_same_at_1_and_2_mm():
    person = replace(Person(), lesions=5)
    coarse, fine = (whole_head_tissues(person, KEYS, resolution) for resolution in (2, 1))
    for name, values in coarse.fractions.items():
        x, y, z = values.shape
        halved = fine.fractions[name].reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5))
        assert np.corrcoef(halved.ravel(), values.ravel())[0, 1] > 0.93, name
    np.testing.assert_allclose(fine.affine @ [0.5, 0.5, 0.5, 1], coarse.affine @ [0, 0, 0, 1])
