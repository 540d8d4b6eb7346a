"""Programs and recipes of container images."""

from __future__ import annotations

import re
import subprocess

from tests.helpers.paths import ROOT


def sh(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output."""
    parts = [str(part) for part in command]
    return subprocess.run(parts, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def read_recipe(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Read header and sections of an Apptainer definition file at the root of the repository."""
    head, *parts = re.split(r"^%(?=\w)", (ROOT / name).read_text(), flags=re.MULTILINE)
    lines = [line for line in head.splitlines() if line.strip() and not line.startswith("#")]
    header = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    sections = dict(part.partition("\n")[::2] for part in parts)
    return header, {name.strip(): body for name, body in sections.items()}
