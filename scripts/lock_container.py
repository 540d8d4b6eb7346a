"""Write the lock files of the image in requirements/, each file with its hash (``make lock``).

``container.lock`` contains the packages that are needed at run time, without extras, in the versions of
constraints.txt. pip downloads the wheels for this interpreter and machine, which must match the image: CPython 3.11 on
x86-64 Linux. The index gives the hashes of the wheels for arm64. torch has lock files of its own, because its build
depends on the target: for the CPU, pip must be configured to find PyTorch's CPU builds (requirements/README.md).
``sbom.lock`` contains the tools that list the packages of the image.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
LOCK = ROOT / "requirements" / "container.lock"
BUILD_TOOLS = ("setuptools",)
EXCLUDED = ("torch", "triton")
FROM_SOURCE_ON_ARM64 = ("antspyx",)
SBOM_TOOLS = ("cyclonedx-bom==7.5.0", "debsbom[cdx]==0.10.2")
GLIBC = (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)
"""Minor versions of glibc 2 in the tags of wheels, up to that of Debian 12."""
X86_64, ARM64 = "x86_64", "aarch64"
HEAD = """\
# Packages of the image except torch, with hashes, for CPython 3.11 on Linux: x86-64 and, second, arm64. By `make lock`.
"""
HEADS = {
    "sbom.lock": "# Tools that list the packages of the image, used at build time only. Written by `make lock`.\n",
    "torch-cpu.lock": "# torch for the target cpu: PyTorch's CPU build for x86-64, and the registry's build for arm64. "
    "Written by `make lock`.\n",
    "torch-cuda.lock": "# torch for the target cuda: the registry's build for x86-64. Written by `make lock`.\n",
}


def needed() -> set[str]:
    """Return the names of all installed distributions that the package needs at run time."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    todo = [wanted for text in declared for wanted in names_of(Requirement(text))]
    seen: set[tuple[str, str]] = set()
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            for text in distribution(current[0]).requires or ():
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": current[1]}):
                    todo += names_of(requirement)
    return {name for name, _ in seen}


def names_of(requirement: Requirement) -> list[tuple[str, str]]:
    """Return the distribution of a requirement, without an extra and with each requested extra."""
    return [(canonicalize_name(requirement.name), extra) for extra in ("", *requirement.extras)]


def pinned() -> dict[str, str]:
    """Return the versions in constraints.txt by canonical name."""
    lines = [line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line]
    return {canonicalize_name(name): version for name, version in lines}


def download(requirements: list[str], folder: Path) -> None:
    """Download exactly these distributions with pip, as wheels if available."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--prefer-binary"]
    subprocess.run([*pip, "-d", str(folder), *requirements], check=True)


def hashes_in_index(architecture: str, requirements: list[str], *options: str, links: bool = True) -> dict[str, str]:
    """Return the sha256 of the wheels that pip would install on another architecture, by canonical name and version."""
    tags = [f"manylinux_2_{minor}_{architecture}" for minor in GLIBC]
    tags += [f"{old}_{architecture}" for old in ("manylinux1", "manylinux2010", "manylinux2014")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", *options]
        pip += ["--report", str(report), "--target", folder, "--only-binary=:all:", "--python-version", "3.11"]
        pip += [word for tag in tags for word in ("--platform", tag)]
        environment = os.environ if links else os.environ | {"PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
        subprocess.run([*pip, *requirements], check=True, env=environment)
        found = json.loads(report.read_text())["install"]
    return {
        f"{canonicalize_name(item['metadata']['name'])}=={item['metadata']['version'].partition('+')[0]}": item[
            "download_info"
        ]["archive_info"]["hashes"]["sha256"]
        for item in found
    }


def hashes_for_arm64(files: list[Path], versions: dict[str, str], folder: Path) -> dict[str, str]:
    """Return the sha256 for arm64 of the packages whose file for x86-64 is a binary wheel, by canonical name."""
    binary = [parse_wheel_filename(path.name)[0] for path in files if X86_64 in path.name]
    wheels = [f"{name}=={versions[name]}" for name in binary if name not in FROM_SOURCE_ON_ARM64]
    found = {name.partition("==")[0]: sha for name, sha in hashes_in_index(ARM64, wheels, "--no-deps").items()}
    for name in FROM_SOURCE_ON_ARM64:
        download([f"{name}=={versions[name]}", "--no-binary", name], folder / name)
        (source,) = (folder / name).iterdir()
        found[name] = hashlib.sha256(source.read_bytes()).hexdigest()
    return found


def lock_line(requirement: str, *hashes: str) -> str:
    """Return the entry of a lock file."""
    return requirement + "".join(f" \\\n    --hash=sha256:{sha256}" for sha256 in dict.fromkeys(hashes))


def write_lock(name: str, lines: list[str]) -> None:
    """Write a lock file of torch or of the tools."""
    (ROOT / "requirements" / name).write_text(HEADS[name] + "\n".join(lines) + "\n")


def lock_torch(version: str) -> None:
    """Write the lock files of torch: its CPU build as pip is configured here, the other builds from the registry."""
    (cpu,) = hashes_in_index(X86_64, [f"torch=={version}+cpu"], "--no-deps").values()
    (arm64,) = hashes_in_index(ARM64, [f"torch=={version}"], "--no-deps", links=False).values()
    (cuda,) = hashes_in_index(X86_64, [f"torch==={version}"], "--no-deps", links=False).values()
    write_lock("torch-cpu.lock", [lock_line(f"torch=={version}", cpu, arm64)])
    write_lock("torch-cuda.lock", [lock_line(f"torch==={version}", cuda)])
    (ROOT / "requirements" / "torch.txt").write_text(f"torch=={version}\n")


def lock_sbom_tools() -> None:
    """Write the lock file of the tools that list packages."""
    first, second = (hashes_in_index(architecture, [*SBOM_TOOLS]) for architecture in (X86_64, ARM64))
    names = sorted(first, key=lambda requirement: requirement.partition("==")[0])
    write_lock("sbom.lock", [lock_line(name, first[name], second[name]) for name in names])


def main() -> int:
    """Write the lock files."""
    versions = pinned()
    names = sorted(needed() - set(EXCLUDED))
    missing = [name for name in names if name not in versions and name not in BUILD_TOOLS]
    if missing:
        print(f"{CONSTRAINTS} lacks {', '.join(missing)}: run 'make lock' in a complete environment.")
        return 1
    wanted = [f"{name}=={versions[name]}" for name in names if name in versions]
    wanted += [f"{name}=={distribution(name).version}" for name in BUILD_TOOLS if name not in versions]
    with tempfile.TemporaryDirectory() as folder:
        download(wanted, Path(folder))
        lines = []
        files = sorted(Path(folder).iterdir(), key=lambda path: path.name.lower())
        arm64 = hashes_for_arm64(files, versions, Path(folder))
        for path in files:
            parse = parse_wheel_filename if path.suffix == ".whl" else parse_sdist_filename
            name, version = parse(path.name)[:2]
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(lock_line(f"{name}=={version}", sha256, *filter(None, [arm64.get(str(name))])))
    LOCK.write_text(HEAD + "\n".join(lines) + "\n")
    print(f"{LOCK}: {len(lines)} packages")
    lock_torch(versions["torch"])
    lock_sbom_tools()
    return 0


if __name__ == "__main__":
    sys.exit(main())
