"""Which scans, with which labels, in which split, and batches of clips from them.

Scans come from stores of clips, and stores from datasets in a template's space: the app's own outputs (with
``--output-spaces``) or fMRIPrep's. Participants never straddle splits.
"""

from __future__ import annotations

import csv
import json
import queue
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from bids_app.catalog.templates import space
from bids_app.clips import CLIP_VOLUMES, series_from_image
from bids_app.errors import BadDataError, NoMatchError, UsageError
from bids_app.training.store import ClipStore, Scan

BOLD_PATTERN = "**/*_space-*_desc-preproc_bold.nii.gz"


def prepare(dataset: Path, store: ClipStore) -> list[Scan]:
    """Bring every series of a derivatives dataset that is in a known template's space into a store.

    Parameters
    ----------
    dataset : Path
        Holds ``*_space-<template>_desc-preproc_bold.nii.gz``; brain masks beside them are used. Of a run in several
        spaces or resolutions, the first by name is taken.
    store : ClipStore
        Scans that it has are left as they are, so that an interrupted preparation is taken up again.
    """
    scans = {}
    for bold in sorted(dataset.glob(BOLD_PATTERN)):
        entities = dict(part.split("-", 1) for part in bold.name.split("_")[:-1])
        name = "_".join(f"{k}-{v}" for k, v in entities.items() if k not in ("space", "res", "desc"))
        if name not in scans:
            scans[name] = _prepare_one(bold, entities, name, store)
    if not scans:
        raise NoMatchError(
            f"{dataset}: holds no *_desc-preproc_bold.nii.gz in a template's space.",
            "Run neurostorm with --output-spaces, or name a derivatives dataset of fMRIPrep.",
        )
    return list(scans.values())


def _prepare_one(bold: Path, entities: dict[str, str], name: str, store: ClipStore) -> Scan:
    if name in store:
        return store[name]
    where = space(entities["space"])
    mask_path = bold.with_name(bold.name.replace("_desc-preproc_bold", "_desc-brain_mask"))
    image = _in_model_space(bold, where.to_model)
    mask = _in_model_space(mask_path, where.to_model) if mask_path.is_file() else None
    with tempfile.TemporaryDirectory(dir=store.folder, prefix=".series.") as scratch:
        series = series_from_image(image, scratch, tr=_repetition_time(bold), mask=mask)
        labels = {"task": entities["task"]} if "task" in entities else {}
        return store.add(name, series, entities["sub"], entities.get("ses", ""), labels, str(bold))


