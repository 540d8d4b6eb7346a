"""Runs on a SLURM cluster: one job per step (nipype's plugin), and array jobs of a cohort."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.containers import sh

ROOT = Path(__file__).parents[2]
TOOL = ROOT.parent / "shared" / "tools" / "slurm-host"
NEUROSTORM = Path(sys.executable).with_name("neurostorm")
LABELS = ("01", "02", "03", "04")
pytestmark = [pytest.mark.container, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def cluster() -> dict[str, str]:
    """The environment of a user of the cluster; skip if no cluster is available."""
    environment = os.environ | {"PATH": f"{NEUROSTORM.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    if shutil.which("sinfo") and sh("sinfo", "--noheader").stdout.strip():
        return environment
    if not TOOL.exists() or os.geteuid() != 0:
        pytest.skip("needs SLURM, or root and ../shared/tools/slurm-host")
    started = sh("bash", TOOL, "start")
    if started.returncode != 0:
        pytest.skip(f"SLURM cannot be started: {started.stderr[-300:]}")
    found = re.search(r"SLURM_CONF=(\S+)", started.stdout)
    assert found
    return environment | {"SLURM_CONF": found[1]}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four simulated participants."""
    from bids_app.cli.phantom import main as phantom

    folder = tmp_path_factory.mktemp("slurm") / "raw"
    arguments = ["--participants", "4", "--size", "small", "--no-t1w", "--states", "rest"]
    assert phantom([str(folder), *arguments]) == 0
    return folder


def wait_for_queue(environment: dict[str, str]) -> None:
    while sh("squeue", "--noheader", env=environment).stdout.strip():
        time.sleep(2)


def test_nipype_plugin_submits_one_job_per_step(cluster: dict[str, str], raw: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.yml"
    written = (ROOT / "docs" / "slurm" / "plugin.yml").read_text()
    plugin.write_text(written.replace("--cpus-per-task=2 --mem=4G", "--cpus-per-task=1 --mem=2G"))
    out, work = tmp_path / "out", tmp_path / "work"
    options = ["--model", "demo", "--level", "minimal", "--work-dir", work, "--use-plugin", plugin]
    environment = {name: value for name, value in cluster.items() if name != "LOGNAME"}  # as in a container
    done = sh(NEUROSTORM, raw, out, "participant", *options, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for label in LABELS:
        assert list(out.glob(f"sub-{label}/**/*_desc-demo_embeddings.tsv"))
    assert len(list(work.glob("neurostorm/batch/slurm-*.out"))) >= 4 * 5


def test_a_killed_job_of_a_cohort_is_named_and_submitted_again_alone(
    cluster: dict[str, str], raw: Path, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    out = tmp_path / "out, 100%"
    environment = cluster | {"TMPDIR": str(tmp_path / "tmp")}

    def run(*words: object) -> str:
        done = sh(sys.executable, "-m", "bids_app.cli.cluster", *words, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "list.txt").write_text("sub-01, sub-02 03")
    limits = ["--cpus", 1, "--mem", "3.5GB", "--time", "00:20:00", "--max-array", 2]
    options = ["--model", "demo", "--level", "minimal"]
    run("prepare", raw, out, "--participants", "list.txt", *limits, "--", *options)
    jobs = run("submit", out).split("job ")[1].strip().split(", ")
    assert len(jobs) == 2
    assert "Nothing to submit" in run("submit", out)
    while not list(out.glob("sub-01/log/running.json")):
        time.sleep(0.5)
    assert sh("scancel", "--signal=KILL", "--full", f"{jobs[0]}_1", env=environment).returncode == 0
    wait_for_queue(environment)
    shown = run("status", out)
    assert "3 participants: 2 done, 1 killed, 0 running" in shown
    assert "killed: sub-01: The job was " in shown
    assert "1 participant in 1 task" in run("submit", out)
    wait_for_queue(environment)
    assert "3 participants: 3 done, 0 running\n" in run("status", out)
    for label in ("01", "02", "03"):
        assert list(out.glob(f"sub-{label}/**/*_desc-demo_embeddings.tsv"))
    assert (out / "progress.html").is_file()


def test_a_requeued_job_resumes_at_once_from_its_finished_steps(
    cluster: dict[str, str], raw: Path, tmp_path: Path
) -> None:
    """As after preemption: SLURM ends all processes of the job, and starts it again with the same number."""
    out, work, log = tmp_path / "out", tmp_path / "work", tmp_path / "job.log"
    words = [NEUROSTORM, raw, out, "participant", "--participant-label", "01", "--model", "demo", "--work-dir", work]
    script = tmp_path / "job.sh"
    limits = "--requeue --cpus-per-task=1 --mem=3500M --open-mode=append"
    options = "--level minimal --nprocs 1 --mem 3.4GB"
    script.write_text(f"#!/bin/bash\n#SBATCH {limits} --output={log}\nexec {shlex.join(map(str, words))} {options}\n")
    sent = sh("sbatch", "--parsable", script, env=cluster, cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    job = sent.stdout.strip()
    while not list(work.glob("neurostorm/*_examine/done.json")):
        assert sh("squeue", "--noheader", "--job", job, env=cluster).stdout.strip(), log.read_text()
        time.sleep(0.5)
    assert sh("scontrol", "requeue", job, env=cluster).returncode == 0
    while "neurostorm: terminated." not in log.read_text():
        time.sleep(0.5)
    assert list(out.rglob("running*.json")) == []
    while sh("scontrol", "update", f"JobId={job}", "StartTime=now", env=cluster).returncode:  # SLURM waits 2 minutes
        time.sleep(0.5)
    wait_for_queue(cluster)
    first, second = log.read_text().split("neurostorm: terminated.")
    assert "reused from the scratch folder" not in first
    assert "reused from the scratch folder" in second
    assert "another run is processing" not in second
    assert "1 of 1 runs finished" in second
    assert list(out.glob("sub-01/**/*_desc-demo_embeddings.tsv"))
