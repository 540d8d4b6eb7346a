"""The house keeps its shape: imports point down only, and the command starts without anything heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bids_app"

FLOORS = [
    {"errors", "settings"},
    {"bids", "clips", "model", "catalog", "phantom"},
    {"preprocess", "adapters", "reports"},
    {"outputs"},
    {"workflow", "group", "training"},
    {"cli"},
]
"""From the ground up: a room imports from floors below its own, and from rooms of its own floor."""

NAMED = {"reports": {"bids_app.outputs.schema"}}
"""Modules of rooms above that a room may import, since they are declarations and import nothing heavy."""

ROOMS_THAT_KNOW_NO = {
    "bids": {"torch", "ants"},
    "reports": {"torch", "bids_app.model", "bids_app.clips", "bids_app.adapters"},
    "model": {"nibabel", "bids", "bids_app.bids", "ants"},
}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def floor_of(room: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if room in floor)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down_only(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports_of(path):
        if module.startswith("bids_app.") and room_of(module) != "__version__":
            if any(module == way or module.startswith(f"{way}.") for way in NAMED.get(room, ())):
                continue
            assert floor_of(room_of(module)) <= floor_of(room), f"{room} imports {module}, which is above it"


@pytest.mark.parametrize("room", ROOMS_THAT_KNOW_NO)
def test_rooms_know_no_more_than_they_need(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        for module in imports_of(path):
            for unknown in ROOMS_THAT_KNOW_NO[room]:
                assert module != unknown, f"{path} imports {module}"
                assert not module.startswith(unknown + "."), f"{path} imports {module}"


def test_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, bids_app.cli.neurostorm as cli; cli.build_parser();"
        "heavy = {'torch', 'numpy', 'nibabel', 'nipype', 'bids', 'pandas', 'ants', 'yaml'} & set(sys.modules);"
        "print(sorted(heavy)); sys.exit(bool(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
