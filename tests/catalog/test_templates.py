"""Templates on this machine, and matrices between their spaces."""

import hashlib
import tomllib
from fnmatch import fnmatch

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_app.catalog import templates
from bids_app.catalog.templates import (
    MODEL_SPACE,
    available,
    brain_on,
    catalog,
    load_template,
    space,
)
from bids_app.errors import NoInputError, UsageError
from tests.helpers.paths import ROOT

EMBEDDED = "MNI152NLin2009aSym"


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def full_cache(empty_cache):
    """TemplateFlow cache with a substitute for the model's template: the embedded one, resampled by its matrix."""
    embedded = load_template(EMBEDDED)
    target = space(MODEL_SPACE)
    folder = empty_cache / f"tpl-{MODEL_SPACE}"
    folder.mkdir()
    from bids_app.preprocess.registration.transforms import linear, resample_to

    pull = linear(target.pull_to(space(EMBEDDED)))
    t1w = resample_to(embedded.t1w, embedded.affine, target.shape, target.affine, pull)
    mask = resample_to(embedded.mask.astype(np.float32), embedded.affine, target.shape, target.affine, pull) > 0.5
    for name, data in (("T1w", t1w), ("desc-brain_mask", mask.astype(np.uint8))):
        nib.Nifti1Image(data, target.affine).to_filename(folder / f"tpl-{MODEL_SPACE}_res-02_{name}.nii.gz")
    return empty_cache


def test_the_template_of_the_model_is_part_of_the_package(empty_cache):
    assert available() == (MODEL_SPACE, EMBEDDED)
    template = load_template()
    assert template.name == MODEL_SPACE
    around = template.t1w[~template.mask]
    assert np.percentile(around, 90) > 0.3 * np.median(template.t1w[template.mask])  # it has a head


def test_the_embedded_template_is_used_only_if_the_packaged_files_are_missing(empty_cache, monkeypatch):
    monkeypatch.setattr(templates, "PACKAGED", empty_cache)
    assert available() == (EMBEDDED,)
    assert load_template().name == EMBEDDED


def test_empty_placeholders_of_templateflow_are_ignored(empty_cache):
    folder = empty_cache / f"tpl-{MODEL_SPACE}"
    folder.mkdir()
    for name in catalog()[MODEL_SPACE]["t1w"] + catalog()[MODEL_SPACE]["mask"]:
        (folder / name).touch()
    assert load_template().version.startswith("tpl-MNI152NLin6Asym_res-02_T1w.nii.gz (sha256 1616e98b88c0)")


def test_files_of_templateflow_take_precedence(full_cache):
    assert available() == (MODEL_SPACE, EMBEDDED)
    template = load_template()
    assert template.name == MODEL_SPACE
    assert "1616e98b88c0" not in template.version
    assert 1700 < template.mask.sum() * 8 / 1e3 < 1950
    inside = template.gm + template.wm > 0.5
    assert (template.mask & inside).sum() > 0.99 * inside.sum()


def test_missing_template_raises_with_the_cache(empty_cache):
    with pytest.raises(NoInputError, match=str(empty_cache)) as error:
        load_template("MNI152NLin2009cAsym")
    assert "TEMPLATEFLOW_HOME" in error.value.hint


def test_unknown_space_lists_the_catalog():
    with pytest.raises(UsageError) as error:
        space("MNI305")
    assert MODEL_SPACE in error.value.hint


@pytest.mark.parametrize("name", [MODEL_SPACE, EMBEDDED])
def test_files_of_packages_match_the_catalog(name, empty_cache):
    files = templates.template_files(name)
    found = {kind: hashlib.sha256(path.read_bytes()).hexdigest() for kind, path in files.items()}
    assert found == catalog()[name]["sha256"]


def test_the_brain_mask_includes_the_ventricles():
    template = load_template(MODEL_SPACE)
    np.testing.assert_array_equal(ndimage.binary_fill_holes(template.mask), template.mask)


