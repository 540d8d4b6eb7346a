"""All options of ``neurostorm``: those of the settings, and the few that are about the command line itself."""

from __future__ import annotations

from collections.abc import Iterator

from bids_app.settings import Option, Settings, options_of
from bids_app.settings.sections import ACTIONS

DESCRIPTION = "A foundation model for functional MRI: raw BIDS in; embeddings, predictions and reports out."

CONFIG_FILE = Option(
    ("--config-file",),
    group=ACTIONS,
    metavar="FILE",
    help="TOML with options, such as a run's neurostorm.toml; the command line wins",
    everyday=True,
)
NOTRACK = Option(("--notrack",), group=ACTIONS, flag=True, help="accepted for compatibility: there is no tracking")


def all_options() -> Iterator[Option]:
    """Every option and positional argument, those of the settings first."""
    yield from options_of(Settings)
    yield CONFIG_FILE
    yield NOTRACK
