"""Description of a training cohort in an adapter: reference statistics, ranges and demographics."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_app.adapters.attribution import select_clips
from bids_app.adapters.domain import Domain
from bids_app.adapters.file import Adapter
from bids_app.adapters.reconstruction import Autoencoder
from bids_app.adapters.verdict import SIMULATED
from bids_app.bids.participants import as_age
from bids_app.bids.sidecars import SCANNER_KEYS, is_simulated, read_json
from bids_app.clips import MODEL_GRID_SHAPE, MODEL_TR
from bids_app.errors import BadDataError, NeurostormError
from bids_app.files import read_rows
from bids_app.model.api import Model
from bids_app.model.checkpoint import read_checkpoint
from bids_app.preprocess.brain_signal import SIGNAL_MEASURES
from bids_app.terminal import count_of
from bids_app.training.data.batches import ClipSource
from bids_app.training.data.labels import Segment, is_missing
from bids_app.training.data.scan import Scan
from bids_app.training.head import compute_embeddings

LOGGER = logging.getLogger(__name__)
ParticipantTable = Mapping[str, Mapping[str, str]]
"""Rows of ``participants.tsv`` by participant."""
MIN_KNOWN = 0.5
"""Minimum fraction of scans or participants with a known value for a range."""
DEMOGRAPHICS = {"sexes": ("sex", "gender"), "sites": ("site", "site_id", "site_name"), "scanners": ("scanner",)}
"""Candidate columns of each entry of the card."""
DECIMALS = 4
"""Decimals of ranges."""
EXACT = Context(prec=400)
"""Digits of any float with `DECIMALS` decimals."""
MAX_RECONSTRUCTED = 200
"""Maximum number of scans whose reconstruction error is measured, evenly spaced."""
MAX_LISTED = 50
"""Maximum number of sites or scanners to list; more are only counted."""


def unique_scans(examples: Sequence[ClipSource]) -> tuple[Scan, ...]:
    """Return the scans of examples or segments, each once."""
    scans = [example.scan if isinstance(example, Segment) else example for example in examples]
    return tuple({scan.folder: scan for scan in scans if isinstance(scan, Scan)}.values())


def add_reference(
    adapter: Adapter, model: Model, examples: Sequence[ClipSource], participants: ParticipantTable, batch_size: int
) -> tuple[Adapter, str]:
    """Add reference statistics of embeddings, ranges and demographics of a cohort to an adapter.

    Parameters
    ----------
    adapter : Adapter
    model : Model
        Its encoder, without the changes of the adapter, computes the embeddings, as for new scans.
    examples : sequence of ClipSource
        Clips with the normalisation of the adapter.
    participants : mapping
        Rows of ``participants.tsv`` by participant.
    batch_size : int

    Returns
    -------
    adapter : Adapter
        Without reference statistics if the cohort is too small.
    message : str
        Summary, or the reason for missing reference statistics.
    """
    described = add_reconstruction(add_ranges(adapter, examples, participants), model, examples)
    try:
        updated = add_domains(described, model, examples, batch_size)
    except BadDataError as error:
        return described, f"{error.message} {error.hint} Without them, out-of-distribution scans are not detected."
    domains = updated.domains
    limits = ", ".join(f"{name} {domain.limit[0]:.3g}" for name, domain in domains.items())
    n_participants, rate = domains["embedding"].participants, domains["embedding"].limit[1]
    return updated, (
        f"Reference statistics of {count_of(n_participants, 'participant')}: scans with a distance above the limit "
        f"({limits}) are out-of-distribution (expected for {rate:.1%} of such scans, by each). Ranges: "
        f"{json.dumps(updated.card.ranges)}"
    )


def add_domains(adapter: Adapter, model: Model, examples: Sequence[ClipSource], batch_size: int) -> Adapter:
    """Add reference statistics of a cohort to an adapter: of embeddings, and of the signal where it was measured."""
    scans = unique_scans(examples)
    embeddings, owners = (array.cpu().numpy() for array in compute_embeddings(model, scans, batch_size))
    known = np.unique(owners)  # scans shorter than a clip have no embedding
    clips = [embeddings[owners == index] for index in known]
    participants = [scans[index].participant for index in known]
    domains = {
        "embedding": Domain.fit(np.stack([rows.mean(axis=0) for rows in clips]), participants),
        "clips": Domain.fit(clips, participants),
    }
    signals = [scans[index].signal for index in known]
    names = tuple(name for name in SIGNAL_MEASURES if all(name in signal for signal in signals))
    if names:
        table = np.array([[signal[name] for name in names] for signal in signals])
        domains["signal"] = Domain.fit(table, participants)
    return replace(adapter, card=replace(adapter.card, signal=names)).with_domains(domains)


def add_ranges(adapter: Adapter, examples: Sequence[ClipSource], participants: ParticipantTable) -> Adapter:
    """Add ranges and demographics of a cohort, as far as known from tables and sidecars, to the card of an adapter."""
    scans = unique_scans(examples)
    rows = {scan.participant: participants[scan.participant] for scan in scans if scan.participant in participants}
    properties = [scan_properties(scan) for scan in scans]
    found = {name: [row[name] for row in properties if name in row] for name in ("tr", "duration", "fd_mean", "tsnr")}
    ages = [age for row in rows.values() if (age := as_age(row.get("age"))) is not None]
    n_participants = len({scan.participant for scan in scans})
    ranges = {
        name: list(rounded_range(values))
        for name, values, of in [*((n, v, len(scans)) for n, v in found.items()), ("age", ages, n_participants)]
        if values and len(values) >= MIN_KNOWN * of
    }
    card = adapter.card
    cohort = card.cohort | _demographics(rows, scans)
    origins = {is_simulated(_sidecar(scan)) for scan in scans}
    if origins in ({True}, {False}):
        cohort[SIMULATED] = origins.pop()
    if ages:
        cohort["ages"] = {"mean": round(float(np.mean(ages)), 2), "range": [min(ages), max(ages)], "known": len(ages)}
    return replace(adapter, card=replace(card, ranges=card.ranges | ranges, cohort=cohort))


class StoredClips:
    """Clips of a scan in a store, whose normalisation is fixed."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self.n_clips = scan.n_clips
        self.mask = np.zeros(MODEL_GRID_SHAPE, bool)
        self.mask.reshape(-1)[scan.voxel_indices] = True

    def clip(self, index: int, normalisation: str) -> torch.Tensor:
        """Read a clip, (1, 96, 96, 96, T); ``normalisation`` is that of the store."""
        return self._scan.clip(index * self._scan.clip_volumes)


