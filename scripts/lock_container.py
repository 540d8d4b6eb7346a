"""Write requirements/container.lock: the packages of the image, each file with its hash (``make lock``).

The lock contains the packages that are needed at run time, without extras, in the versions of constraints.txt. pip
downloads the wheels for this interpreter and machine, which must match the image: CPython 3.11 on x86-64 Linux. torch
is not included, because its build depends on the image (requirements/README.md).
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
EXCLUDED = ("torch", "triton")
HEAD = """\
# Packages of the image except torch, with hashes, for CPython 3.11 on x86-64 Linux. Written by `make lock`.
"""


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


def main() -> int:
    """Write the lock file."""
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
