"""Writes requirements/container.lock: what the image installs, each file by its hash (``make lock``).

The versions are those of constraints.txt; of them only what the package needs to run, without its extras. pip downloads
each wheel for this interpreter and machine, which have to be the image's: CPython 3.11 on x86-64 Linux. torch is left
out, since which build is wanted depends on the image (requirements/README.md).
"""

from __future__ import annotations

import hashlib
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
APART = ("torch", "triton")
HEAD = """\
# What the image installs beside torch: exact files, for CPython 3.11 on x86-64 Linux. Written by `make lock`.
"""


def needed() -> set[str]:
    """Names of all distributions that the package needs to run, as they are installed here."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    todo = [wanted for text in asked for wanted in names_of(Requirement(text))]
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
    """A requirement's distribution, alone and with each extra that is asked for."""
    return [(canonicalize_name(requirement.name), extra) for extra in ("", *requirement.extras)]


def pinned() -> dict[str, str]:
    """Versions of constraints.txt by canonical name."""
    lines = [line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line]
    return {canonicalize_name(name): version for name, version in lines}


def download(requirements: list[str], folder: Path) -> None:
    """Have pip bring exactly these, as wheels where there are any."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--prefer-binary"]
    subprocess.run([*pip, "-d", str(folder), *requirements], check=True)


def main() -> int:
    """Write the lock."""
    versions = pinned()
    names = sorted(needed() - set(APART))
    missing = [name for name in names if name not in versions and name not in BUILD_TOOLS]
    if missing:
        print(f"{CONSTRAINTS} does not name {', '.join(missing)}: run 'make lock' in a whole environment.")
        return 1
    wanted = [f"{name}=={versions[name]}" for name in names if name in versions]
    wanted += [f"{name}=={distribution(name).version}" for name in BUILD_TOOLS if name not in versions]
    with tempfile.TemporaryDirectory() as folder:
        download(wanted, Path(folder))
        lines = []
        for path in sorted(Path(folder).iterdir(), key=lambda path: path.name.lower()):
            parse = parse_wheel_filename if path.suffix == ".whl" else parse_sdist_filename
            name, version = parse(path.name)[:2]
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f"{name}=={version} \\\n    --hash=sha256:{sha256}")
    LOCK.write_text(HEAD + "\n".join(lines) + "\n")
    print(f"{LOCK}: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
