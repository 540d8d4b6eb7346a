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


@pytest.fixture
def cgroup_v1(tmp_path: Path, monkeypatch) -> Path:
    """Version 1: one tree per controller, here with those of a job, two levels below the roots."""
    for controller in ("cpu", "memory"):
        (tmp_path / "cgroup" / controller / "slurm" / "job_7").mkdir(parents=True)
    (tmp_path / "self").write_text("5:memory:/slurm/job_7\n4:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/\n0::/\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "self")
    return tmp_path / "cgroup"


def set_quota(folder: Path, quota: int, period: int = 100_000) -> None:
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.mark.parametrize("group", ["", "slurm", "slurm/job_7"], ids=["container", "parent", "own"])
def test_processors_are_limited_by_control_groups_of_version_1(cgroup_v1: Path, group: str, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for folder in ("", "slurm", "slurm/job_7"):
        set_quota(cgroup_v1 / "cpu" / folder, -1)
    assert machine.default_cpus() == 64
    set_quota(cgroup_v1 / "cpu" / group, 350_000)
    assert machine.default_cpus() == 3
    set_quota(cgroup_v1 / "cpu" / group, 20_000)
    assert machine.default_cpus() == 1


def test_a_container_reads_its_own_limits_under_the_path_of_the_host(cgroup_v1: Path, tmp_path: Path) -> None:
    (tmp_path / "self").write_text("5:memory:/docker/0a1b\n4:cpu,cpuacct:/docker/0a1b\n0::/\n")
    set_quota(cgroup_v1 / "cpu", 100_000)
    (cgroup_v1 / "memory" / "memory.limit_in_bytes").write_text("1000000000\n")
    assert machine.default_cpus() == 1
    assert machine.default_memory_gb() == 0.9


def test_memory_is_limited_by_control_groups_of_version_1(cgroup_v1: Path) -> None:
    whole = machine.default_memory_gb()
    (cgroup_v1 / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.default_memory_gb() == whole
    (cgroup_v1 / "memory" / "slurm" / "job_7" / "memory.limit_in_bytes").write_text("1000000000\n")
    assert machine.default_memory_gb() == 0.9


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
