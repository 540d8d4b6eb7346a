"""What of an adapter's card may not be published: labels of participants, and paths of files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, AdapterCard
from bids_app.errors import UsageError

LABEL = re.compile(r"(?<![A-Za-z0-9])sub-(?=[A-Za-z]*\d)[A-Za-z0-9]+")
"""Label of a participant in a text; one without a digit could be a word, as in sub-cortical."""
WHOLE_LABEL = re.compile(r"sub-[A-Za-z0-9]+")
START = r"(?:^|(?<=[\s\"'(\[=,;:<>]))"
PATH = re.compile(
    rf"{START}(?:~[\w.-]*|\.{{1,2}})?/[\w.+@~-]+"  # /home/me, ~/data, ../data
    r"|(?<![A-Za-z])[A-Za-z]:[\\/](?!/)"  # C:\data
    r"|\\\\[\w.-]+\\"  # \\server\share
    r"|\b(?:file|s3|gs|ssh|sftp|smb)://"
    r"|[\w.-]+/[\w./-]*\.(?:nii|tsv|csv|xlsx?|json|h5|hdf5|mat|npy|npz|ckpt|pth?|safetensors)\b"
)
PARTICIPANT_TARGETS = ("participant", "participant_id", "subject", "subject_id", "sub")
"""Targets whose classes are participants."""


def private_parts(card: AdapterCard, participants: Collection[str] = ()) -> dict[str, str]:
    """Find labels of participants and paths of files in a card.

    Parameters
    ----------
    card : AdapterCard
    participants : collection of str
        Known labels, with or without ``sub-``: those of the adapter's split file.

    Returns
    -------
    dict of str to str
        What was found, by the place in the card: ``cohort.scans_of_each``.
    """
    known = {label.removeprefix("sub-") for label in participants}
    found: dict[str, str] = {}
    if "scans_of_each" in card.cohort and (card.task == EMBEDDING or card.target in PARTICIPANT_TARGETS):
        found["cohort.scans_of_each"] = "counts by participant or image"
    if card.task == CLASSIFICATION and card.target in PARTICIPANT_TARGETS:
        found["labels"] = "labels of participants"
    for place, text in _texts(asdict(card)):
        if match := LABEL.search(text) or WHOLE_LABEL.fullmatch(text):
            found.setdefault(place, f"the label of a participant, {match[0]}")
        elif match := PATH.search(text):
            found.setdefault(place, f"the path of a file, {_shown(text, match.start())}")
        elif text.removeprefix("sub-") in known and place.partition(".")[0] != "labels":
            found.setdefault(place, f"the label of a participant, {text}")
    return found


def require_publishable(card: AdapterCard, where: str, participants: Collection[str] = ()) -> None:
    """Raise if a card may not be published.

    Raises
    ------
    UsageError
        It has no intended use or licence, or holds labels of participants or paths of files.
    """
    required = {"--intended-use": card.intended_use, "--licence": card.licence}
    missing = [option for option, text in required.items() if not text.strip()]
    if missing:
        names = " and no ".join(option.removeprefix("--").replace("-", " ") for option in missing)
        raise UsageError(
            f"{where}: not published, because its card has no {names}.",
            f"Give {' and '.join(missing)}; they become part of the uploaded file.",
        )
    private = private_parts(card, participants)
    if private:
        listed = "; ".join(f"{place} has {what}" for place, what in private.items())
        raise UsageError(
            f"{where}: not published, because of what its card holds: {listed}.",
            f"Leave them out of the uploaded file with --omit {' '.join(private)}, or train it again without them.",
        )


def without(card: AdapterCard, places: Iterable[str]) -> AdapterCard:
    """Return a card without some of its parts: entries of dictionaries are removed, texts become empty.

    Raises
    ------
    UsageError
        There is no such part, or an adapter cannot do without it.
    """
    content = asdict(card)
    for place in places:
        *parents, name = place.split(".")
        inner: Any = content
        for parent in parents:
            inner = inner.get(parent) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or name not in inner:
            raise UsageError(f"--omit {place}: the card has no such part.", f"Its parts: {', '.join(content)}.")
        if parents:
            del inner[name]
        elif name in OPTIONAL_TEXTS or isinstance(inner[name], dict):
            inner[name] = type(inner[name])()
        else:
            raise UsageError(
                f"--omit {place}: an adapter cannot be applied without it.",
                "This adapter cannot be published as it is; train it again with other data or labels.",
            )
    return AdapterCard(**content)


OPTIONAL_TEXTS = ("limits", "intended_use", "licence", "unit", "target", "withheld")


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts of nested values, keys included, with their places."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            inner = f"{place}.{key}" if place else str(key)
            yield place or str(key), str(key)
            yield from _texts(item, inner)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, place)


def _shown(text: str, start: int, length: int = 60) -> str:
    shown = text[start : start + length].strip()
    return shown + ("…" if len(text) > start + length else "")
