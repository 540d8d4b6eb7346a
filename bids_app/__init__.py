"""NeuroSTORM as a BIDS App: from a scanner's BOLD runs to embeddings, predictions and a report."""

__version__ = "0.1.0"

REPOSITORY = ""
"""Public address of the source code; empty until there is one. pyproject.toml and CITATION.cff repeat it."""
PLEASE_REPORT = f"Please report it at {REPOSITORY}/issues." if REPOSITORY else "Please report it to the developers."
