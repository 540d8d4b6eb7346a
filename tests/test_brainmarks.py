"""The plugin of Brainmarks: its contract, and numbers equal to those of `to_model_grid` and `encode`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

import bids_app
from bids_app.catalog.models import catalog
from bids_app.clips import NORMALISATIONS
from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.model.api import Model
from tests.helpers.paths import ROOT

PLUGIN = ROOT / "brainmarks" / "models" / "neurostorm_bids_app.py"
INSTALLED = ROOT / "build" / "integrations"
"""Where ``make test-slow`` installs Brainmarks, some of whose dependencies have to be compiled."""
REGISTERED = "bids_app_demo"
N_VOXELS = 228_483
INT8_STEPS = 127
needs_brainmarks = pytest.mark.skipif(
    not (INSTALLED / "brainmarks").is_dir(), reason="brainmarks is not installed (make test-slow)"
)


class Embeddings(NamedTuple):
    """As in ``brainmarks.models.base``."""

    cls_embeds: torch.Tensor | None
    reg_embeds: torch.Tensor | None
    patch_embeds: torch.Tensor | None


def load_plugin() -> ModuleType:
    spec = importlib.util.spec_from_file_location("brainmarks.models.neurostorm_bids_app", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Load the plugin with a stand-in of Brainmarks' contract, and return the registered functions by name."""
    found: dict[str, Any] = {}

    def register_model(given: Any) -> Any:
        if callable(given):
            return found.setdefault(given.__name__, given)
        return lambda function: found.setdefault(given, function)

    base, registry = ModuleType("brainmarks.models.base"), ModuleType("brainmarks.models.registry")
    vars(base).update(Embeddings=Embeddings, ModelTransform=object, ModelWrapper=nn.Module)
    vars(registry).update(register_model=register_model)
    for module in (ModuleType("brainmarks"), ModuleType("brainmarks.models"), base, registry):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    load_plugin()
    return found


@pytest.fixture(scope="module")
def mask() -> nib.Nifti1Image:
    return nib.load(ROOT / "bids_app" / "data" / "tpl-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz")


