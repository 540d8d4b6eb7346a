"""Repeatability: same seed, same derivatives; another seed, other derivatives; threads hardly matter."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from bids_app.cli.neurostorm import main
from bids_app.cli.phantom import main as phantom

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("repeatability") / "raw"
    assert phantom([str(folder), "--participants", "1", "--seed", "5", "--size", "small", "--states", "lefthand"]) == 0
    return folder


@pytest.fixture(scope="module")
def once(raw: Path, tmp_path_factory) -> Path:
    return run(raw, tmp_path_factory.mktemp("once"))


def run(raw: Path, folder: Path, *options: str) -> Path:
    """Run the app with separate scratch and output folders."""
    out = folder / "out"
    where = [str(raw), str(out), "participant", "--model", "demo", "-w", str(folder / "work")]
    assert main([*where, "--output-spaces", "MNI152NLin6Asym", "--nprocs", "2", *options]) == 0
    return out


def contents(out: Path) -> dict[str, str]:
    """Hash each derivative; logs and the page contain times and are left out."""
    files = [p for p in out.rglob("*") if p.is_file() and "log" not in p.relative_to(out).parts and p.suffix != ".html"]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.parent != out}


def mean_embeddings(out: Path) -> np.ndarray:
    (path,) = out.glob("sub-*/func/*_embeddings.tsv")
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["clip"] == "mean"]
    return np.array([[float(v) for k, v in row.items() if k.startswith("e0")] for row in rows])


def test_the_same_seed_gives_the_same_bits(raw: Path, once: Path, tmp_path: Path) -> None:
    again, first = contents(run(raw, tmp_path)), contents(once)
    assert again.keys() == first.keys()
    assert [name for name in first if again[name] != first[name]] == []


def test_another_seed_gives_other_alignments_and_is_recorded(raw: Path, once: Path, tmp_path: Path) -> None:
    other = run(raw, tmp_path, "--random-seed", "7")
    (quality,) = other.glob("sub-*/func/*_desc-quality_metrics.json")
    assert json.loads(quality.read_text())["parameters"]["RandomSeed"] == 7
    name = "sub-01/anat/sub-01_from-T1w_to-MNI152NLin6Asym_mode-image_xfm.h5"
    first, second = contents(once), contents(other)
    assert first[name] != second[name]


def test_another_number_of_threads_hardly_changes_embeddings(raw: Path, once: Path, tmp_path: Path) -> None:
    other = run(raw, tmp_path, "--nprocs", "1", "--omp-nthreads", "1")
    for first, second in zip(mean_embeddings(once), mean_embeddings(other), strict=True):
        assert 1 - np.corrcoef(first, second)[0, 1] < 1e-3
