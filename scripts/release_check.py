"""Check that the working tree can be released (``make release-check``).

Build sdist and wheel into dist/, install the wheel into a new environment with the exact versions of
requirements/constraints.txt, run the self-test, compare the Boutiques descriptors, and run the commands of the README
and of pages of the documentation on two simulated participants. Commands that need other data or a download are only
parsed; make commands are dry runs.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from bids_app import REPOSITORY

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
FOLDERS = {"/data/my_bids": "raw", "/data/out": "out"}
"""Folders in the commands, and the folders used here in their place."""
PAGES = ("README.md", "docs/first-run.md", "docs/models.md", "docs/training.md", "docs/reviewing.md")
"""Files whose commands are tried."""
PARSERS = {
    "neurostorm": "bids_app.cli.neurostorm import build_parser",
    "neurostorm-models": "bids_app.cli.models import parser",
    "neurostorm-train": "bids_app.cli.train import parser",
    "neurostorm-cluster": "bids_app.cli.cluster import parser",
    "neurostorm-phantom": "bids_app.cli.phantom import parser",
    "neurostorm-review": "bids_app.cli.review import parser",
}
"""Import statement of each command's parser."""


def run(*command: object, cwd: Path = ROOT) -> str:
    """Run a command outside the tree's own environment, return its output, and exit if it fails."""
    parts = [str(part) for part in command]
    print("$", shlex.join(parts), flush=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(parts, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        print(done.stdout)
        sys.exit(f"release-check: the command failed with exit code {done.returncode}")
    return done.stdout


def build() -> Path:
    """Build sdist and wheel, check that the wheel contains data files and native kernels, and return it."""
    dist = ROOT / "dist"
    for path in dist.glob("neurostorm-*"):
        path.unlink()
    run(sys.executable, "-m", "build", "--outdir", dist)
    (wheel,) = dist.glob("neurostorm-*.whl")
    (sdist,) = dist.glob("neurostorm-*.tar.gz")
    listed = run(sys.executable, "-m", "zipfile", "-l", wheel)
    data = (path.relative_to(ROOT).as_posix() for path in (ROOT / "bids_app" / "data").iterdir() if path.is_file())
    for needed in (*data, "bids_app/model/_scan", "brainmarks/models/neurostorm_bids_app.py"):
        if needed not in listed:
            sys.exit(f"release-check: {wheel.name} does not contain {needed}")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB; {sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB")
    return wheel


def install(wheel: Path, environment: Path) -> Path:
    """Install a wheel into a new environment, and return the folder of its commands."""
    venv.create(environment, with_pip=True)
    pip = [environment / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "-c", CONSTRAINTS]
    run(*pip, "torch")
    run(*pip, wheel)
    return environment / "bin"


def commands_of(text: str) -> list[str]:
    """Return the commands in the code blocks of a page, without their comments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    shell = [block for language, block in blocks if not language]
    lines = [re.split(r"\s#", line)[0].strip() for block in shell for line in block.splitlines()]
    return [line for line in lines if re.match(r"(make|neurostorm[a-z-]*) ", line)]


def can_run(program: str, arguments: list[str]) -> bool:
    """Return whether a command of the app needs only the simulated folders, and no trained adapter or other data."""
    needs = r"^(/|hf:)|=/|\.safetensors$|^--exclude-failed$"  # the last needs ratings
    other = [word for word in arguments if word not in FOLDERS and re.search(needs, word)]
    return program == "neurostorm" and arguments[0] in FOLDERS and not other


def try_commands(programs: Path, folder: Path) -> None:
    """Run the commands of all pages with the demonstration model on simulated participants."""
    options = ["--participants", "2", "--size", "small", "--no-t1w", "--states", "rest"]
    run(programs / "neurostorm-phantom", folder / "raw", *options, cwd=folder)
    commands = [command for page in PAGES for command in commands_of((ROOT / page).read_text())]
    for command in dict.fromkeys(commands):
        program, *arguments = shlex.split(command)
        if program == "make":
            run("make", "-n", *arguments)
        elif can_run(program, arguments):
            given = [FOLDERS.get(argument, argument) for argument in arguments]
            run(programs / program, *given, "--model", "demo", "--work-dir", "work", cwd=folder)
        else:
            code = f"from {PARSERS[program]} as parser; parser().parse_args({arguments!r})"
            run(programs / "python", "-c", code, cwd=folder)
            print(f"Parsed, not run, because it needs a download or data that are not simulated here: {command}")


def main() -> int:
    """Run all checks."""
    wheel = build()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        programs = install(wheel, folder / "environment")
        print(run(programs / "neurostorm", "--self-test", cwd=folder), end="")
        for variant, file in (("cpu", "boutiques.json"), ("cuda", "boutiques-cuda.json")):
            if run(programs / "neurostorm", "--bids-exec-spec", variant, cwd=folder) != (ROOT / file).read_text():
                sys.exit(f"release-check: {file} is out of date: run 'make boutiques'")
        try_commands(programs, folder)
    if not REPOSITORY:
        print("release-check: before publishing, set REPOSITORY in bids_app/__init__.py, so that messages name it")
    print("release-check passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
