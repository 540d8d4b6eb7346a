"""Two hundred participants through one process: memory and open files stay flat, and scratch stays small.

`NEUROSTORM_LONG_RUN=20` makes it twenty.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from bids_app.model.encoder import EncoderConfig
from tests.helpers.datasets import PreprocessedTree
from tests.helpers.models import save_random_encoder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]
CONFIG = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))
N_PARTICIPANTS = int(os.environ.get("NEUROSTORM_LONG_RUN", "200"))
MAX_FILES = 200
"""Maximum number of files of a run in scratch."""


@pytest.fixture(scope="module")
def command(standard_brain, tmp_path_factory) -> list[str]:
    """Command for ingested runs: the same images under different names."""
    folder = tmp_path_factory.mktemp("long")
    made = PreprocessedTree(folder / "fmriprep")
    made.write_run("001", standard_brain.series(), standard_brain.mask, standard_brain.affine)
    made.write_confounds("001", {"framewise_displacement": np.full(40, 0.2), "global_signal": np.ones(40)})
    for number in range(2, N_PARTICIPANTS + 1):
        for path in (made.root / "sub-001").rglob("*.*"):
            other = Path(str(path).replace("sub-001", f"sub-{number:03}"))
            other.parent.mkdir(parents=True, exist_ok=True)
            other.hardlink_to(path)
    weights = save_random_encoder(folder / "tiny.safetensors", CONFIG)
    where = [str(made.root), str(folder / "out"), "participant", "-w", str(folder / "work")]
    return [
        sys.executable,
        "-m",
        "bids_app.cli.neurostorm",
        *where,
        "--model",
        str(weights),
        "--nprocs",
        "1",
        "--mem",
        "4GB",
    ]


def watch(call: list[str], out: Path) -> tuple[int, np.ndarray]:
    """Run a command; return its exit code, and memory (MB) and open files after each participant."""
    process = subprocess.Popen(call, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    supervisor, watched, seen = psutil.Process(process.pid), None, []
    while process.poll() is None:
        done = len(list(out.glob("sub-*/func/*_embeddings.tsv")))
        try:
            watched = watched or next(iter(supervisor.children()), None)  # the run itself
            while watched and len(seen) < done:
                seen.append((watched.memory_full_info().uss / 1e6, watched.num_fds()))
        except psutil.Error:
            break
        time.sleep(0.2)
    return process.wait(), np.array(seen)


def test_memory_and_open_files_stay_constant_and_scratch_small(command) -> None:
    out, work = Path(command[4]), Path(command[7])
    code, seen = watch(command, out)
    assert code == 0
    assert len(list(out.glob("sub-*.html"))) == N_PARTICIPANTS
    quarter = max(1, len(seen) // 4)
    (memory, files), (memory_then, files_then) = np.median(seen[-quarter:], axis=0), np.median(seen[:quarter], axis=0)
    print(f"{len(seen)} participants: {memory_then:.0f} to {memory:.0f} MB, {files_then:.0f} to {files:.0f} open files")
    assert memory < memory_then + 50
    assert files < files_then + 5
    scratch = [path for path in work.rglob("*") if path.is_file()]
    assert len(scratch) < MAX_FILES * N_PARTICIPANTS
    print(f"{len(scratch) / N_PARTICIPANTS:.0f} files of a run in scratch")


def test_clean_workdir_leaves_nothing(command) -> None:
    work = Path(command[7])
    code, _ = watch([*command, "--clean-workdir"], Path(command[4]))
    assert code == 0
    assert not work.exists()
