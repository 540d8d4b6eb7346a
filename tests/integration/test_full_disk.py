"""A full output disk, at any point, is reported as such and leaves complete files only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bids_app.cli.phantom import main as phantom
from tests.integration.test_killed import NO_MINIMUM_SPACE, fault_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Study:
    """Dataset with its outputs and scratch folder, so that all steps are in the cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        arguments = ["--participants", "1", "--size", "small", "--states", "rest", "--no-t1w"]
        assert phantom([str(folder / "raw"), *arguments]) == 0
        done = self.run("true", folder / "out", "participant")
        assert done.returncode == 0, done.stderr
        files = (path for path in (folder / "out").rglob("*") if path.is_file())
        self.total_kb = sum(path.stat().st_size for path in files) // 1024

    def run(self, before: str, out: Path, level: str, after: str = "true") -> subprocess.CompletedProcess[str]:
        """Run the app between two commands of the shell that may mount file systems."""
        options = ["-w", self.folder / "work", "--model", "demo", "--nprocs", "1", "--output-spaces", "MNI152NLin6Asym"]
        call = [sys.executable, "-c", NO_MINIMUM_SPACE, self.folder / "raw", out, level, *options]
        script = f'{before} && "$@"; code=$?; {after}; exit $code'
        command = ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, call)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    return Study(tmp_path_factory.mktemp("full_disk"))


def check(done: subprocess.CompletedProcess[str], kept: Path) -> None:
    """Check that a full disk was reported, and that only complete files are left."""
    assert done.returncode == 74, done.stderr
    assert "no space left" in done.stderr.lower()
    assert "Traceback" not in done.stderr
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert [path.name for path in files if path.name.startswith((".neurostorm-", "running"))] == []
    assert [fault for path in files if (fault := fault_of(path))] == []


@pytest.mark.parametrize("share", [0.001, 0.003, 0.01, 0.1, 0.3, 0.6, 0.9, 0.97, 0.99])
def test_an_output_disk_that_is_full_at_any_point_is_reported(study: Study, tmp_path: Path, share: float) -> None:
    """The size of the disk is a fraction of the size of the outputs."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size={int(share * study.total_kb)}k none {disk}"
    check(study.run(mount, disk, "participant", f"cp -r {disk} {kept}"), kept)


@pytest.mark.parametrize("free_kb", [4, 20, 40, 60])
def test_a_full_disk_is_reported_by_the_group_level(study: Study, tmp_path: Path, free_kb: int) -> None:
    """The outputs of the group level take about 100 kB."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    shutil.rmtree(study.folder / "out" / "phenotype", ignore_errors=True)
    fill = (
        f"mount -t tmpfs -o size=4g none {disk} && cp -r {study.folder / 'out'}/. {disk} && "
        f"mount -o remount,size=$(( $(df -k --output=used {disk} | tail -1) + {free_kb} ))k {disk}"
    )
    check(study.run(fill, disk, "group", f"cp -r {disk} {kept}"), kept)
