"""Brain mosaics show left on the left for any image orientation."""

import base64
import re
from io import BytesIO
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bids_app.reports.figures.brains import plot_flicker, plot_map, plot_outlines
from bids_app.reports.figures.cuts import Box, Volume, cut_positions
from bids_app.reports.figures.model_grid import GridView, plot_model_grid

SVG = "{http://www.w3.org/2000/svg}"
AFFINE = np.array([[-3.0, 0, 0, 45], [0, 3, 0, -50], [0, 0, 3, -40], [0, 0, 0, 1]])
ORIENTATIONS = ["RAS", "LAS", "LPI", "SRA", "ILP"]


def lopsided_head():
    """Simulate a ball of radius 36 mm, three times as bright for x < 0 (left)."""
    shape = (31, 34, 28)
    points = np.moveaxis(np.indices(shape), 0, -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    inside = np.linalg.norm(points, axis=-1) < 36
    data = inside * np.where(points[..., 0] < -1.5, 300, 100)
    return nib.Nifti1Image(data.astype(np.float32), AFFINE), nib.Nifti1Image(inside.astype(np.uint8), AFFINE)


def stored_as(image, orientation):
    turned = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(orientation)
    )
    return image.as_reoriented(turned)


def read_pixels(path):
    """Read the images in an SVG file as grey values."""
    found = [node.get("href") for node in ElementTree.parse(path).iter(f"{SVG}image")]
    return [np.asarray(Image.open(BytesIO(base64.b64decode(data.partition(",")[2]))).convert("L")) for data in found]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_slices_have_the_correct_orientation(orientation):
    image, _ = lopsided_head()
    volume = Volume.load(stored_as(image, orientation))
    box = Box(np.full(3, -30.0), np.full(3, 30.0), 1.0)
    for plane in "yz":
        cut = box.cut(volume, plane, 0.0)
        assert cut[20:40, 8:25].mean() > 2.5 * cut[20:40, 35:52].mean()
    data = np.zeros(image.shape, np.float32)
    data[:, :, 18:] = 1  # superior
    up = box.cut(Volume.load(stored_as(nib.Nifti1Image(data, AFFINE), orientation)), "x", 0.0)
    assert up[:15].mean() > 0.9
    assert up[-15:].mean() < 0.1


def test_flicker_has_both_images_and_an_outline(tmp_path):
    image, mask = lopsided_head()
    path = plot_flicker(image, stored_as(image, "SPL"), tmp_path / "x.svg", outline=mask, names=("A<", "B&"), title="t")
    first, second = read_pixels(path)
    assert first.shape == second.shape
    assert np.abs(first.astype(int) - second).mean() < 1
    text = path.read_text()
    assert "#flicker:target" in text
    assert "A&lt;" in text
    root = ElementTree.parse(path).getroot()
    assert root.find(f"{SVG}title").text == "t"
    assert "A<" in root.find(f"{SVG}desc").text
    assert len(re.findall("M", "".join(node.get("d") for node in root.iter(f"{SVG}path")))) >= 21


def test_the_outline_follows_the_mask(tmp_path):
    image, mask = lopsided_head()
    path = plot_outlines(image, {"brain": mask}, tmp_path / "x.svg", title="t")
    (line,) = [node.get("d") for node in ElementTree.parse(path).iter(f"{SVG}path")]
    contours = [np.array(re.findall(r"[\d.]+", part), float).reshape(-1, 2) for part in line.split("M")[1:]]
    widest = max(np.ptp(points[:, 0]) for points in contours)
    cells = [float(node.get("x")) for node in ElementTree.parse(path).iter(f"{SVG}text") if node.text == "L"]
    scale = (1400 / 7 - 6) / (2 * 36 + 2 * 14)  # pixels per mm: ball and margin of 14 mm fill a cell
    assert abs(widest - 2 * 36 * scale) < 6 * scale
    assert len(cells) == 2


