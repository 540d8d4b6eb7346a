"""Data and scripts of the viewer, and what a page says about them."""

import base64
import gzip
import hashlib
import json
import re
import shutil
from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest

from bids_app.reports.contents import Reader
from bids_app.reports.participant import build_participant_report
from bids_app.reports.viewer import (
    ASSETS,
    MAX_POINTS,
    NIIVUE,
    NIIVUE_SHA256,
    RegionData,
    encode_image,
    encode_map,
    viewer_facts,
    write_region_data,
    write_run_data,
)

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
STEM = "sub-01_task-rest_run-1"
LIMIT_BYTES = 12_000_000
"""Maximum size of a page with everything that its viewer loads."""


def read_data(path):
    """Return name and content of a data file."""
    call = re.fullmatch(r"neurostormViewer\((.*)\);\n", path.read_text(), re.DOTALL)[1]
    return json.loads(f"[{call}]")


def image_of(text):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def test_niivue_is_the_known_file():
    content = files("bids_app.reports").joinpath("assets", NIIVUE).read_bytes()
    assert hashlib.sha256(content).hexdigest() == NIIVUE_SHA256


def test_intensities_and_signed_values_survive_within_their_precision():
    values = np.random.default_rng(0).uniform(0, 900, (8, 9, 10)).astype(np.float32)
    image = image_of(encode_image(values, AFFINE))
    assert image.get_data_dtype() == np.uint8
    assert np.abs(image.get_fdata() - np.minimum(values, image.get_fdata().max())).max() < 900 / 255
    signed = values - 450
    assert image_of(encode_map(signed, AFFINE)).get_fdata() == pytest.approx(signed, abs=0.02)


def test_an_image_without_signal_is_encoded_as_zeros():
    assert not image_of(encode_image(np.zeros((4, 4, 4)), AFFINE)).get_fdata().any()
    assert not image_of(encode_map(np.zeros((4, 4, 4)), AFFINE)).get_fdata().any()


def test_the_mask_is_written_as_an_outline(tmp_path):
    mask = np.zeros((12, 12, 12), bool)
    mask[2:10, 2:10, 2:10] = True
    name, data = read_data(write_run_data(tmp_path / "a.js", mask * 5.0, mask, AFFINE, anatomy="b.js"))
    outline = image_of(data["mask"]).get_fdata() > 0
    assert (name, data["anatomy"], data["patch"]) == ("a.js", "b.js", 6)
    assert outline.sum() == 8**3 - 6**3
    assert not outline[5, 5, 5]


def regions_of(n_vols, names=("a", "</script><b>", "c")):
    labels = np.zeros((6, 6, 6), int)
    labels[:2], labels[4:] = 1, 2
    series = np.stack([np.arange(n_vols) - 5.0, -np.arange(n_vols), np.full(n_vols, np.nan)])
    numbers = np.array([0.5, -1.25, np.nan])
    return RegionData(labels, names, numbers, np.abs(numbers), None, series, "a.u.", 2.0)


def test_regions_keep_their_numbers_and_time_courses(tmp_path):
    regions = regions_of(10)
    path = write_region_data(tmp_path / "a.js", np.ones((6, 6, 6)), AFFINE, regions, "log-odds", "rest", "aal3")
    assert "</script>" not in path.read_text()
    _, data = read_data(path)
    assert [one["name"] for one in data["regions"]] == list(regions.names)
    assert [one["value"] for one in data["regions"]] == [0.5, -1.25, None]
    assert [one["p"] for one in data["regions"]] == [None] * 3
    assert data["regions"][0]["at"] == [0.0, 4.0, 4.0]
    assert data["regions"][2]["at"] is None
    steps = np.frombuffer(base64.b64decode(data["series"]), np.int8).reshape(3, 10)
    peaks = np.array([one["peak"] for one in data["regions"]])[:, None]
    assert (steps[:2] * peaks[:2] / 127) == pytest.approx(regions.series[:2], abs=0.05)
    assert not steps[2].any()
    assert (data["seconds"], data["unit"], data["answer"], data["atlas"]) == (2.0, "log-odds", "rest", "aal3")


def test_time_courses_of_long_runs_are_averaged(tmp_path):
    n_vols = 2 * MAX_POINTS + 1
    path = write_region_data(tmp_path / "a.js", np.ones((6, 6, 6)), AFFINE, regions_of(n_vols), "", "", "")
    _, data = read_data(path)
    assert (data["points"], data["seconds"]) == (401, 6.0)
    assert len(base64.b64decode(data["series"])) == 3 * 401


def test_page_scripts_and_data_stay_below_the_limit(derivatives):
    page = build_participant_report(derivatives.out, "01")
    data = [*derivatives.out.glob(f"{ASSETS}/*.js"), *derivatives.out.glob(f"sub-01/figures/{STEM}_*.js")]
    assert len(data) == 5
    rest = LIMIT_BYTES - page.stat().st_size - sum(path.stat().st_size for path in data)
    full = np.random.default_rng(0).integers(1, 255, (96, 96, 96))  # noise cannot be compressed
    assert 4 * len(encode_image(full.astype(np.float32), AFFINE)) < rest  # T1w, BOLD, map and labels


def test_a_page_loads_only_its_own_script_and_those_that_it_asks_for(derivatives):
    text = build_participant_report(derivatives.out, "01").read_text()
    assert re.search(r"script-src 'sha256-[\w+/=]+' 'strict-dynamic'\"", text)
    facts = json.loads(re.search(r'id="viewer-facts">(.*?)</script>', text)[1])
    assert all((derivatives.out / url).is_file() for url in facts["scripts"].values())
    assert facts["folder"] == "sub-01/figures/"
    stems = [STEM, STEM.replace("run-1", "run-2")]
    titles = ("task-rest, run-1", "task-rest, run-2")
    assert facts["runs"] == [[title, stem, ["demostate"]] for title, stem in zip(titles, stems, strict=True)]


def test_without_data_there_is_no_viewer(out):
    shutil.rmtree(out / ASSETS, ignore_errors=True)
    for path in out.glob("sub-01/figures/*.js"):
        path.unlink()
    text = build_participant_report(out, "01").read_text()
    assert 'id="viewer"' not in text
    assert '<script type="application/json"' not in text
    assert not list((out / ASSETS).glob("*.js"))


def test_contributions_to_a_withheld_prediction_are_not_in_the_viewer(out):
    card = out / f"sub-01/func/{STEM}_desc-demostate_predictions.json"
    found = []
    for extra in ({}, {"Verdict": {"Level": "refuse"}}):
        card.write_text(json.dumps(json.loads(card.read_text()) | extra))
        found.append([adapters for _, _, adapters in viewer_facts(Reader(out, "01").read(), {})["runs"]])
    assert found == [[["demostate"], ["demostate"]], [[], ["demostate"]]]


def test_scripts_that_are_damaged_are_written_again(out):
    build_participant_report(out, "01")
    niivue = out / ASSETS / NIIVUE
    niivue.write_text("cut")
    build_participant_report(out, "01")
    assert hashlib.sha256(niivue.read_bytes()).hexdigest() == NIIVUE_SHA256
