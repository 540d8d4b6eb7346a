"""The public interface in Python: its names, its import, and the lines of docs/python.md."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import bids_app
from bids_app.adapters.predict import encode_run
from bids_app.clips import MODEL_GRID_AFFINE, ClipReader, series_from_image
from tests.helpers.datasets import TinyDataset
from tests.helpers.paths import ROOT

PAGE = ROOT / "docs" / "python.md"
EMBEDDINGS, COMMAND, ERRORS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_names_the_public_interface() -> None:
    listed = PAGE.read_text().partition("`bids_app.__all__`:")[2].partition(".")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(bids_app.__all__)
    assert set(bids_app.__all__) <= set(dir(bids_app))
    for name in bids_app.__all__:
        assert getattr(bids_app, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(bids_app, "no_such_name")  # noqa: B009


def test_import_loads_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import bids_app; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert loaded == {"bids_app"}


def test_the_lines_of_the_documentation_give_the_embeddings_of_the_participant_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bold, mask = write_series(tmp_path)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(EMBEDDINGS, found)
    reader = ClipReader(series_from_image(bold, tmp_path / "series", mask=mask))
    encoded, _ = encode_run(found["model"], [], reader, ("global",))
    expected = encoded.values["global"]
    assert found["embeddings"].shape == expected.shape == (2, found["model"].config.n_features)
    np.testing.assert_array_equal(found["embeddings"], expected)
    assert not np.array_equal(expected[0], expected[1])
    readme, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    again: dict[str, Any] = {"bids_app": bids_app, "nibabel": nib}
    exec(readme.replace("neurostorm-5ds", "demo"), again)
    np.testing.assert_array_equal(again["embeddings"], expected)


def test_the_command_of_the_page_checks_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    TinyDataset(tmp_path / "my_bids")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(COMMAND, found)
    printed = capfd.readouterr()
    assert found["code"] == 0, printed.err
    assert printed.out.endswith("Nothing was written.\n")
    assert not (tmp_path / "out").exists()
    exec(ERRORS, found)
    assert "n_procs" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bold, mask: bids_app.to_model_grid("bold.nii.gz"), "the image is of type str"),
        (lambda bold, mask: bids_app.to_model_grid(None), "the image is of type NoneType"),
        (lambda bold, mask: bids_app.to_model_grid(bold, mask=np.ones(3)), "the mask is of type ndarray"),
        (lambda bold, mask: bids_app.to_model_grid(bold, tr=800, mask=mask), "invalid repetition time: 800 s"),
        (lambda bold, mask: bids_app.to_model_grid(bold, tr="2", mask=mask), "invalid repetition time: '2' s"),
        (lambda bold, mask: bids_app.to_model_grid(bold, mask=mask, normalisation="z"), "Unknown normalisation 'z'"),
        (lambda bold, mask: bids_app.encode("demo", np.zeros((96, 96, 96, 20))), "The model is of type str"),
        (lambda bold, mask: bids_app.encode(bids_app.load_model("demo"), bold), "The series is of type Nifti1Image"),
        (
            lambda bold, mask: bids_app.encode(bids_app.load_model("demo"), np.full((96, 96, 96, 20), np.nan)),
            "The series contains NaN",
        ),
        (lambda bold, mask: bids_app.load_model(5), "A model is a name or a file, not int"),
        (lambda bold, mask: bids_app.load_model("demo", device="gpu"), "Invalid value for device: 'gpu'"),
        (lambda bold, mask: bids_app.load_model("demo", device="cuda:99"), "device cuda:99: "),
    ],
)
def test_arguments_of_another_kind_are_refused_with_a_reason(
    tmp_path: Path, call: Callable[[Any, Any], object], message: str
) -> None:
    with pytest.raises(bids_app.NeurostormError, match=re.escape(message)):
        call(*write_series(tmp_path))


def test_an_array_gives_the_embeddings_of_a_tensor_and_auto_is_a_device(tmp_path: Path) -> None:
    bold, mask = write_series(tmp_path)
    grid, model = bids_app.to_model_grid(bold, mask=mask), bids_app.load_model("demo", device="auto")
    of_array = bids_app.encode(model, grid.numpy().astype(np.float64))
    np.testing.assert_array_equal(of_array, bids_app.encode(model, grid))


def write_series(folder: Path) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Write 5 volumes at 7 s, on a part of the model grid, and a mask; return both as read."""
    shape, affine = (40, 40, 40), MODEL_GRID_AFFINE.copy()
    affine[:3, 3] = (MODEL_GRID_AFFINE @ [20, 30, 40, 1])[:3]
    data = np.random.default_rng(0).normal(1000, 100, (*shape, 5)).astype(np.float32)
    brain = np.zeros(shape, np.uint8)
    brain[5:35, 4:30, 6:38] = 1
    image = nib.Nifti1Image(data, affine)
    image.header.set_zooms((2, 2, 2, 7.0))
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(folder / "bold.nii.gz")
    nib.Nifti1Image(brain, affine).to_filename(folder / "brain_mask.nii.gz")
    return nib.load(folder / "bold.nii.gz"), nib.load(folder / "brain_mask.nii.gz")
