"""The container under a memory limit and when it is stopped: no false success, no leftovers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from bids_app.cli.phantom import main as phantom
from tests.container.conftest import Image, readable

pytestmark = [pytest.mark.container, pytest.mark.timeout(7200)]
LIMIT = "700m"
STOP_S = 30
"""Time between SIGTERM and SIGKILL of ``docker stop --time 30``."""


@pytest.fixture
def work(out: Path) -> Path:
    """An empty scratch folder writable by all users."""
    folder = out.with_name("work")
    folder.mkdir()
    folder.chmod(0o1777)  # like /tmp: others cannot exchange what is in it
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated participant with a T1w image."""
    folder = tmp_path_factory.mktemp("one") / "raw"
    assert phantom([str(folder), "--participants", "1", "--size", "small", "--states", "rest"]) == 0
    readable(folder)
    return folder


def bound(raw: Path, out: Path, work: Path) -> list[str]:
    return ["-v", f"{raw}:/data:ro", "-v", f"{out}:/out", "-v", f"{work}:/work"]


def participant(*options: str) -> tuple[str, ...]:
    return ("/data", "/out", "participant", "--model", "demo", "-w", "/work", "--nprocs", "2", *options)


def summaries(out: Path) -> dict[Path, dict]:
    return {path: json.loads(path.read_text()) for path in out.glob("sub-*/log/*/summary.json")}


def derivatives(out: Path) -> dict[str, str]:
    """Hash all derivatives of participants by their path; logs and figures are left out."""
    found = (path for path in out.glob("sub-*/**/*") if path.is_file() and "log" not in path.parts)
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def is_failure(summary: dict) -> bool:
    return all(run["status"] == "failed" for run in summary["runs"])


def test_limits_of_the_container_are_the_default(image: Image) -> None:
    code = "from bids_app.settings import default_cpus, default_memory_gb; print(default_cpus(), default_memory_gb())"
    python = ["--entrypoint", "/opt/neurostorm/bin/python"]
    done = image.run(["--cpus", "1", "--memory", LIMIT, *python], "-c", code)
    assert done.stdout.split() == ["1", "0.66"], done.stderr  # 90 % of 700 MiB


def test_a_run_that_does_not_fit_into_the_container_is_refused(image: Image, raw: Path, out: Path, work: Path) -> None:
    done = image.run([*bound(raw, out, work), "--memory", LIMIT], *participant())
    assert done.returncode not in (0, 70), done.stderr
    assert "--mem" in done.stderr
    assert not list(out.glob("sub-*/**/*_embeddings.tsv"))


def test_a_run_killed_for_memory_does_not_pass_earlier_results_as_its_own(
    image: Image, raw: Path, out: Path, work: Path
) -> None:
    first = image.run(bound(raw, out, work), *participant())
    assert first.returncode == 0, first.stdout + first.stderr
    before, logs = derivatives(out), summaries(out)
    assert [name for name in before if name.endswith("_embeddings.tsv")]
    # --mem claims memory that the container does not have, so that the kernel kills a process
    killed = image.run([*bound(raw, out, work), "--memory", LIMIT], *participant("--dummy-scans", "4", "--mem", "8GB"))
    assert killed.returncode != 0, killed.stderr
    assert "1 of 1 runs" not in killed.stdout + killed.stderr
    new = {path: summary for path, summary in summaries(out).items() if path not in logs}
    assert all(is_failure(summary) for summary in new.values()), new
    again = image.run(bound(raw, out, work), *participant("--dummy-scans", "4"))
    assert again.returncode == 0, again.stderr
    after = derivatives(out)
    (confounds,) = [name for name in before if name.endswith("_desc-confounds_timeseries.tsv")]
    assert after[confounds] != before[confounds]


def test_a_stopped_container_ends_cleanly_in_time(image: Image, raw: Path, out: Path, work: Path) -> None:
    name = f"neurostorm-stopped-{os.getpid()}"
    command = [*image.engine.run, "--name", name, *bound(raw, out, work), image.tag, *participant()]
    environment = os.environ | image.engine.environment
    run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    end = time.monotonic() + 600
    while not list(work.glob("neurostorm/*_examine/done.json")):
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.2)
    assert image.plain("exec", name, "cat", "/proc/1/comm") == "tini"
    stopped = time.monotonic()
    image.plain("stop", "--time", STOP_S, name)
    seconds = time.monotonic() - stopped
    _, said = run.communicate(timeout=STOP_S)
    assert run.returncode == 143, said
    assert seconds < STOP_S
    assert "repeat the command to resume" in said
    assert "Traceback" not in said
    assert [path for folder in (out, work) for path in folder.rglob("running*.json")] == []