def _in_model_space(path: Path, to_model: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image.from_filename(path)
    return nib.Nifti1Image(image.dataobj, to_model @ image.affine, image.header)


def _repetition_time(bold: Path) -> float | None:
    sidecar = bold.with_suffix("").with_suffix(".json")
    return json.loads(sidecar.read_text()).get("RepetitionTime") if sidecar.is_file() else None


@dataclass(frozen=True)
class Target:
    """Where labels come from.

    Attributes
    ----------
    table : Path or None
        A TSV with a ``participant_id`` column (and ``session_id``, where sessions differ); None: the scans' own labels.
    column : str
    """

    table: Path | None
    column: str

    @classmethod
    def parse(cls, text: str, dataset: Path) -> Target:
        """``participants.tsv:sex`` (a path, or a name in the dataset), or ``scan:state`` for what the store says."""
        table, separator, column = text.rpartition(":")
        if not separator or not column or not table:
            raise UsageError(f"--target is {text!r}.", "Write TABLE.tsv:COLUMN, or scan:LABEL.")
        if table == "scan":
            return cls(None, column)
        for path in (Path(table), dataset / table):
            if path.is_file():
                return cls(path, column)
        raise UsageError(f"--target names {table}, which is not here.", f"Looked in {Path.cwd()} and {dataset}.")

    def of(self, scans: Sequence[Scan]) -> list[str | None]:
        """The label of each scan as text; None where there is none (``n/a``)."""
        if self.table is None:
            values = [scan.labels.get(self.column) for scan in scans]
        else:
            rows = self._rows()
            values = [
                rows.get((scan.participant, scan.session), rows.get((scan.participant, ""), None)) for scan in scans
            ]
        if all(_is_missing(v) for v in values):
            raise NoMatchError(
                f"No scan has a value of {self.column}.", "Check the participants' labels and the column."
            )
        return [None if _is_missing(v) else str(v) for v in values]

    def _rows(self) -> dict[tuple[str, str], str]:
        assert self.table is not None
        with open(self.table, newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        columns = list(rows[0]) if rows else []
        if "participant_id" not in columns or self.column not in columns:
            raise BadDataError(
                f"{self.table}: has no column {self.column!r} beside participant_id.", f"It has {', '.join(columns)}."
            )
        return {
            (row["participant_id"].removeprefix("sub-"), (row.get("session_id") or "").removeprefix("ses-")): row[
                self.column
            ]
            for row in rows
        }


def _is_missing(value: Any) -> bool:
    return value is None or str(value).strip().lower() in ("", "n/a", "nan")


def split_participants(
    scans: Sequence[Scan], share: float, seed: int, strata: Sequence[object] | None = None
) -> tuple[list[int], list[int]]:
    """Split scans so that no participant is on both sides.

    Parameters
    ----------
    share : float
        Of the participants that go to the second part; at least one does.
    strata : sequence, optional
        A value for each scan; participants are drawn from each value's group alike (by their first scan).

    Returns
    -------
    list of int, list of int
        Indices into ``scans``.
    """
    groups: dict[str, list[str]] = {}
    seen: set[str] = set()
    for index, scan in enumerate(scans):
        if scan.participant not in seen:
            seen.add(scan.participant)
            groups.setdefault(str(strata[index]) if strata is not None else "", []).append(scan.participant)
    if len(seen) < 2:
        raise NoMatchError(
            f"Scans of {len(seen)} participant cannot be split.", "At least two participants are needed."
        )
    rng = np.random.default_rng(seed)
    ranked = []
    for people in groups.values():
        order = rng.permutation(len(people))
        ranked += [((place + 0.5) / len(people), people[i]) for place, i in enumerate(order)]
    n_second = min(max(1, round(share * len(seen))), len(seen) - 1)
    second = {person for _, person in sorted(ranked)[:n_second]}
    first = [i for i, scan in enumerate(scans) if scan.participant not in second]
    return first, [i for i, scan in enumerate(scans) if scan.participant in second]


@dataclass(frozen=True)
class Batch:
    """Clips (B, 1, 96, 96, 96, 20) and, for each, the index of its scan (B,)."""

    clips: torch.Tensor
    scans: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return Batch(self.clips.to(device, non_blocking=True), self.scans.to(device, non_blocking=True))


@dataclass(frozen=True)
class ClipBatches:
    """Batches of clips, in an order and at times that only the seed and the epoch decide.

    Attributes
    ----------
    scans : tuple of Scan
    batch_size : int
    seed : int
    moving : bool
        Clips begin anywhere (training), or where they do without overlap (evaluation).
    """

    scans: tuple[Scan, ...]
    batch_size: int
    seed: int = 0
    moving: bool = True

    def __post_init__(self) -> None:
        if not any(scan.n_clips for scan in self.scans):
            raise NoMatchError("No scan is as long as a clip.", f"A clip needs {CLIP_VOLUMES} volumes at 0.8 s.")

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        n_clips = sum(scan.n_clips for scan in self.scans)
        return n_clips // self.batch_size or 1 if self.moving else -(-n_clips // self.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch, the next one read while the last is used."""
        order = [(i, k * CLIP_VOLUMES) for i, scan in enumerate(self.scans) for k in range(scan.n_clips)]
        if self.moving:
            rng = np.random.default_rng([self.seed, number])
            order = [(i, int(rng.integers(self.scans[i].n_vols - CLIP_VOLUMES + 1))) for i, _ in order]
            order = [order[k] for k in rng.permutation(len(order))]
        groups = [order[k * self.batch_size : (k + 1) * self.batch_size] for k in range(self.steps)]
        return _ahead(self._read(group) for group in groups)

    def _read(self, group: list[tuple[int, int]]) -> Batch:
        clips = torch.stack([self.scans[i].clip(start) for i, start in group])
        return Batch(clips, torch.tensor([i for i, _ in group]))


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Read one batch ahead in a thread."""
    waiting: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:  # handed to the reader, who raises it
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