def test_the_packaged_template_has_a_notice():
    notice = (templates.PACKAGED / "MNI152-LICENSE.txt").read_text()
    assert "Permission to use, copy, modify, and distribute" in notice
    for path in templates.PACKAGED.glob("tpl-*"):
        assert path.name in notice


def test_the_packaged_files_are_in_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["bids_app"]
    files = [path.name for path in templates.PACKAGED.iterdir() if path.suffix != ".py" and path.is_file()]
    assert len(files) > 8
    for name in files:
        assert any(fnmatch(f"data/{name}", pattern) for pattern in patterns), name


@pytest.mark.parametrize("name", [MODEL_SPACE, EMBEDDED])
def test_template_is_cropped_to_the_brain_with_a_margin(name):
    template = load_template(name)
    edges = template.mask.copy()
    edges[4:-4, 4:-4, 4:-4] = False
    assert not edges.any()
    assert max(template.mask.shape) < 110
    assert nib.aff2axcodes(template.affine) == ("R", "A", "S")


def test_warped_tissues_separate_the_intensities_of_the_template():
    template = load_template(MODEL_SPACE)
    grey, white = (template.t1w[(tissue > 0.8) & template.mask] for tissue in (template.gm, template.wm))
    csf = template.t1w[(template.csf > 0.9) & template.mask]
    assert np.percentile(white, 10) > np.percentile(grey, 75)
    assert np.percentile(grey, 25) > np.percentile(csf, 75)


@pytest.mark.parametrize("name", [MODEL_SPACE, EMBEDDED])
def test_tissue_probabilities_sum_to_one_in_the_brain(name):
    template = load_template(name)
    total = template.gm + template.wm + template.csf
    np.testing.assert_allclose(total[template.mask], 1, atol=0.1)
    assert template.csf[~template.mask].max() == 0


def test_matrices_between_spaces_are_inverse():
    forward, backward = space(EMBEDDED).pull_to(space(MODEL_SPACE)), space(MODEL_SPACE).pull_to(space(EMBEDDED))
    np.testing.assert_allclose(forward @ backward, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(forward, space(EMBEDDED).to_model)


def test_brain_mask_on_another_grid_has_the_same_volume():
    template = load_template(EMBEDDED)
    affine = np.diag([-3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = (90, -130, -80)
    brain = brain_on(EMBEDDED, (60, 76, 60), affine)
    assert brain.sum() * 27 == pytest.approx(template.mask.sum() * 8, rel=0.03)


def test_missing_template_is_replaced_by_one_of_its_family_or_the_best_available_one(empty_cache, monkeypatch):
    assert templates.stand_in_for("MNI152NLin2009cAsym") == EMBEDDED
    assert templates.stand_in_for(MODEL_SPACE) == MODEL_SPACE
    monkeypatch.setattr(templates, "PACKAGED", empty_cache)
    assert templates.stand_in_for(MODEL_SPACE) == EMBEDDED
    assert templates.stand_in_for(EMBEDDED) == EMBEDDED
    grid = space(MODEL_SPACE)
    own = brain_on(MODEL_SPACE, grid.shape, grid.affine)
    through = brain_on(EMBEDDED, grid.shape, grid.pull_to(space(EMBEDDED)) @ grid.affine)
    assert own.any()
    np.testing.assert_array_equal(own, through)


def test_empty_transform_between_spaces_is_ignored(empty_cache):
    source = "MNI152NLin2009cAsym"
    path = empty_cache / f"tpl-{MODEL_SPACE}" / f"tpl-{MODEL_SPACE}_from-{source}_mode-image_xfm.h5"
    path.parent.mkdir()
    path.touch()
    assert templates.warp_between(source, MODEL_SPACE) is None
    path.write_bytes(b"transform")
    assert templates.warp_between(source, MODEL_SPACE) == path
    assert templates.warp_between(MODEL_SPACE, source) is None


def test_matrix_of_2009c_equals_2009a_without_asymmetric_terms():
    mirror = np.diag([-1.0, 1, 1, 1])
    family = space(EMBEDDED).to_model
    np.testing.assert_allclose(space("MNI152NLin2009cAsym").to_model, (family + mirror @ family @ mirror) / 2)
