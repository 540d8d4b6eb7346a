"""Masks hide the requested fraction, in the requested pattern."""

from __future__ import annotations

import pytest
import torch

from bids_app.errors import BadDataError, UsageError
from bids_app.model.masking import ATLAS_RULES, AtlasPatches, MaskSettings, sample_mask
from tests.helpers.paths import shared_path

GRID, WINDOW = (8, 8, 8, 12), (4, 4, 4, 4)


@pytest.fixture
def atlas() -> AtlasPatches:
    """Ten regions on 8x8x8 patches; two planes are background."""
    labels = torch.arange(8**3).reshape(8, 8, 8) // 48
    labels[:2] = 0
    return AtlasPatches.from_volume(labels, (1, 1, 1))


@pytest.mark.parametrize("spatial", ["random", "window"])
@pytest.mark.parametrize("temporal", ["random", "tube"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_hidden_fraction_is_the_ratio(spatial, temporal, ratio):
    mask = sample_mask(MaskSettings(spatial, temporal, ratio), 3, GRID, WINDOW)
    assert mask.shape == (3, *GRID)
    torch.testing.assert_close(mask.mean(dim=(1, 2, 3, 4)), torch.full((3,), ratio), atol=0.03, rtol=0)


@pytest.mark.parametrize("spatial", ["random", "window", "atlas"])
def test_a_tube_hides_the_same_positions_in_all_volumes(spatial, atlas):
    mask = sample_mask(MaskSettings(spatial, "tube"), 1, GRID, WINDOW, atlas)
    assert torch.equal(mask, mask[..., :1].expand_as(mask))


@pytest.mark.parametrize(("spatial", "redraw"), [("random", False), ("window", False), ("atlas", True)])
def test_a_random_mask_changes_over_time(spatial, redraw, atlas):
    torch.manual_seed(0)
    mask = sample_mask(MaskSettings(spatial, "random", redraw=redraw), 1, GRID, WINDOW, atlas)
    assert not torch.equal(mask[..., 0], mask[..., 4])


@pytest.mark.parametrize("temporal", ["random", "tube"])
def test_an_atlas_mask_hides_the_same_regions_in_all_volumes(temporal, atlas):
    mask = sample_mask(MaskSettings("atlas", temporal), 3, GRID, WINDOW, atlas)
    assert torch.equal(mask, mask[..., :1].expand_as(mask))
    assert not torch.equal(mask[0], mask[1])


def regions_hidden(mask: torch.Tensor, atlas: AtlasPatches) -> int:
    """Count the regions all of whose patches are hidden in a volume (X, Y, Z)."""
    return sum(bool((mask[region > 0] == 1).all()) for region in atlas.fractions if region.any())


@pytest.mark.parametrize(("ratio", "expected"), [(0.05, 1), (0.39, 3), (0.5, 4), (0.99, 8)])
def test_the_ratio_of_an_atlas_mask_counts_regions(ratio, expected, atlas):
    mask = sample_mask(MaskSettings("atlas", ratio=ratio), 1, GRID, WINDOW, atlas)
    assert regions_hidden(mask[0, ..., 0], atlas) == expected


def test_regions_without_a_patch_are_not_counted(split_patches):
    settings = MaskSettings("atlas", ratio=0.5)  # by majority, one of three regions has no patch
    masks = sample_mask(settings, 40, (3, 1, 1, 4), (1, 1, 1, 1), split_patches)
    assert set(masks[..., 0].sum(dim=(1, 2, 3)).tolist()) == {1.0, 2.0}
    with pytest.raises(BadDataError, match="hides a patch"):
        sample_mask(
            MaskSettings("atlas", rule="pure"), 1, (1, 1, 1, 4), (1, 1, 1, 1),
            AtlasPatches(split_patches.labels, split_patches.fractions[:, 1:2]),
        )  # fmt: skip


def test_the_ratio_of_an_atlas_mask_counts_patches_on_request():
    labels = torch.ones(8, 8, 8, dtype=torch.int32)
    labels[4:] = torch.arange(4 * 64).reshape(4, 8, 8) + 2  # one region of 256 patches, 256 of one
    atlas = AtlasPatches.from_volume(labels, (1, 1, 1))
    by_patches = sample_mask(MaskSettings("atlas", ratio=0.7, count="patches"), 20, GRID, WINDOW, atlas)
    by_regions = sample_mask(MaskSettings("atlas", ratio=0.7), 20, GRID, WINDOW, atlas)
    assert by_patches.mean(dim=(1, 2, 3, 4)).sub(0.7).abs().median() < 0.1
    assert by_regions.mean(dim=(1, 2, 3, 4)).min() < 0.36


def test_window_masks_hide_whole_windows():
    mask = sample_mask(MaskSettings("window", "random"), 2, GRID, WINDOW)
    windows = mask.reshape(2, 2, 4, 2, 4, 2, 4, 3, 4).mean(dim=(2, 4, 6, 8))
    assert set(windows.unique().tolist()) == {0.0, 1.0}


def test_window_masks_fit_grids_that_are_not_divisible_by_the_window():
    assert sample_mask(MaskSettings("window", "random"), 1, (6, 2, 8, 10), WINDOW).shape == (1, 6, 2, 8, 10)


def test_atlas_masks_hide_whole_regions_and_nothing_else(atlas):
    mask = sample_mask(MaskSettings("atlas", count="patches"), 1, GRID, WINDOW, atlas)[0, ..., 0]
    assert mask[:2].sum() == 0
    shares = [(mask * region).sum() / region.sum() for region in atlas.fractions]
    assert set(torch.stack(shares).tolist()) == {0.0, 1.0}
    assert abs(mask.sum() / atlas.fractions.sum() - 0.5) < 0.1


def test_the_same_seed_gives_the_same_mask():
    one, two = (
        sample_mask(MaskSettings(), 2, GRID, WINDOW, generator=torch.Generator().manual_seed(seed)) for seed in (4, 4)
    )
    assert torch.equal(one, two)


@pytest.fixture
def split_patches() -> AtlasPatches:
    """Three patches of 8 voxels: all of region 1; 5 of region 1 and 3 of region 2; 2 of region 3 and no more."""
    labels = torch.zeros(6, 2, 2, dtype=torch.int32)
    labels[:2] = 1
    labels[2:4] = torch.tensor([1, 1, 1, 1, 1, 2, 2, 2]).reshape(2, 2, 2)
    labels[4, 0] = 3
    return AtlasPatches.from_volume(labels, (2, 2, 2))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("any", [[1, 1, 0], [0, 1, 0], [0, 0, 1]]),
        ("majority", [[1, 1, 0], [0, 0, 0], [0, 0, 1]]),
        ("pure", [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ("soft", [[1, 0.625, 0], [0, 0.375, 0], [0, 0, 0.25]]),
    ],
)
def test_each_rule_assigns_patches_to_regions(split_patches, rule, expected):
    alone = torch.eye(3, dtype=torch.bool)
    masks = torch.stack([split_patches.hidden(one, rule).flatten() for one in alone])
    torch.testing.assert_close(masks, torch.tensor(expected, dtype=torch.float32))


def test_regions_that_the_grid_cannot_resolve_have_no_patches(split_patches):
    assert {rule: split_patches.patches_of_regions(rule).tolist() for rule in ATLAS_RULES} == {
        "any": [2, 1, 1],
        "majority": [2, 0, 1],
        "pure": [1, 0, 0],
        "soft": [1.625, 0.375, 0.25],
    }


@pytest.mark.slow
def test_aal3_has_24_regions_of_one_patch_and_28_of_none():
    import nibabel
    import numpy as np

    labels = np.asarray(nibabel.load(shared_path("data", "aal3", "AAL3v1.nii.gz")).dataobj).astype(np.int64)
    grid = torch.from_numpy(np.pad(labels, ((3, 2), (0, 0), (3, 2)))[:, 6:102])  # stored on the grid, L-A-S
    patches = AtlasPatches.from_volume(grid, (6, 6, 6)).patches_of_regions("majority")
    assert len(patches) == 166
    assert ((patches == 1).sum(), (patches == 0).sum()) == (24, 28)


@pytest.mark.parametrize(
    "change", [{"spatial": "tube"}, {"temporal": "window"}, {"rule": "most"}, {"ratio": 1.0}, {"count": "x"}]
)
def test_invalid_settings_are_rejected(change):
    with pytest.raises(UsageError):
        MaskSettings(**change)


def test_an_atlas_mask_without_a_matching_atlas_is_rejected(atlas):
    with pytest.raises(UsageError, match="none"):
        sample_mask(MaskSettings("atlas"), 1, GRID, WINDOW)
    with pytest.raises(UsageError, match="8, 8, 8"):
        sample_mask(MaskSettings("atlas"), 1, (4, 4, 4, 8), WINDOW, atlas)


def test_a_label_image_must_hold_labels():
    with pytest.raises(BadDataError, match="integer labels"):
        AtlasPatches.from_volume(torch.zeros(6, 6, 6), (6, 6, 6))
    with pytest.raises(BadDataError, match="no label"):
        AtlasPatches.from_volume(torch.zeros(6, 6, 6, dtype=torch.int32), (6, 6, 6))
