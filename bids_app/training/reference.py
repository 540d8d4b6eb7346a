"""What a cohort was like, for the adapter that learned from it: reference statistics, ranges, facts for its card."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.adapters.domain import Domain
from bids_app.adapters.file import Adapter
from bids_app.bids.participants import as_age
from bids_app.clips import MODEL_TR
from bids_app.errors import BadDataError
from bids_app.model.api import Model
from bids_app.training.data.labels import Stretch, is_missing
from bids_app.training.data.loader import Readable
from bids_app.training.data.store import Scan
from bids_app.training.head import embeddings_of

People = Mapping[str, Mapping[str, str]]
"""Rows of ``participants.tsv`` by participant."""
MIN_KNOWN = 0.5
"""Share of the scans, or participants, that a figure must be known of for its range to be kept."""
FACTS = {"sexes": ("sex", "gender"), "sites": ("site", "site_id", "site_name"), "scanners": ("scanner",)}
"""By the card's name, the columns that may hold it."""
MAX_KINDS = 50
"""Of sites or scanners; more are only counted."""


def whole_scans(examples: Sequence[Readable]) -> tuple[Scan, ...]:
    """The scans that examples are, or are stretches of; each once."""
    scans = [example.scan if isinstance(example, Stretch) else example for example in examples]
    return tuple({scan.folder: scan for scan in scans if isinstance(scan, Scan)}.values())


def with_reference(
    adapter: Adapter, model: Model, examples: Sequence[Readable], people: People, batch: int
) -> tuple[Adapter, str]:
    """The same adapter with what is known of a cohort: reference statistics of its embeddings, ranges, facts.

    Parameters
    ----------
    adapter : Adapter
    model : Model
        Its plain encoder makes the embeddings, whatever the adapter changes in it: those are what a new scan has too.
    examples : sequence of Readable
        Clips under the adapter's normalisation.
    people : mapping
        Rows of ``participants.tsv`` by participant.
    batch : int
        Clips at a time.

    Returns
    -------
    adapter : Adapter
        Without statistics where the cohort is too small for them.
    told : str
        What was kept, or why not.
    """
    described = with_ranges(adapter, examples, people)
    try:
        made = with_domain(described, model, examples, batch)
    except BadDataError as error:
        return described, f"{error.message} {error.hint} Whether a scan resembles the cohort will not be known."
    domain = made.domain
    assert domain is not None
    limit, rate = domain.limit
    return made, (
        f"Reference statistics of {domain.participants} participants: {rate:.1%} of scans like theirs lie farther than "
        f"{limit:.3g} from their mean. Ranges: {json.dumps(made.card.ranges)}"
    )


def with_domain(adapter: Adapter, model: Model, examples: Sequence[Readable], batch: int) -> Adapter:
    """The same adapter with reference statistics of a cohort's embeddings."""
    scans = whole_scans(examples)
    embeddings, owners = (array.cpu().numpy() for array in embeddings_of(model, scans, batch))
    known = np.unique(owners)  # scans shorter than a clip have none
    means = np.stack([embeddings[owners == index].mean(axis=0) for index in known])
    return adapter.with_domain(Domain.fit(means, [scans[index].participant for index in known]))


def with_ranges(adapter: Adapter, examples: Sequence[Readable], people: People) -> Adapter:
    """The same adapter whose card tells what its cohort was like, as far as tables and sidecars say."""
    scans = whole_scans(examples)
    own = {scan.participant: people[scan.participant] for scan in scans if scan.participant in people}
    figures = [figures_of(scan) for scan in scans]
    found = {name: [row[name] for row in figures if name in row] for name in ("tr", "duration", "fd_mean", "tsnr")}
    ages = [age for row in own.values() if (age := as_age(row.get("age"))) is not None]
    n_participants = len({scan.participant for scan in scans})
    ranges = {
        name: [round(min(values), 4), round(max(values), 4)]
        for name, values, of in [*((n, v, len(scans)) for n, v in found.items()), ("age", ages, n_participants)]
        if values and len(values) >= MIN_KNOWN * of
    }
    card = adapter.card
    cohort = card.cohort | _facts(own, scans)
    if ages:
        cohort["ages"] = {"mean": round(float(np.mean(ages)), 2), "range": [min(ages), max(ages)], "known": len(ages)}
    return replace(adapter, card=replace(card, ranges=card.ranges | ranges, cohort=cohort))


def figures_of(scan: Scan) -> dict[str, float]:
    """What is known of a scan under the names of ranges: its length, and what stands beside the file it came from."""
    found: dict[str, Any] = {"duration": scan.n_vols * MODEL_TR}
    found["fd_mean"] = scan.confounds.get("framewise_displacement_mean")
    if scan.source:
        bold = Path(scan.source)
        found["tr"] = _json(bold.with_suffix("").with_suffix(".json")).get("RepetitionTime")
        table = bold.parent / f"{scan.name}_desc-quality_metrics.tsv"
        if table.is_file():
            with table.open(newline="", encoding="utf-8") as file:
                row: dict[str, str] = next(csv.DictReader(file, delimiter="\t"), {})
            found |= {name: _number(row[name]) for name in ("fd_mean", "tsnr") if _number(row.get(name)) is not None}
    return {name: float(value) for name, value in found.items() if value is not None}


def _facts(people: People, scans: Sequence[Scan]) -> dict[str, Any]:
    """Sexes, sites and scanners, as far as they are told, with how many participants each has."""
    told: dict[str, list[str]] = {}
    for name, columns in FACTS.items():
        cells = ((row.get(column) for column in columns) for row in people.values())
        told[name] = [cell for row in cells if (cell := next((c for c in row if not is_missing(c)), None))]
    if not told["scanners"]:
        by_person = {scan.participant: _scanner(scan) for scan in scans}
        told["scanners"] = [scanner for scanner in by_person.values() if scanner]
    counts = {name: dict(sorted(Counter(cells).items())) for name, cells in told.items() if cells}
    return {name: kinds if len(kinds) <= MAX_KINDS else len(kinds) for name, kinds in counts.items()}


def _scanner(scan: Scan) -> str:
    sidecar = _json(Path(scan.source).with_suffix("").with_suffix(".json")) if scan.source else {}
    parts = [sidecar.get(key) for key in ("Manufacturer", "ManufacturersModelName")]
    strength = sidecar.get("MagneticFieldStrength")
    return " ".join([*(str(part) for part in parts if part), *([f"{strength:g} T"] if _number(strength) else [])])


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
