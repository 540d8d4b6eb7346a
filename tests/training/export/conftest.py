"""Simulated outputs of the participant level, with labels of the participants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.installed import INSTALLED
from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_benchmark


class Outputs(SimpleNamespace):
    """Output folder and raw dataset of a simulated study."""

    def label(self, column: str, values: Mapping[str, str]) -> None:
        """Add a column to participants.tsv; participants without a value have n/a."""
        path = self.raw / "participants.tsv"
        header, *rows = path.read_text().splitlines()
        rows = [f"{row}\t{values.get(row.partition(chr(9))[0], 'n/a')}" for row in rows]
        path.write_text("\n".join([f"{header}\t{column}", *rows]) + "\n")

    def change_sidecar(self, participant: str, **changes: object) -> None:
        """Change keys of the sidecars of the embeddings of a participant."""
        for path in self.out.glob(f"{participant}/**/*_embeddings.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    @property
    def participants(self) -> list[str]:
        """Names of the participants."""
        return sorted(path.name for path in self.out.glob("sub-*"))


@pytest.fixture
def make_outputs(tmp_path: Path) -> Callable[..., Outputs]:
    """Return a function that writes outputs of participants of two sexes in turn."""

    def make(**properties: object) -> Outputs:
        made = Outputs(out=tmp_path / "out", raw=tmp_path / "raw")
        load_benchmark("group").Study(**properties).write(made.out, made.raw)
        made.label("sex", {name: "FM"[i % 2] for i, name in enumerate(made.participants)})
        return made

    return make


@pytest.fixture
def run_installed(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs Python in a process that can import the libraries; it returns what is printed."""
    (tmp_path / "cortex.py").touch()  # pycortex draws flat maps, has to be compiled, and is not used here

    def run(*arguments: object, path: Path | None = None) -> str:
        folders = [str(each) for each in (path, ROOT, tmp_path, INSTALLED) if each]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "HOME": str(tmp_path)}
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
