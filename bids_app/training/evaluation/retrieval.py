"""Rules of retrieval: what a scan is compared with, and checks that the scans allow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_app.adapters.file import EMBEDDING
from bids_app.errors import UsageError
from bids_app.training.adapt import LabelledScans
from bids_app.training.evaluation.folds import Fold
from bids_app.training.tasks import Task

SESSION, RUN = "session", "run"
ACROSS = (SESSION, RUN)
"""What tells sessions apart: the session of the file name, or its run, as in HCP Young Adult: ``REST1`` and ``REST2``
are runs of two days without sessions."""


@dataclass(frozen=True)
class Retrieval:
    """Rules of retrieval.

    Attributes
    ----------
    gallery : int, optional
        Number of participants to choose from in re-identification; None: all of a test set.
    across : str, optional
        An entry of `ACROSS`: a scan is compared only with scans of other sessions. None: with all scans.
    zero_shot : bool
        Compare the embeddings of the encoder, without a head that was trained with identities.
    pool : int
        Number of images to choose from, for tasks about images.
    seed : int
        Of the galleries.
    """

    gallery: int | None = None
    across: str | None = None
    zero_shot: bool = False
    pool: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pool < 2:
            raise UsageError(f"Invalid value for --pool: {self.pool}.", "Use at least 2 images.")
        if self.gallery is not None and self.gallery < 2:
            raise UsageError(f"Invalid value for --gallery: {self.gallery}.", "Use at least 2 participants.")
        if self.across not in (None, *ACROSS):
            raise UsageError(f"Invalid value for --across-sessions: {self.across!r}.", f"Use {' or '.join(ACROSS)}.")

    @property
    def options(self) -> list[str]:
        """Options of re-identification that are set."""
        given = {
            "--gallery": self.gallery is not None,
            "--across-sessions": self.across is not None,
            "--zero-shot": self.zero_shot,
        }
        return [name for name, is_set in given.items() if is_set]

    def sessions_of(self, data: LabelledScans) -> list[str] | None:
        """Return the session of each scan; None if scans are compared with all others."""
        return None if self.across is None else [session_of(scan, self.across) for scan in data.scans]

    def check(self, task: Task, data: LabelledScans, folds: Sequence[Fold], strategy: str) -> None:
        """Check that a task and its scans allow these rules.

        Raises
        ------
        UsageError
            The task is no re-identification, a test set has fewer participants than a gallery, or no participant has
            scans in two sessions.
        """
        if not self.options:
            return
        names = " and ".join(self.options)
        if task.kind != EMBEDDING:
            raise UsageError(
                f"{names}: only for re-identification, not for the {task.kind} of {task.target}.",
                "Use --target scan:participant --task embedding, or omit the option.",
            )
        if task.images is not None:
            raise UsageError(
                f"{names}: not for images, which are compared with the vectors of --images.",
                "Use --pool; training and test sets share no image in any case.",
            )
        if self.zero_shot and strategy != "linear":
            raise UsageError(
                f"--zero-shot trains nothing, but the strategy is {strategy}.", "Omit --strategy or --zero-shot."
            )
        if self.across is not None:
            self._check_sessions(data, folds)
        smallest = min(len({data.values[i] for i in test}) for _, test in folds)
        if self.gallery is not None and smallest < self.gallery:
            raise UsageError(
                f"--gallery {self.gallery}: a test set has only {smallest} participants ({len(folds)} folds).",
                f"Use --gallery {smallest} or less" + (", or fewer --folds." if len(folds) > 2 else "."),
            )

    def _check_sessions(self, data: LabelledScans, folds: Sequence[Fold]) -> None:
        sessions = self.sessions_of(data)
        assert sessions is not None
        option = f"--across-sessions {self.across}"
        if without := sum(not session for session in sessions):
            raise UsageError(
                f"{option}: {without} of {len(sessions)} scans have no {self.across} in their names.",
                f"Omit --across-sessions, or use --across-sessions {next(a for a in ACROSS if a != self.across)}.",
            )
        if len(set(sessions)) < 2:
            raise UsageError(
                f"{option}: all scans have the same {self.across}: {sessions[0]}.", "Omit --across-sessions."
            )
        for _, test in folds:
            seen: dict[str, set[str]] = {}
            for i in test:
                seen.setdefault(data.values[i], set()).add(sessions[i])
            if max(map(len, seen.values())) < 2:
                raise UsageError(
                    f"{option}: in a test set, no participant has scans of two sessions.",
                    "Use fewer --folds, or omit --across-sessions.",
                )

    def describe(self) -> dict[str, str | int]:
        """Return what the report lists; empty or 0 where a rule is not set."""
        return {
            "Gallery": 0 if self.gallery is None else f"{self.gallery} participants",
            "Compared with": "" if self.across is None else f"scans of other sessions (by {self.across})",
            "Head": "none: zero-shot" if self.zero_shot else "",
        }


def session_of(scan: object, across: str) -> str:
    """Return the session of a scan or segment by an entry of `ACROSS`; empty if it has none."""
    if across == SESSION:
        return str(getattr(scan, "session", "") or "")
    return str(getattr(scan, "labels", {}).get("run", ""))


def take(values: Sequence[str] | None, indices: np.ndarray) -> list[str] | None:
    """Return some of the values, or None."""
    return None if values is None else [values[i] for i in indices]
