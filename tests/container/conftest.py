"""Fixtures for tests of images and clusters: a container engine and the image, or the reason to skip.

The engine is Docker if its daemon runs; otherwise, as root and with the shared tools, buildah and podman. To test an
existing image instead of building one, set `NEUROSTORM_IMAGE`.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.containers import sh
from tests.helpers.paths import ROOT, SHARED

TOOLS = SHARED / "tools"
HARDENED = ("--network", "none", "--read-only", "--tmpfs", "/tmp:rw,exec", "--user", "1234:1234")
BUILD_ARGUMENTS = ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "TORCH_SHA256")
"""Build arguments read from the environment: where pip finds PyTorch's CPU builds."""


@dataclass(frozen=True)
class Engine:
    """A container engine, as commands."""

    build: tuple[str, ...]
    run: tuple[str, ...]
    """Runs an image as restricted as on clusters: no network, read-only, unknown user."""
    plain: tuple[str, ...]
    """The engine's own program."""
    environment: dict[str, str]


@dataclass(frozen=True)
class Image:
    """An image under test, by its tag."""

    tag: str
    engine: Engine

    def run(self, options: Sequence[object], *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the image with options of the engine and arguments of the app."""
        return sh(*self.engine.run, *options, self.tag, *arguments, env=os.environ | self.engine.environment)

    def without_home(self, options: Sequence[object], *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the image with HOME unset."""
        return self.run([*options, "--entrypoint", "env"], "-u", "HOME", "neurostorm", *arguments)

    def plain(self, *arguments: object) -> str:
        """Return the output of an engine command."""
        done = sh(*self.engine.plain, *arguments, env=os.environ | self.engine.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def variable_of(tool: Path, name: str) -> str:
    """Return the value that a script assigns to a variable."""
    found = re.search(rf"^{name}=(\S+)", tool.read_text(), re.MULTILINE)
    assert found, f"{tool} does not set {name}"
    return found[1]


def find_engine() -> Engine:
    """Return Docker if its daemon runs, otherwise the shared tools; skip without either."""
    if sh("sh", "-c", "command -v docker && docker info").returncode == 0:
        return Engine(("docker", "build", "-t"), ("docker", "run", "--rm", *HARDENED), ("docker",), {})
    tool = TOOLS / "container-host"
    if not tool.exists() or os.geteuid() != 0:
        pytest.skip("needs a Docker daemon, or root and ../shared/tools/container-host")
    ready = sh("bash", tool, "setup")
    if ready.returncode != 0:
        pytest.skip(f"container-host cannot be set up: {ready.stderr[-300:]}")
    settings = {"STORAGE_DRIVER": "overlay", "CONTAINERS_CONF": variable_of(tool, "conf")}
    return Engine(("bash", str(tool), "build"), ("bash", str(tool), "run"), ("podman",), settings)


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The container engine of this machine."""
    return find_engine()


@pytest.fixture(scope="session")
def image(engine: Engine) -> Image:
    """The image of target `cpu`, built from the working tree."""
    existing = os.environ.get("NEUROSTORM_IMAGE")
    if existing:
        return Image(existing, engine)
    tag = "neurostorm:container-test"
    arguments = [f"--build-arg={name}={os.environ[name]}" for name in BUILD_ARGUMENTS if os.environ.get(name)]
    options = [*arguments, "--target", "cpu"]
    docker = engine.plain == ("docker",)
    order = [tag, *options, ROOT] if docker else [ROOT, tag, "--format", "docker", *options]
    done = sh(*engine.build, *order)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return Image(tag, engine)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated dataset of two participants, readable by all users."""
    from bids_app.cli.phantom import main as phantom

    folder = tmp_path_factory.mktemp("simulated") / "raw"
    arguments = ["--participants", "2", "--size", "small", "--no-t1w", "--states", "rest"]
    assert phantom([str(folder), *arguments]) == 0
    readable(folder)
    return folder


def readable(folder: Path) -> None:
    """Make a temporary folder of pytest readable by all users."""
    sh("chmod", "-R", "a+rX", folder)
    for parent in folder.parents:
        if parent.stat().st_uid == os.getuid() and parent not in (Path("/"), Path("/tmp")):
            parent.chmod(parent.stat().st_mode | 0o011)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder writable by all users."""
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(0o777)
    readable(tmp_path)
    return folder
