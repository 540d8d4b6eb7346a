"""Thumbnails of figures: what they show, and figures that cannot be read."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bids_app.reports.figures.brains import plot_flicker
from bids_app.reports.figures.model_grid import GridView, plot_model_grid
from bids_app.reports.figures.thumbnails import SIZE, UnreadableFigureError, draw_thumbnail, write_thumbnails

AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])
RASTER = '<image x="0" y="0" width="{width}" height="10" href="data:image/png;base64,{data}"/>'


@pytest.fixture
def flicker(tmp_path):
    """Flicker figure: the first image is bright on the left, the second on the right."""
    index = np.indices((30, 30, 30)) - 14.5
    brain = (np.sqrt((index**2).sum(axis=0)) < 12).astype(np.float32)
    left, right = (100 * brain * (1 + 9 * side) for side in (index[0] < 0, index[0] > 0))
    first, second, mask = (nib.Nifti1Image(np.asarray(data, np.float32), AFFINE) for data in (left, right, brain))
    return plot_flicker(first, second, tmp_path / "sub-01_desc-coreg_bold.svg", outline=mask, title="x")


def test_the_second_image_of_an_alignment_is_shown_with_its_outline(flicker):
    pixels = np.asarray(draw_thumbnail(flicker.read_text(), "coreg"), float)
    axial = pixels[: SIZE // 3, : SIZE // 3]  # slices at the left of the middle columns
    grey = axial.mean(axis=-1)
    assert grey[:, SIZE // 6 + 6 :].mean() > 2 * grey[:, : SIZE // 6 - 6].mean()
    orange = (pixels[..., 0] > 150) & (pixels[..., 2] < 80)
    assert 200 < orange.sum() < 0.2 * SIZE**2


def test_thumbnails_stand_side_by_side_and_a_missing_figure_is_black(flicker, tmp_path):
    damaged = tmp_path / "sub-01_desc-mask_bold.svg"
    damaged.write_text("<svg>")
    path = write_thumbnails([damaged, flicker, None], tmp_path / "run.jpg")
    strip = np.asarray(Image.open(path))
    assert strip.shape == (SIZE, 3 * SIZE, 3)
    means = strip.reshape(SIZE, 3, SIZE, 3).mean(axis=(0, 2, 3))
    assert means[1] > 20
    assert means[0] < 2
    assert means[2] < 2


def test_the_model_input_shows_both_rows_of_the_figure(tmp_path):
    values = np.zeros((96, 96, 96), np.float32)
    values[20:70, 20:70, 20:70] = np.linspace(1, 2, 50)
    views = [GridView("mean", values), GridView("z", values, signed=True)]
    figure = plot_model_grid(views, np.diag([2.0, 2, 2, 1]), tmp_path / "g.svg", mask=values > 0, title="x")
    pixels = np.asarray(draw_thumbnail(figure.read_text(), "grid"), float).mean(axis=-1)
    assert pixels[: SIZE // 2].mean() > 20
    assert pixels[SIZE // 2 :].mean() > 20
    assert pixels[:, -5:].max() < 5  # nothing of the third column


@pytest.mark.parametrize("svg", ["", "<svg>", '<svg viewBox="0 0 10 10"></svg>'])
def test_a_file_without_an_image_is_refused(svg):
    with pytest.raises(UnreadableFigureError):
        draw_thumbnail(svg, "coreg")


def test_an_image_larger_than_its_figure_is_refused():
    svg = '<svg viewBox="0 0 10 10">' + RASTER.format(width=10**9, data="iVBORw0KGgo=")
    with pytest.raises(UnreadableFigureError, match="larger than the figure"):
        draw_thumbnail(svg, "coreg")
