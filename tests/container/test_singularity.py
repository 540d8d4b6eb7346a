"""Singularity recipes, tested without Apptainer in a sandbox folder that emulates a SIF file.

Emulated are ``--cleanenv`` (no variables of the host), ``--containall`` (own processes, own /tmp, no home), a read-only
image, bind mounts (read-only for the dataset), no network, and the user of the host.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.containers import read_recipe, sh

ROOT = Path(__file__).parents[2]
TOOL = ROOT.parent / "shared" / "tools" / "container-host"
pytestmark = [pytest.mark.container, pytest.mark.timeout(7200)]


@dataclass(frozen=True)
class Sandbox:
    """A root folder that emulates a SIF file, and the sections of its recipe."""

    root: Path
    sections: dict[str, str]

    def command(self, section: str, *arguments: str, binds: dict[str, Path] | None = None) -> list[str]:
        """Return the command that runs a section in the sandbox; all binds except /out are read-only."""
        inside = f"{self.sections['environment']}\n{self.sections[section]}"
        enter = [
            "chroot",
            "--userspec=1234:1234",
            self.root,
            "/usr/bin/env",
            "-i",
            "HOME=/home/unknown",
            "/bin/sh",
            "-c",
        ]
        steps = [f"mount --bind {self.root} {self.root}", f"mount -o remount,ro,bind {self.root}"]
        steps += [f"mount -t proc proc {self.root}/proc", f"mount --rbind /dev {self.root}/dev"]
        steps += [f"mount -t tmpfs -o mode=1777 tmpfs {self.root}/tmp"]
        for inner, outer in (binds or {}).items():
            steps.append(f"mount --bind {outer} {self.root}{inner}")
            steps += [f"mount -o remount,ro,bind {self.root}{inner}"] if inner != "/out" else []
        steps.append("exec " + shlex.join([*map(str, enter), inside, "runscript", *arguments]))
        return ["unshare", "--mount", "--net", "--pid", "--fork", "/bin/sh", "-e", "-c", "\n".join(steps)]


def add_mount_points(root: Path) -> Path:
    """Make a root folder accessible, and add the mount points that Apptainer would create."""
    root.chmod(0o755)
    for name in ("data", "out", "proc", "dev", "tmp"):
        (root / name).mkdir(exist_ok=True)
    return root


@pytest.fixture(scope="module")
def from_docker(image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """Sandbox of ``Singularity.def``: the files of the Docker image."""
    if os.geteuid() != 0:
        pytest.skip("needs root to run chroot")
    root = tmp_path_factory.mktemp("from_docker")
    name = image.plain("create", image.tag)
    archive = root.with_suffix(".tar")
    image.plain("export", "-o", str(archive), name)
    image.plain("rm", name)
    assert sh("tar", "-xf", archive, "-C", root).returncode == 0
    archive.unlink()
    yield Sandbox(add_mount_points(root), read_recipe("Singularity.def")[1])
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def from_debian(image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """Sandbox of ``Singularity.debian.def``: its %files and %post in a plain Debian."""
    if os.geteuid() != 0 or not TOOL.exists() or image.engine.plain != ("podman",):
        pytest.skip("needs root and ../shared/tools/container-host, for its base image")
    base = next(line.removeprefix("base=") for line in TOOL.read_text().splitlines() if line.startswith("base="))
    root = tmp_path_factory.mktemp("from_debian")
    name = image.plain("create", base, "true")
    archive = root.with_suffix(".tar")
    image.plain("export", "-o", str(archive), name)
    image.plain("rm", name)
    assert sh("tar", "-xf", archive, "-C", root).returncode == 0
    archive.unlink()
    parts = read_recipe("Singularity.debian.def")[1]
    for line in filter(None, map(str.split, parts["files"].splitlines())):
        target = root / line[1].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        ignore = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / line[0], target, ignore=ignore) if (ROOT / line[0]).is_dir() else shutil.copy(
            ROOT / line[0], target
        )
    extra = os.environ.get("PIP_EXTRA_INDEX_URL", "")
    post = parts["post"].replace("{{ PIP_EXTRA_INDEX_URL }}", extra)
    for name, _, default in (line.strip().partition("=") for line in parts["arguments"].splitlines()):
        post = post.replace(f"{{{{ {name} }}}}", default)
    add_mount_points(root)
    # package access of the host: resolver, certificates, pip's configuration and local wheels
    steps = [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev", f"mount -t tmpfs tmpfs {root}/tmp"]
    shared = ["/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt"]
    shared += [os.environ["PIP_FIND_LINKS"]] if os.environ.get("PIP_FIND_LINKS") else []
    for outer in map(Path, shared):
        if outer.exists():
            inner = root / str(outer).lstrip("/")
            inner.parent.mkdir(parents=True, exist_ok=True)
            inner.mkdir(exist_ok=True) if outer.is_dir() else inner.touch()
            steps.append(f"mount --bind {outer} {inner}")
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    links = f"PIP_FIND_LINKS={os.environ.get('PIP_FIND_LINKS', '')}"
    steps.append("exec " + shlex.join(["chroot", str(root), "/usr/bin/env", "-i", path, links, "/bin/sh", "-c", post]))
    done = sh("unshare", "--mount", "/bin/sh", "-e", "-c", "\n".join(steps))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    yield Sandbox(root, parts)
    shutil.rmtree(root)


@pytest.mark.parametrize("kind", ["from_docker", "from_debian"])
def test_self_test_and_participant_run_in_the_sandbox(kind: str, request, simulated: Path, out: Path) -> None:
    sandbox = request.getfixturevalue(kind)
    done = sh(*sandbox.command("test"), env={"PATH": os.environ["PATH"], "SECRET": "of the host"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "self-test passed" in done.stdout
    binds = {"/data": simulated, "/out": out}
    arguments = ["/data", "/out", "participant", "--participant-label", "01", "--model", "demo", "--level", "minimal"]
    done = sh(*sandbox.command("runscript", *arguments, binds=binds))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(out.glob("sub-01/**/*_desc-demo_embeddings.tsv"))
    assert (out / "dataset_description.json").stat().st_uid == 1234


def test_the_image_is_read_only(from_docker: Sandbox, out: Path) -> None:
    marks = from_docker.sections | {"runscript": "touch /opt/data/mark || touch /usr/local/mark || echo refused"}
    done = sh(*Sandbox(from_docker.root, marks).command("runscript"))
    assert done.stdout.strip() == "refused"
