"""A simulated BIDS dataset with known truth: ``neurostorm-phantom``, and its pieces for training and tests.

From template to files, the rooms are `tissues` (what a head is made of), `anatomy` (one person's shape), `protocol`
(what the scanner was told), `motion`, `distortion`, `activity` (states, networks, physiology), `bold`, `t1w` and
`fieldmaps` (scans in memory), `dataset` and `truth` (files). Nothing here knows the preprocessing, the model or the
reports: they are judged by it.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``neurostorm-phantom``; see `bids_app.phantom.cli`."""
    from bids_app.phantom.cli import main as run

    return run(argv)
