"""Default resources: limits of the machine, job, container and affinity."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bids_app.settings import machine


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch) -> Path:
    """Control group of a job, two levels below the root."""
    own = tmp_path / "cgroup" / "slurm" / "job_7"
    own.mkdir(parents=True)
    (tmp_path / "self").write_text("0::/slurm/job_7\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "self")
    return own


def test_memory_is_the_minimum_of_all_parent_control_groups(cgroup: Path) -> None:
    whole = machine.default_memory_gb()
    (cgroup / "memory.max").write_text("max\n")
    assert machine.default_memory_gb() == whole
    (cgroup.parent / "memory.max").write_text("2000000000\n")
    assert machine.default_memory_gb() == 1.8
    (cgroup / "memory.max").write_text("1000000000\n")
    assert machine.default_memory_gb() == 0.9


def test_processors_are_limited_by_the_control_group(cgroup: Path) -> None:
    (cgroup / "cpu.max").write_text("max 100000\n")
    assert machine.default_cpus() == len(os.sched_getaffinity(0))
    (cgroup.parent / "cpu.max").write_text("150000 100000\n")
    assert machine.default_cpus() == 1


def test_without_control_groups_the_machine_is_the_limit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "none")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "none")
    assert machine.default_cpus() == len(os.sched_getaffinity(0))
    assert machine.default_memory_gb() > 0


def test_processors_follow_the_affinity() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from bids_app.settings import default_cpus; print(default_cpus())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def test_an_unknown_user_has_a_home_that_does_not_exist(monkeypatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError()))
    assert not machine.home_dir().exists()
