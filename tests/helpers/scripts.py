"""Python files outside the package: benchmarks, and scripts that a test writes."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from tests.helpers.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = ROOT / "scripts"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
"""Environment of a process that imports the package and `tests`."""


def load_benchmark(name: str) -> ModuleType:
    """Load the module ``benchmarks/NAME.py`` once; it may import other benchmarks."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    return _load(BENCHMARKS / f"{name}.py")


def load_script(name: str) -> ModuleType:
    """Load the module ``scripts/NAME.py`` once."""
    return _load(SCRIPTS / f"{name}.py")


def _load(path: Path) -> ModuleType:
    name = path.stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
