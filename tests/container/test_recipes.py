"""Recipes of the images: installed packages are locked, and the recipes agree with each other and with the package."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from bids_app import __version__
from bids_app.cli.boutiques import CONTAINERS
from tests.helpers.containers import read_recipe
from tests.helpers.paths import ROOT

RECIPES = ("Singularity.def", "Singularity.debian.def")


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> tuple[dict[str, str], dict[str, str]]:
    return read_recipe(request.param)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lock_file_pins_version_and_hash_of_every_package() -> None:
    text = (ROOT / "requirements" / "container.lock").read_text()
    entries = re.findall(r"^(\S+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == 2 * len(entries)
    constraints = (ROOT / "requirements" / "constraints.txt").read_text()
    versions = {canonical(n): v for n, v in re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.MULTILINE)}
    for name, version in entries:
        assert versions.get(name, version) == version, (
            f"{name} has a different version in constraints.txt: run 'make lock'"
        )
    assert f"torch=={versions['torch']}" in (ROOT / "requirements" / "torch.txt").read_text()


def test_lock_file_contains_all_dependencies() -> None:
    text = (ROOT / "requirements" / "container.lock").read_text()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in declared:
        name = canonical(re.split(r"[<>=~!\[ ]", requirement)[0])
        assert name == "torch" or f"\n{name}==" in text, f"{name} is missing from container.lock: run 'make lock'"


@pytest.mark.parametrize("name", ["Dockerfile", *RECIPES, "container/build.sh"])
def test_recipes_contain_no_registry_or_mirror(name: str) -> None:
    assert not re.search(r"https?://|\bpypi\b|\.org/|\.io/", (ROOT / name).read_text())


def test_recipes_and_descriptors_have_the_version_of_the_package(recipe) -> None:
    header, sections = recipe
    assert f"org.opencontainers.image.version {__version__}" in sections["labels"]
    assert header["bootstrap"] in ("docker-daemon", "debootstrap")
    if header["bootstrap"] == "docker-daemon":
        assert header["from"] == CONTAINERS["cpu"]["image"] == f"neurostorm:{__version__}"
    assert f"ARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text()


def run_section(script: str, folder: Path, *arguments: str) -> list[str]:
    """Run a section of a recipe with a fake ``neurostorm``, and return the arguments of that command."""
    fake = folder / "neurostorm"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    command = ["env", "-i", f"PATH={folder}:/usr/bin:/bin", "/bin/sh", "-e", "-c", script, "section", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_containers_pass_their_arguments_unchanged(recipe, tmp_path: Path) -> None:
    _, sections = recipe
    words = ["/data/my study", "/out", "participant", "--participant-label", "01", "", "$HOME"]
    assert run_section(sections["runscript"], tmp_path, *words) == words


def test_container_test_is_the_self_test(recipe, tmp_path: Path) -> None:
    _, sections = recipe
    assert run_section(sections["test"], tmp_path) == ["--self-test"]


def test_all_recipes_set_the_same_environment(recipe) -> None:
    _, sections = recipe
    command = ["env", "-i", "/bin/sh", "-c", f"{sections['environment']}\nenv"]
    given = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    dockerfile = (ROOT / "Dockerfile").read_text()
    (block,) = re.findall(r"^FROM base AS runtime$.*?^ENV (.*?[^\\])$", dockerfile, re.MULTILINE | re.DOTALL)
    for assignment in block.replace("\\\n", " ").split():
        assert assignment in given


@pytest.mark.parametrize("name", ["container/build.sh", "docs/slurm/participants.sbatch", "docs/slurm/resubmit.sh"])
def test_shell_scripts_have_valid_syntax(name: str) -> None:
    subprocess.run(["bash", "-n", ROOT / name], check=True)


def test_recipes_use_all_build_steps_and_no_others() -> None:
    steps = set(re.findall(r"^([\w-]+)\) #", (ROOT / "container" / "build.sh").read_text(), re.MULTILINE))
    used = set(re.findall(r"build\.sh ([a-z-]+)", (ROOT / "Dockerfile").read_text()))
    post = read_recipe("Singularity.debian.def")[1]["post"]
    (loop,) = re.findall(r"for step in ([a-z -]+);", post)
    used |= set(loop.split()) | set(re.findall(r"build\.sh ([a-z-]+)", post))
    assert used == steps


def test_build_context_contains_only_the_files_of_the_package() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    context = {line[1:] for line in lines if line.startswith("!")}
    copied = {line.split()[0] for line in read_recipe("Singularity.debian.def")[1]["files"].splitlines() if line}
    assert "*" in lines
    assert context == copied
    assert all((ROOT / name).exists() for name in context)


def test_commands_of_the_github_workflow_exist() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert len(commands) >= 3
    for command in commands:
        program, *words = shlex.split(command)
        dry = {"make": ["make", "--dry-run", *words], "bash": ["bash", "-n", *words]}[program]
        subprocess.run(dry, cwd=ROOT, capture_output=True, check=True)


def test_the_array_script_passes_sigterm_on_and_waits_for_the_app(tmp_path: Path) -> None:
    """SLURM kills the app when the script ends, so the script must not end first."""
    app, started, ended = tmp_path / "app", tmp_path / "started", tmp_path / "ended"
    app.write_text(f"#!/bin/bash\ntrap 'sleep 0.3; touch {ended}; exit 143' TERM\ntouch {started}\nsleep 60 &\nwait\n")
    app.chmod(0o700)
    (tmp_path / "labels.txt").write_text("01\n")
    script = [ROOT / "docs" / "slurm" / "participants.sbatch", tmp_path / "labels.txt", "raw", tmp_path / "out"]
    environment = {"NEUROSTORM": str(app), "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "5", "SLURM_JOB_ID": "6"}
    task = subprocess.Popen(
        ["bash", *map(str, script)], env=os.environ | environment | {"TMPDIR": str(tmp_path)}, start_new_session=True
    )
    try:
        while not started.exists():
            assert task.poll() is None
            time.sleep(0.02)
        task.terminate()
        assert task.wait(timeout=20) == 143
        assert ended.exists()
        assert (tmp_path / "out" / "logs" / "slurm" / "01.tsv").read_text().split()[:2] == ["01", "143"]
    finally:
        os.killpg(task.pid, signal.SIGKILL)  # the sleep of the app
