"""Self-test (``--self-test``): checks the numbers of this installation in a few seconds, without any data.

A synthetic series is embedded by the demonstration model under both normalisations and compared with reference values
of the plain PyTorch backend (``data/selftest.json``; ``python -m bids_app.cli.selftest`` writes them when that model
changes). A GPU is also compared with the CPU.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bids_app import __version__
from bids_app.catalog.models import PACKAGE_DATA, adapter_paths, catalog, find_model, weights_path
from bids_app.clips import CLIP_VOLUMES, MODEL_GRID_SHAPE, MODEL_TR, NORMALISATIONS, ClipReader, GridSeries
from bids_app.errors import NeurostormError, SelfTestError
from bids_app.settings import default_cpus

GOLDEN = PACKAGE_DATA / "selftest.json"
MODEL = "demo"
TOLERANCE = 1e-4
"""Maximum difference of an embedding feature (range up to 15) or of a probability."""

Outputs = dict[str, np.ndarray]
"""Embeddings (C,) by normalisation, and under ``prediction`` the adapter's probabilities (n_labels,)."""


def run_self_test(say: Callable[[str], None] = print) -> None:
    """Check the installation and report the results.

    Parameters
    ----------
    say : callable
        Prints a line.

    Raises
    ------
    SelfTestError
        The numbers differ from the reference values, or between two devices.
    NoInputError, CannotCreateError
        A requirement of every run is missing.
    """
    import torch

    from bids_app.model.scan import backend_in_use

    torch.set_num_threads(default_cpus())
    say(f"neurostorm {__version__}, Python {sys.version.split()[0]}, torch {torch.__version__}")
    for line in environment_lines():
        say(line)
    golden = read_golden()
    series = synthetic_series()
    outputs = {device: outputs_on(device, series) for device in devices()}
    for device, found in outputs.items():
        difference = max_difference(found, golden)
        say(f"{device}: {backend_in_use(device)} backend, maximum difference from the reference {difference:.1e}")
        check(difference, f"{device}: the output of the demonstration model is wrong")
    for device in list(outputs)[1:]:
        difference = max_difference(outputs[device], outputs["cpu"])
        say(f"maximum difference between cpu and {device} {difference:.1e}")
        check(difference, f"cpu and {device}: the outputs differ")
    say("self-test passed")


def devices() -> list[str]:
    """Return the CPU and, if available, the GPU."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def environment_lines() -> Iterator[str]:
    """Describe the requirements of a run; raises only if one that every run needs is missing."""
    from bids_app.catalog import templates

    name = templates.load_template().name
    yield f"template: {name} ({templates.space(name).accuracy})"
    here = [entry.name for entry in catalog("models").values() if entry.path.is_file()]
    yield f"models on this machine: {', '.join(here)}"
    try:
        with tempfile.TemporaryFile():
            yield f"scratch: {tempfile.gettempdir()} can be written"
    except OSError as error:
        yield f"scratch: no temporary folder can be written ({error}); set NEUROSTORM_SCRATCH or give --work-dir"


def synthetic_series() -> GridSeries:
    """Make one clip of an oscillating ellipsoid, slower in front than behind; the same on every machine."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in MODEL_GRID_SHAPE), indexing="ij")
    mask = (x / 0.75) ** 2 + (y / 0.9) ** 2 + (z / 0.8) ** 2 < 1
    x, y, z = x[mask], y[mask], z[mask]
    seconds = MODEL_TR * np.arange(CLIP_VOLUMES)[:, None]
    wave = np.sin(2 * np.pi * (0.06 - 0.03 * y) * seconds + 3 * x)
    values = 1000 + 200 * x * y + 100 * z + 30 * (1 + z) * wave  # (T, V)
    return GridSeries(values.astype(np.float32), mask, MODEL_TR)


def outputs_on(device: str, series: GridSeries) -> Outputs:
    """Apply the demonstration model to a series of one clip."""
    from bids_app.adapters.file import AdaptedModel, load_adapter
    from bids_app.adapters.predict import encode_run
    from bids_app.model.api import load_model

    entry = find_model(MODEL)
    model = load_model(weights_path(entry), device)
    adapters = [AdaptedModel(model, load_adapter(path)) for path in adapter_paths(entry, ())]
    embeddings, (prediction,) = encode_run(model, adapters, ClipReader(series), tuple(NORMALISATIONS))
    return {name: values[0] for name, values in embeddings.values.items()} | {"prediction": prediction.values}


def max_difference(found: Outputs, expected: Outputs) -> float:
    """Return the maximum absolute difference over all entries; NaN if one is NaN."""
    return float(np.max([np.abs(found[name] - values).max() for name, values in expected.items()]))


def check(difference: float, message: str) -> None:
    """Raise if a difference exceeds the tolerance or is NaN."""
    if not difference <= TOLERANCE:
        raise SelfTestError(
            f"{message}: difference {difference:.1e}, tolerance {TOLERANCE:g}.",
            "Install the versions in requirements/constraints.txt, or set NEUROSTORM_SCAN=reference (plain PyTorch).",
        )


def read_golden() -> Outputs:
    """Read the reference values.

    Raises
    ------
    SelfTestError
        They belong to another version of the demonstration model.
    """
    content = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if content["model_sha256"] != model_sha256():
        raise SelfTestError(
            "data/selftest.json: the reference values belong to another version of the demonstration model.",
            "Reinstall the package; after a change of the model, run 'python -m bids_app.cli.selftest'.",
        )
    return {name: np.array(values) for name, values in content["answers"].items()}


def model_sha256() -> str:
    """Hash the file of the installed demonstration model."""
    from bids_app.catalog.fetch import file_sha256

    return file_sha256(weights_path(find_model(MODEL)))


def write_golden(path: Path = GOLDEN) -> None:
    """Compute the reference values on the CPU with the plain PyTorch backend and write them."""
    from bids_app.model.scan import ENVIRONMENT_VARIABLE

    os.environ[ENVIRONMENT_VARIABLE] = "reference"
    answers = {
        name: values.astype(float).round(6).tolist() for name, values in outputs_on("cpu", synthetic_series()).items()
    }
    path.write_text(json.dumps({"model_sha256": model_sha256(), "answers": answers}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        write_golden()
    except NeurostormError as problem:
        sys.exit(str(problem))