def add_reconstruction(adapter: Adapter, model: Model, examples: Sequence[ClipSource]) -> Adapter:
    """Add the range of reconstruction errors of a cohort to the card of an adapter.

    Nothing is added if the model's file has no decoder, or if it was pre-trained with another normalisation than that
    of the examples.
    """
    try:
        autoencoder = Autoencoder.load(read_checkpoint(model.path), model.device)
    except BadDataError as error:
        LOGGER.info("No reconstruction errors of the cohort: %s", error.message)
        return adapter
    if autoencoder.normalisation != adapter.card.normalisation:
        return adapter
    scans = [scan for scan in unique_scans(examples) if scan.n_clips]
    chosen = [scans[index] for index in select_clips(len(scans), MAX_RECONSTRUCTED)]
    found = [autoencoder.measure(StoredClips(scan)).dynamics for scan in chosen]
    errors = [error for error in found if error is not None]
    if len(errors) < max(2, MIN_KNOWN * len(chosen)):
        return adapter
    ranges = adapter.card.ranges | {"reconstruction": list(rounded_range(errors))}
    return replace(adapter, card=replace(adapter.card, ranges=ranges))


def rounded_range(values: Sequence[float]) -> tuple[float, float]:
    """Return minimum and maximum with `DECIMALS` decimals, rounded outwards, so that all values are within them."""
    step = Decimal(1).scaleb(-DECIMALS)
    low, high = Decimal(min(values)), Decimal(max(values))
    return float(low.quantize(step, ROUND_FLOOR, EXACT)), float(high.quantize(step, ROUND_CEILING, EXACT))


def scan_properties(scan: Scan) -> dict[str, float]:
    """Return the known properties of a scan: duration, and TR, mean FD and tSNR from its derivatives."""
    found: dict[str, Any] = {"duration": scan.n_vols * MODEL_TR}
    found["fd_mean"] = scan.confounds.get("framewise_displacement_mean")
    found |= {name: scan.quality[name] for name in ("tr", "fd_mean", "tsnr") if name in scan.quality}
    if scan.source:
        bold = Path(scan.source)
        found.setdefault("tr", _sidecar(scan).get("RepetitionTime"))
        table = bold.parent / f"{scan.name}_desc-quality_metrics.tsv"
        row = _first_row(table)
        found |= {name: _number(row[name]) for name in ("fd_mean", "tsnr") if _number(row.get(name)) is not None}
    return {name: known for name, value in found.items() if (known := _number(value)) is not None}


def _demographics(participants: ParticipantTable, scans: Sequence[Scan]) -> dict[str, Any]:
    """Count participants by sex, site and scanner, as far as known."""
    entries: dict[str, list[str]] = {}
    for name, columns in DEMOGRAPHICS.items():
        cells = ((row.get(column) for column in columns) for row in participants.values())
        entries[name] = [cell for row in cells if (cell := next((c for c in row if not is_missing(c)), None))]
    if not entries["scanners"]:
        scanners = {scan.participant: _scanner(scan) for scan in scans}
        entries["scanners"] = [scanner for scanner in scanners.values() if scanner]
    counts = {name: dict(sorted(Counter(cells).items())) for name, cells in entries.items() if cells}
    return {name: groups if len(groups) <= MAX_LISTED else len(groups) for name, groups in counts.items()}


def _sidecar(scan: Scan) -> dict[str, Any]:
    """Return the sidecar of a scan, with what its store knows of the scanner."""
    found = _json(Path(scan.source).with_suffix("").with_suffix(".json")) if scan.source else {}
    return found | dict(scan.scanner)


def _scanner(scan: Scan) -> str:
    sidecar = _sidecar(scan)
    parts = [sidecar.get(key) for key in SCANNER_KEYS[:2]]
    strength = sidecar.get(SCANNER_KEYS[2])
    return " ".join([*(str(part) for part in parts if part), *([f"{strength:g} T"] if _number(strength) else [])])


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) if os.path.lexists(path) else {}
    except NeurostormError as error:
        LOGGER.warning("Not part of the cohort's description: %s", error.message)
        return {}


def _first_row(table: Path) -> dict[str, str]:
    try:
        return next(iter(read_rows(table)), {}) if os.path.lexists(table) else {}
    except NeurostormError as error:
        LOGGER.warning("Not part of the cohort's description: %s", error.message)
        return {}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if np.isfinite(number) else None