@pytest.fixture(scope="module")
def series(mask: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return 5 volumes at 6.5 s (41 at 0.8 s) on the 2 mm grid, without signal in a part of the brain, stored L-A-S."""
    draws = np.random.default_rng(1)
    data = draws.normal(1000, 150, (*mask.shape, 1)) + draws.normal(0, 400, (*mask.shape, 5))
    data[:, :, :20] = 0
    image = nib.Nifti1Image(data.astype(np.float32), mask.affine)
    image.header.set_zooms((2, 2, 2, 6.5))
    image.header.set_xyzt_units("mm", "sec")
    return image.as_reoriented([[0, -1], [1, 1], [2, 1]])


def sample_of(rows: np.ndarray, dtype: type = np.float32) -> dict[str, Any]:
    """Make a sample of Brainmarks from a series (T, V)."""
    mean, std = rows.mean(axis=0, keepdims=True), rows.std(axis=0, keepdims=True)
    bold = (rows - mean) / np.where(std > 0, std, 1)
    values = {"bold": bold.astype(dtype), "mean": mean.astype(np.float32), "std": std.astype(np.float32)}
    return {name: torch.from_numpy(value) for name, value in values.items()} | {"tr": 6.5}


@pytest.fixture(scope="module")
def rows(series: nib.Nifti1Image, mask: nib.Nifti1Image) -> np.ndarray:
    """Return the brain of the series as Brainmarks reads it: R-A-S, (t, z, y, x), columns in C order."""
    data = nib.as_closest_canonical(series).get_fdata().T
    return data[:, np.asarray(mask.dataobj).T > 0]


def test_every_encoder_of_the_catalog_and_files_are_registered(models: dict[str, Any]) -> None:
    names = {f"bids_app_{name.replace('-', '_').replace('.', 'p')}" for name in catalog()}
    assert set(models) == names | {"bids_app_file"}
    assert {"bids_app_neurostorm_5ds", REGISTERED} <= names


def test_weights_that_were_not_fetched_are_named(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path))
    with pytest.raises(NoInputError, match="neurostorm-models fetch neurostorm-5ds"):
        models["bids_app_neurostorm_5ds"]()


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_transform_equals_to_model_grid_within_an_int8_step(
    models: dict[str, Any], series: nib.Nifti1Image, mask: nib.Nifti1Image, rows: np.ndarray, normalisation: str
) -> None:
    assert rows.shape[1] == N_VOXELS
    transform, wrapper = models[REGISTERED](normalisation=normalisation)
    assert wrapper.__space__ == "mni"
    expected = bids_app.to_model_grid(series, mask=mask, normalisation=normalisation)
    assert expected.shape[-1] == 41
    step = float(expected.abs().max()) / INT8_STEPS
    for dtype, limit in ((np.float32, step / 50), (np.float16, step)):
        sample = transform(sample_of(rows, dtype))
        assert sample["bold"].shape == (1, 96, 96, 96, 40)
        assert float((sample["bold"][0] - expected[..., :40]).abs().max()) <= limit


def test_mean_of_the_tokens_is_the_embedding_of_the_run(
    models: dict[str, Any], series: nib.Nifti1Image, mask: nib.Nifti1Image, rows: np.ndarray
) -> None:
    transform, wrapper = models["bids_app_file"](ckpt_path=str(ROOT / "bids_app" / "data" / "demo_encoder.safetensors"))
    bold = transform(sample_of(rows))["bold"]
    batch = {"bold": torch.stack([bold, -bold])}
    with torch.autocast("cpu", torch.bfloat16):
        cls, reg, patch = wrapper(batch)
    model: Model = wrapper.model
    x, y, z, t = model.encode(bold[None, ..., :20]).shape[2:]
    assert (cls, reg) == (None, None)
    assert patch.shape == (2, 2 * x * y * z * t, model.config.n_features)
    assert patch.dtype == torch.float32
    expected = bids_app.encode(model, bids_app.to_model_grid(series, mask=mask))
    clips = patch.unflatten(1, (2, -1)).mean(dim=2).numpy()
    limit = 1e-4 * np.abs(expected).max()
    assert np.abs(clips[0] - expected).max() < limit
    assert np.abs(clips[0] - expected[::-1]).max() > 10 * limit
    assert np.abs(clips[1] - expected).max() > 10 * limit


def test_number_of_windows_is_an_option(models: dict[str, Any], rows: np.ndarray) -> None:
    for options, expected in (({}, 8), ({"max_windows": None}, None), ({"max_windows": 1}, 1)):
        transform, _ = models[REGISTERED](**options)
        assert transform.max_windows == expected
    assert transform(sample_of(rows))["bold"].shape == (1, 96, 96, 96, 20)


def test_invalid_options_and_samples_are_refused(models: dict[str, Any], rows: np.ndarray) -> None:
    for options in ({"normalisation": "none"}, {"max_windows": 0}):
        with pytest.raises(UsageError, match=next(iter(options))[:9]):
            models[REGISTERED](**options)
    with pytest.raises(UsageError, match="ckpt_path"):
        models["bids_app_file"]()
    transform, _ = models[REGISTERED]()
    with pytest.raises(BadDataError, match="228483"):
        transform(sample_of(rows[:, :400]))
    with pytest.raises(BadDataError, match=r"13\.0 s"):
        transform(sample_of(rows[:2]))
    with pytest.raises(BadDataError, match=r"Invalid repetition time: 2000\.0 s"):
        transform(sample_of(rows) | {"tr": 2000.0})  # milliseconds


def test_without_brainmarks_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "brainmarks.models.base", None)
    with pytest.raises(ImportError, match=r"pip install .neurostorm\[brainmarks\]"):
        load_plugin()


def test_the_wheel_adds_the_module_to_the_namespace_of_brainmarks() -> None:
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert any(fnmatch("brainmarks.models", pattern) for pattern in find["include"])
    assert find.get("namespaces", True)
    files = [path for path in (ROOT / "brainmarks").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert files == [PLUGIN]  # an __init__.py would hide Brainmarks' own modules


@pytest.fixture
def run_with_brainmarks(tmp_path: Path):
    """Run code in a process in which Brainmarks can be imported; return what it prints."""
    (tmp_path / "cortex.py").touch()  # pycortex draws flat maps, has to be compiled, and is not used here
    folders = [str(ROOT), str(tmp_path), str(INSTALLED)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "HOME": str(tmp_path)}

    def run(code: str, *arguments: object) -> str:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


CONTRACT = """
import sys
from brainmarks.models import registry, test_models
registry.register_model("own_file")(
    lambda: registry.create_model("bids_app_file", ckpt_path=sys.argv[2], normalisation="voxel")
)
for n_samples in (16, 160):
    test_models.test_model(sys.argv[1], n_samples)
print(*registry.list_models())
"""

READ = """
import sys
import numpy as np
from brainmarks import nisc, readers
from brainmarks.models.registry import create_model
mask = nisc.read_mni152_2mm_data(sys.argv[1], interpolation="nearest") > 0
rows = nisc.read_mni152_2mm_data(sys.argv[2], interpolation="linear")[:, mask]
assert rows.shape[1] == readers.DATA_DIMS["mni"]
mean, std = rows.mean(axis=0, keepdims=True), rows.std(axis=0, keepdims=True)
sample = {"bold": (rows - mean) / np.where(std > 0, std, 1), "mean": mean, "std": std, "tr": 6.5}
transform, _ = create_model("bids_app_demo", normalisation=sys.argv[3])
np.save(sys.argv[4], transform(sample)["bold"][0].numpy())
"""


@needs_brainmarks
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [REGISTERED, "own_file"])
def test_the_contract_of_brainmarks_is_kept_for_16_and_160_volumes(run_with_brainmarks, name: str) -> None:
    printed = run_with_brainmarks(CONTRACT, name, ROOT / "bids_app" / "data" / "demo_encoder.safetensors")
    assert {REGISTERED, "bids_app_neurostorm_5ds", "bids_app_file"} <= set(printed.split())


@needs_brainmarks
@pytest.mark.slow
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_series_read_by_brainmarks_equals_to_model_grid(
    run_with_brainmarks, tmp_path: Path, series: nib.Nifti1Image, mask: nib.Nifti1Image, normalisation: str
) -> None:
    series.to_filename(tmp_path / "bold.nii.gz")
    mask.to_filename(tmp_path / "mask.nii.gz")
    run_with_brainmarks(READ, tmp_path / "mask.nii.gz", tmp_path / "bold.nii.gz", normalisation, tmp_path / "found.npy")
    expected = bids_app.to_model_grid(series, mask=mask, normalisation=normalisation).numpy()
    found = np.load(tmp_path / "found.npy")
    assert np.abs(found - expected[..., :40]).max() <= np.abs(expected).max() / INT8_STEPS


@needs_brainmarks
@pytest.mark.slow
def test_no_file_of_brainmarks_has_the_name_of_the_module() -> None:
    assert (INSTALLED / "brainmarks" / "models" / "registry.py").is_file()
    assert not (INSTALLED / "brainmarks" / "models" / PLUGIN.name).exists()
