"""All options of ``neurostorm``: those of the settings and those of the command line only."""

from __future__ import annotations

from collections.abc import Iterator

from bids_app.settings import Option, Settings, options_of
from bids_app.settings.sections import ACTIONS

DESCRIPTION = (
    "Apply a foundation model for functional MRI to a BIDS dataset: preprocessing, embeddings, predictions and reports."
)

CONFIG_FILE = Option(
    ("--config-file",),
    group=ACTIONS,
    metavar="FILE",
    help="TOML file with options, such as the neurostorm.toml of a run; the command line takes precedence",
    everyday=True,
)
NOTRACK = Option(("--notrack",), group=ACTIONS, flag=True, help="accepted for compatibility; there is no tracking")


def all_options() -> Iterator[Option]:
    """Iterate over all options and positional arguments, those of the settings first."""
    yield from options_of(Settings)
    yield CONFIG_FILE
    yield NOTRACK
