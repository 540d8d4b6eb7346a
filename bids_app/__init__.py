"""NeuroSTORM as a BIDS App: from a scanner's BOLD runs to embeddings, predictions and a report.

The public interface is `__all__`, see docs/python.md; anything else may change in any version. Its functions are
imported when they are first used, so that ``import bids_app`` takes milliseconds.
"""

from typing import Any

__version__ = "0.1.0"

REPOSITORY = ""
"""Public address of the source code; empty until there is one. pyproject.toml and CITATION.cff repeat it."""
PLEASE_REPORT = f"Please report it at {REPOSITORY}/issues." if REPOSITORY else "Please report it to the developers."

_HOMES = {
    "NeurostormError": "bids_app.errors",
    "encode": "bids_app.adapters.embed",
    "load_model": "bids_app.model.api",
    "run": "bids_app.cli.from_python",
    "to_model_grid": "bids_app.clips",
}
"""Modules of the public functions and classes."""

__all__ = ["NeurostormError", "__version__", "encode", "load_model", "run", "to_model_grid"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