def test_two_masks_have_different_colours(tmp_path):
    image, mask = lopsided_head()
    smaller = nib.Nifti1Image((image.get_fdata() > 200).astype(np.uint8), AFFINE)
    path = plot_outlines(image, {"brain": mask, "left": smaller}, tmp_path / "x.svg", title="t")
    strokes = [node.get("stroke") for node in ElementTree.parse(path).iter(f"{SVG}path")]
    assert len(set(strokes)) == 2


def test_an_empty_mask_and_a_constant_image_are_plotted(tmp_path):
    flat = nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4))
    assert plot_outlines(flat, {"empty": flat}, tmp_path / "x.svg", title="t").exists()
    assert plot_flicker(flat, flat, tmp_path / "y.svg", title="t").exists()


def test_a_series_is_averaged_over_time(tmp_path):
    series = np.zeros((4, 5, 6, 45), np.float32)
    series[..., ::2] = 2
    nib.Nifti1Image(series, np.eye(4)).to_filename(tmp_path / "bold.nii.gz")
    np.testing.assert_allclose(Volume.load(tmp_path / "bold.nii.gz").data, series.mean(axis=3), rtol=1e-6)


def test_nan_is_plotted_as_background(tmp_path):
    image, _ = lopsided_head()
    data = image.get_fdata(dtype=np.float32).copy()
    data[:4] = np.nan
    assert np.isfinite(Volume.load(nib.Nifti1Image(data, AFFINE)).data).all()


@pytest.mark.parametrize("flip", [False, True])
def test_the_model_input_shows_left_on_the_left(tmp_path, flip):
    affine = np.array([[-2.0, 0, 0, 96], [0, 2, 0, -114], [0, 0, 2, -78], [0, 0, 0, 1]])
    values = np.zeros((96, 96, 96), np.float32)
    values[60:, 40:60, 40:60] = 1  # x from -24 mm: left
    mask = np.ones(values.shape, bool)
    if flip:
        values, mask = values[::-1], mask[::-1]
        affine = affine @ np.array([[-1, 0, 0, 95], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    views = [GridView("mean", values), GridView("z", values - 0.5, signed=True, unit="z")]
    path = plot_model_grid(views, affine, tmp_path / "grid.svg", mask=mask, title="t")
    axial, coronal = read_pixels(path)[:2]
    assert axial.shape == (96, 96)
    for cut in (axial, coronal):
        assert cut[:, :40].sum() > 0
        assert cut[:, 48:].sum() == 0
    assert "mean" in path.read_text()


def test_figures_are_reproducible(tmp_path):
    image, mask = lopsided_head()
    first = plot_outlines(image, {"brain": mask}, tmp_path / "a.svg", title="t").read_bytes()
    assert plot_outlines(image, {"brain": mask}, tmp_path / "b.svg", title="t").read_bytes() == first


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_slice_positions_do_not_depend_on_the_orientation(orientation):
    _, mask = lopsided_head()
    found = cut_positions(Volume.load(stored_as(mask, orientation)), 3)
    for plane in "xyz":
        assert sorted(found[plane]) == found[plane]
        assert max(map(abs, found[plane])) < 30, "outside the ball of radius 36 mm"


def test_a_map_has_left_on_the_left_and_a_scale(tmp_path):
    image, mask = lopsided_head()
    path = plot_map(image, mask, tmp_path / "x.svg", unit="temporal SNR", title="t")
    first = read_pixels(path)[0].astype(float)
    slice_ = first[40:230, :190]  # the first axial slice
    assert slice_[:, :90].mean() > 1.5 * slice_[:, 105:].mean()
    text = path.read_text()
    assert "0 to 300: temporal SNR" in text
    assert "median over the brain" in text


def test_alignments_do_not_move_on_hover_for_people_who_want_no_motion(tmp_path):
    image, mask = lopsided_head()
    text = plot_flicker(image, image, tmp_path / "x.svg", outline=mask, title="t").read_text()
    assert "@media (prefers-reduced-motion:no-preference){svg:hover" in text
    assert text.count("svg:hover") == 1
