"""NeuroSTORM as a BIDS App: from a scanner's BOLD runs to embeddings, predictions and a report."""

__version__ = "0.1.0"

REPOSITORY = "https://github.com/neurostorm-bids/neurostorm"
"""Address of the source code and the issue tracker; pyproject.toml and CITATION.cff repeat it."""
PLEASE_REPORT = f"Please report it at {REPOSITORY}/issues."
