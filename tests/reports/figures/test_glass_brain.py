"""Glass brain figures."""

import nibabel as nib
import numpy as np
from PIL import Image

from bids_app.reports.figures.glass_brain import plot_glass_brains


def test_the_right_hemisphere_is_on_the_right_and_the_file_is_reproducible(tmp_path):
    values = np.zeros((20, 24, 20), np.float32)
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = -76, -108, -72
    values[13:16, 10:13, 14:17] = 3.0  # x from 28 to 44 mm
    first = plot_glass_brains({"": nib.Nifti1Image(values, affine)}, tmp_path / "a.png", "log-odds")
    again = plot_glass_brains({"": nib.Nifti1Image(values, affine)}, tmp_path / "b.png", "log-odds")
    assert first.read_bytes() == again.read_bytes()
    picture = np.asarray(Image.open(first).convert("RGB")).astype(int)
    axial = picture[:, int(0.69 * picture.shape[1]) : int(0.9 * picture.shape[1])]
    hot = (axial[..., 0] > 200) & (axial[..., 1] > 100)
    assert np.flatnonzero(hot.any(axis=0)).mean() > axial.shape[1] / 2


def test_a_control_has_its_own_row(tmp_path):
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), affine)
    one, two = (
        Image.open(plot_glass_brains(maps, tmp_path / "a.png")) for maps in ({"": image}, {"a": image, "b": image})
    )
    assert (two.width, two.height) == (one.width, 2 * one.height)
