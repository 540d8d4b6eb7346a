"""``--self-test``: whether this installation computes what it should, within some seconds and without any data.

A series is made in code, embedded by the demonstration model under both normalisations, and compared with golden
values that the plain PyTorch backend gave (``data/selftest.json``; ``python -m bids_app.cli.selftest`` writes them
when that model changes). Where there is a GPU, it is compared with the CPU as well.
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
"""Largest difference of an embedding's entry, whose size is up to 15, or of a probability."""

Answers = dict[str, np.ndarray]
"""Embeddings (C,) by normalisation, and under ``prediction`` the adapter's probabilities (n_labels,)."""


def run_self_test(say: Callable[[str], None] = print) -> None:
    """Check everything that can be checked without data, and say what was found.

    Parameters
    ----------
    say : callable
        Takes each line.

    Raises
    ------
    SelfTestError
        The numbers are not those of the golden file, or those of two devices differ.
    NoInputError, CannotCreateError
        Something that every run needs is missing.
    """
    import torch

    from bids_app.model.scan import backend_in_use

    torch.set_num_threads(default_cpus())
    say(f"neurostorm {__version__}, Python {sys.version.split()[0]}, torch {torch.__version__}")
    for line in surroundings():
        say(line)
    golden = read_golden()
    series = made_series()
    answers = {device: answers_on(device, series) for device in devices()}
    for device, found in answers.items():
        difference = largest_difference(found, golden)
        say(f"{device}: scanned by {backend_in_use(device)}, differs from the golden values by {difference:.1e}")
        check(difference, f"On {device} the demonstration model gives other numbers than it should")
    for device in list(answers)[1:]:
        difference = largest_difference(answers[device], answers["cpu"])
        say(f"cpu and {device} differ by {difference:.1e}")
        check(difference, f"cpu and {device} give different numbers")
    say("self-test passed")


def devices() -> list[str]:
    """The CPU, and a GPU where there is one."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def surroundings() -> Iterator[str]:
    """What is at hand for a run; nothing here fails but what no run can do without."""
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


def made_series() -> GridSeries:
    """One clip of an ellipsoid whose voxels oscillate, slower in front than behind; the same on every machine."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in MODEL_GRID_SHAPE), indexing="ij")
    mask = (x / 0.75) ** 2 + (y / 0.9) ** 2 + (z / 0.8) ** 2 < 1
    x, y, z = x[mask], y[mask], z[mask]
    seconds = MODEL_TR * np.arange(CLIP_VOLUMES)[:, None]
    wave = np.sin(2 * np.pi * (0.06 - 0.03 * y) * seconds + 3 * x)
    values = 1000 + 200 * x * y + 100 * z + 30 * (1 + z) * wave  # (T, V)
    return GridSeries(values.astype(np.float32), mask, MODEL_TR)


def answers_on(device: str, series: GridSeries) -> Answers:
    """What the demonstration model makes of a series of one clip, on a device."""
    from bids_app.adapters.file import AdaptedModel, load_adapter
    from bids_app.adapters.predict import encode_run
    from bids_app.model.api import load_model

    entry = find_model(MODEL)
    model = load_model(weights_path(entry), device)
    adapters = [AdaptedModel(model, load_adapter(path)) for path in adapter_paths(entry, ())]
    embeddings, (prediction,) = encode_run(model, adapters, ClipReader(series), tuple(NORMALISATIONS))
    return {name: values[0] for name, values in embeddings.values.items()} | {"prediction": prediction.values}


def largest_difference(found: Answers, expected: Answers) -> float:
    """Over all entries; NaN where one is NaN."""
    return float(np.max([np.abs(found[name] - values).max() for name, values in expected.items()]))


def check(difference: float, message: str) -> None:
    """Raise unless a difference is within the tolerance; NaN is not."""
    if not difference <= TOLERANCE:
        raise SelfTestError(
            f"{message}: {difference:.1e} is more than {TOLERANCE:g}.",
            "Install the versions of requirements/constraints.txt; NEUROSTORM_SCAN=reference avoids our own kernels.",
        )


def read_golden() -> Answers:
    """The golden values.

    Raises
    ------
    SelfTestError
        They were made with another model than the one that is installed.
    """
    content = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if content["model_sha256"] != model_sha256():
        raise SelfTestError(
            "The demonstration model is not the one that the golden values were made with.",
            "Install the package again; who changed the model writes them with 'python -m bids_app.cli.selftest'.",
        )
    return {name: np.array(values) for name, values in content["answers"].items()}


def model_sha256() -> str:
    """Of the installed demonstration model's file."""
    from bids_app.catalog.fetch import file_sha256

    return file_sha256(weights_path(find_model(MODEL)))


def write_golden(path: Path = GOLDEN) -> None:
    """Write the golden values, computed on the CPU by the plain PyTorch backend."""
    from bids_app.model.scan import ENVIRONMENT_VARIABLE

    os.environ[ENVIRONMENT_VARIABLE] = "reference"
    answers = {
        name: values.astype(float).round(6).tolist() for name, values in answers_on("cpu", made_series()).items()
    }
    path.write_text(json.dumps({"model_sha256": model_sha256(), "answers": answers}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        write_golden()
    except NeurostormError as problem:
        sys.exit(str(problem))
