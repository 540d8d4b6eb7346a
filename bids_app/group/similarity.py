"""Sections of the group report on embeddings: maps, re-identification, and suspected swaps."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.writer import write_columns, write_json
from bids_app.group.cohort import Cohort
from bids_app.group.identity import (
    BINS,
    ReIdentification,
    Suspicion,
    find_copies,
    principal_components,
    reidentify,
    sample_for_matrix,
    standardise,
    suspected_swaps,
)
from bids_app.group.processes import AT_ONCE
from bids_app.group.reading import RunRecord
from bids_app.group.sites import runs_by_embedding
from bids_app.group.statistics import proportion
from bids_app.reports.contents import spec
from bids_app.reports.figures.group_charts import Cloud, plot_clouds, plot_identity, plot_similarities
from bids_app.reports.group import BAD, FIGURES, GOOD, WARN, Cell, Figure, Remark, Section, Table, report_url
from bids_app.terminal import first_of

LOGGER = logging.getLogger(__name__)
MAX_COPIES = 5
"""Maximum number of groups of copies to name."""
IDENTITY = "group_identity.tsv"
IDENTITY_COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Participant"},
    "run": {"Description": "Name of the run, without suffix"},
    "similarity_own": {"Description": "Highest similarity with another run of the participant"},
    "similarity_other": {"Description": "Highest similarity with a run of another participant"},
    "nearest_other": {"Description": "Most similar run of another participant"},
    "margin": {
        "Description": "Similarity with the other participant minus similarity with the own one, relative to the "
        "usual margin"
    },
}
"""Data dictionary of `IDENTITY`."""
MIN_SWAP = 3
"""Minimum number of participants for swap detection: of two, each swap resembles both."""
MAX_MATRIX_RUNS = 240
"""Maximum runs in the similarity matrix."""
MIN_MAP_RUNS = 3
"""Minimum runs for a map."""
MIN_UMAP_RUNS, MAX_UMAP_RUNS = 15, 5000
"""UMAP needs more runs than the minimum; of more than the maximum, some are left out."""
MAP_SIZE = 1000
"""Positions on the interactive map are integers up to this."""


@dataclass(frozen=True)
class EmbeddingSet:
    """Embeddings of one model under one normalisation."""

    kind: tuple[str, str]
    """Model and normalisation."""
    runs: list[RunRecord]
    people: np.ndarray
    """(N,) int: index of the participant of each run."""
    found: Future[ReIdentification] | None = None
    """Re-identification of the participants; None without two participants, one with two runs."""

    @property
    def name(self) -> str:
        """Name, such as ``neurostorm, voxel``."""
        return ", ".join(self.kind)

    @property
    def values(self) -> np.ndarray:
        """(N, C) embeddings; made anew each time, to save memory."""
        return np.stack([run.vectors[self.kind].values for run in self.runs])

    @property
    def units(self) -> np.ndarray:
        """(N, C) embeddings standardised within tasks, see `standardise`; made anew each time."""
        return standardise(self.values, [run.entities.get("task", "") for run in self.runs])


def collect_embeddings(cohort: Cohort, executor: Executor = AT_ONCE) -> list[EmbeddingSet]:
    """Collect the embeddings by model and normalisation, if there are at least two runs, and have them compared."""
    sets = []
    session_of, _ = _session_indices(cohort)
    for kind, runs in runs_by_embedding(cohort.runs).items():
        if len(runs) > 1:
            numbers = {name: i for i, name in enumerate(dict.fromkeys(run.participant for run in runs))}
            each = EmbeddingSet(kind, runs, np.array([numbers[run.participant] for run in runs]))
            if 1 < len(numbers) < len(runs):
                sessions = np.array([session_of[run.stem] for run in runs])
                each = replace(each, found=executor.submit(reidentify, each.units, each.people, sessions))
            sets.append(each)
    return sets


@dataclass(frozen=True)
class EmbeddingMap:
    """Embeddings of runs in two dimensions."""

    embeddings: str
    """Model and normalisation."""
    method: str
    """``PCA`` or ``UMAP``."""
    runs: list[RunRecord]
    points: np.ndarray
    """(N, 2)."""
    axes: tuple[str, str] = ("", "")

    @property
    def title(self) -> str:
        """Title, such as ``Embeddings (neurostorm, voxel), PCA``."""
        return f"Embeddings ({self.embeddings}), {self.method}"

    def to_json(self, indices: Mapping[str, int]) -> dict[str, Any]:
        """Return what the script of the page needs: positions from 0 to `MAP_SIZE`, at one scale for both axes.

        Parameters
        ----------
        indices : mapping
            Row in the table of runs by name of the run.
        """
        middle = (self.points.max(axis=0) + self.points.min(axis=0)) / 2
        extent = float(np.ptp(self.points, axis=0).max()) or 1.0
        x, y = np.rint(MAP_SIZE * (0.5 + (self.points - middle) / extent)).astype(int).T.tolist()
        rows = [indices[run.stem] for run in self.runs]
        axes = f"Across: {self.axes[0]}; up: {self.axes[1]}." if self.axes[0] else ""
        found: dict[str, Any] = {"title": f"{self.embeddings}: {self.method}", "axes": axes, "x": x, "y": y}
        return found | ({} if rows == list(range(len(indices))) else {"rows": rows})


def embedding_maps(sets: Sequence[EmbeddingSet]) -> list[EmbeddingMap]:
    """Project embeddings of at least three runs to two dimensions: by PCA, and by UMAP if it is installed."""
    found, reduce = [], _umap()
    for embeddings in sets:
        n_runs = len(embeddings.runs)
        if n_runs < MIN_MAP_RUNS:
            continue
        units = standardise(embeddings.values)
        scores, shares = principal_components(units, 2)
        scores = np.pad(scores, ((0, 0), (0, 2 - scores.shape[1])))
        one, two = (f"PC {i + 1} ({share:.0%})" for i, share in enumerate([*shares, 0.0][:2]))
        found.append(EmbeddingMap(embeddings.name, "PCA", embeddings.runs, scores, (one, two)))
        if reduce and n_runs > MIN_UMAP_RUNS:
            chosen = np.linspace(0, n_runs - 1, min(n_runs, MAX_UMAP_RUNS)).astype(int)
            runs = [embeddings.runs[i] for i in chosen]
            found.append(EmbeddingMap(embeddings.name, "UMAP", runs, reduce(units[chosen])))
    return found


def map_section(cohort: Cohort, maps: Sequence[EmbeddingMap]) -> Section:
    """Build the section with maps of the embeddings: interactive, and as figures by possible sources of variation."""
    section = Section("map", "Embedding maps", has_map=bool(maps))
    if not maps:
        section.paragraphs.append("Fewer than three runs have embeddings.")
        return section
    colourings = _colourings(cohort, maps[0].runs)
    numbers: Counter[str] = Counter()
    for each in maps:
        clouds = [
            Cloud(f"{each.embeddings}: {name}", each.points, [colour(run) for run in each.runs], each.axes)
            for name, colour in colourings.items()
        ]
        kind = "map" if each.method == "PCA" else "umap"
        numbers[kind] += 1
        section.figures.append(_map_figure(clouds, f"{kind}{numbers[kind]}", each.title))
    has_umap = _umap() is not None
    section.paragraphs.append(
        "Each point is a run. Features are standardised over runs."
        + ("" if has_umap else " Install the package umap-learn to add UMAP maps.")
    )
    return section


def identity_section(cohort: Cohort, sets: Sequence[EmbeddingSet], out_dir: Path) -> Section:
    """Build the section on similarity of runs, re-identification of participants, and suspected swaps."""
    section = Section("identity", "Re-identification")
    if copies := _name_copies(sets):
        text = f"Different participants have identical embeddings, as copies of one series do: {copies}."
        section.remarks.append(Remark(BAD, text))
        LOGGER.warning("%s They count as several people; leave out the copies.", text)
    found = [each.found.result() for each in sets if each.found]
    sets = [each for each in sets if each.found]
    if not sets:
        section.paragraphs.append("Re-identification requires embeddings of two participants, one with two runs.")
        return section
    _, candidates = _session_indices(cohort)
    section.paragraphs.append(
        "Similarity is the cosine similarity of embeddings after standardising features over the runs of each task; 0 "
        f"is the average. A run is re-identified (Rank-1) if the most similar of all {candidates} is from the same "
        "participant; Chance is the Rank-1 accuracy of random similarities."
    )
    section.figures += [_matrix(sets), _histograms(sets, found)]
    section.tables.append(_rank1_table(sets, found, candidates))
    best = int(np.argmax([re.hits.sum() / max(1, re.tried.sum()) for re in found]))
    _detect_swaps(section, sets[best], found[best], out_dir)
    return section


def _name_copies(sets: Sequence[EmbeddingSet]) -> str:
    """Name the participants with identical embeddings; empty if there are none."""
    named: dict[str, None] = {}
    for embeddings in sets:
        names = list(dict.fromkeys(run.participant for run in embeddings.runs))
        for group in find_copies(embeddings.values, embeddings.people):
            named[" = ".join(names[index] for index in group)] = None
    return first_of(list(named), MAX_COPIES, "; ")


def _detect_swaps(section: Section, embeddings: EmbeddingSet, found: ReIdentification, out_dir: Path) -> None:
    settings = spec()["group"]
    rate = proportion(int(found.hits.sum()), int(found.tried.sum()))
    _write_identity(embeddings, found, out_dir)
    names = list(dict.fromkeys(run.participant for run in embeddings.runs))
    reason = ""
    if not rate.n:
        reason = "no participant has runs from two sessions"
    elif len(names) < MIN_SWAP:
        reason = f"at least {MIN_SWAP} participants are required"
    elif rate.value < settings["rank1"]:
        reason = f"re-identification is too inaccurate (Rank-1 {rate.value:.0%})"
    if reason:
        text = f"Swap detection was skipped: {reason}."
        section.paragraphs.append(text)
        section.remarks.append(Remark(WARN, text))
        return
    suspicions = suspected_swaps(found, embeddings.people, settings["swap_margin"])
    section.paragraphs.append(
        "A swap is suspected if a run is more similar to another participant than to its own by a margin of at least "
        f"{settings['swap_margin']}; 1 is the usual margin in favour of the own participant. The margin must also be "
        f"an outlier (Bonferroni-corrected). Embeddings used: {embeddings.name} (highest Rank-1 accuracy)."
    )
    section.tables.append(_swap_table(suspicions, embeddings, names))
    if not suspicions:
        section.remarks.append(Remark(GOOD, f"No swapped runs suspected (Rank-1 {rate.value:.0%})."))
    for suspicion in suspicions[:3]:
        one, two = (names[i] for i in suspicion.participants)
        text = f"Runs of {one} and {two} may have been swapped ({len(suspicion.runs)} runs)."
        if not suspicion.mutual:
            owner = embeddings.runs[suspicion.runs[0]].participant
            text = f"A run of {owner} resembles {two if owner == one else one}."
        section.remarks.append(Remark(BAD, text))


def _swap_table(suspicions: Sequence[Suspicion], embeddings: EmbeddingSet, names: Sequence[str]) -> Table:
    rows = []
    for suspicion in suspicions:
        one, two = (names[i] for i in suspicion.participants)
        runs = [embeddings.runs[i].stem for i in suspicion.runs]
        shown = first_of(runs, 6)
        rows.append(
            (
                Cell(one, report_url(one)),
                Cell(two, report_url(two)),
                Cell("yes" if suspicion.mutual else "no"),
                Cell(f"{suspicion.margin:.2f}"),
                Cell(shown),
            )
        )
    headings = ("Participant", "Resembles", "Mutual", "Largest margin", "Runs")
    return Table("Suspected swaps" if rows else "Suspected swaps: none", headings, rows, IDENTITY)


def _write_identity(embeddings: EmbeddingSet, found: ReIdentification, out_dir: Path) -> None:
    """Write the similarities of each run with its own and other participants."""
    margins = found.margins()
    columns = {
        "participant_id": [run.participant for run in embeddings.runs],
        "run": [run.stem for run in embeddings.runs],
        "similarity_own": np.round(found.own.astype(float), 4).tolist(),
        "similarity_other": np.round(found.other.astype(float), 4).tolist(),
        "nearest_other": [embeddings.runs[i].stem if i >= 0 else "n/a" for i in found.nearest],
        "margin": np.round(margins.astype(float), 3).tolist(),
    }
    path = write_columns(out_dir / IDENTITY, columns)
    write_json(path.with_suffix(".json"), IDENTITY_COLUMNS)


def _session_indices(cohort: Cohort) -> tuple[dict[str, int], str]:
    """Return the session index of each run and a label; without sessions, each run is its own session."""
    sessions = sorted({run.entities.get("ses", "") for run in cohort.runs})
    if len(sessions) > 1:
        return {run.stem: sessions.index(run.entities.get("ses", "")) for run in cohort.runs}, "runs of other sessions"
    return {run.stem: i for i, run in enumerate(cohort.runs)}, "other runs"


def _rank1_table(sets: Sequence[EmbeddingSet], found: Sequence[ReIdentification], candidates: str) -> Table:
    rows = []
    for embeddings, re in zip(sets, found, strict=True):
        rate = proportion(int(re.hits.sum()), int(re.tried.sum()))
        row = [Cell(embeddings.name), Cell(f"{rate.value:.3f}" if rate.n else "n/a")]
        row += [Cell(f"{rate.low:.3f} to {rate.high:.3f}" if rate.n else "n/a", value=rate.low if rate.n else None)]
        row += [Cell(f"{re.chance:.3f}" if rate.n else "n/a")]
        row += [Cell(str(rate.n)), Cell(f"{re.mean_same:z.3f}"), Cell(f"{re.mean_different:z.3f}")]
        rows.append(row)
    headings = (
        "Embeddings", "Rank-1", "95 % CI", "Chance", "Runs", "Similarity within participants",
        "Similarity between participants",
    )  # fmt: skip
    return Table(f"Re-identification among {candidates}", headings, rows)


def _matrix(sets: Sequence[EmbeddingSet]) -> Figure:
    matrices = {}
    for embeddings in sets[:2]:
        shown = sample_for_matrix(embeddings.people, MAX_MATRIX_RUNS)
        units = embeddings.units[shown]
        matrices[embeddings.name] = (units @ units.T, [embeddings.runs[i].participant for i in shown])
    n_all = max(len(embeddings.runs) for embeddings in sets[:2])
    n_shown = max(len(people) for _, people in matrices.values())
    selection = f" (random participants of {n_all:,} runs)" if n_shown < n_all else ""
    description = (
        f"Similarity of {n_shown} runs{selection}; squares on the diagonal are participants. The similarity of a "
        "run with itself is left out."
    )
    plot = partial(plot_identity, matrices, title="Similarity matrix", description=description)
    return Figure(f"{FIGURES}/identity.svg", "Similarity matrix", description, description, plot)


def _histograms(sets: Sequence[EmbeddingSet], found: Sequence[ReIdentification]) -> Figure:
    counts = {s.name: (re.same, re.different) for s, re in zip(sets, found, strict=True)}
    means = "; ".join(
        f"{s.name}: {re.mean_same:z.2f} and {re.mean_different:z.2f}" for s, re in zip(sets, found, strict=True)
    )
    return Figure(
        f"{FIGURES}/similarities.svg",
        "Similarity within and between participants",
        "Well-separated distributions indicate embeddings that identify participants and are stable across sessions.",
        f"Histograms of similarity; means within and between participants are {means}.",
        partial(plot_similarities, counts, BINS, title="Similarity across sessions"),
    )


def _map_figure(clouds: Sequence[Cloud], file: str, title: str) -> Figure:
    shown = ", ".join(cloud.title.rpartition(": ")[2] for cloud in clouds)
    plot = partial(plot_clouds, clouds, title=title, columns=3)
    return Figure(f"{FIGURES}/{file}.svg", title, f"Coloured by {shown}.", f"{title}; coloured by {shown}.", plot)


def _colourings(cohort: Cohort, runs: Sequence[RunRecord]):
    """Return up to three colourings that vary over runs; by default the verdict."""
    choices = {
        "site": cohort.site,
        "session": lambda run: run.entities.get("ses", ""),
        "task": lambda run: run.entities.get("task", ""),
        "verdict": lambda run: run.worst_verdict or "no verdict",
    }
    varying = {name: colour for name, colour in choices.items() if len({colour(run) for run in runs}) > 1}
    return dict(list((varying or {"verdict": choices["verdict"]}).items())[:3])


def _umap():
    """Return a UMAP projection to (N, 2); None if umap-learn is not installed."""
    try:
        from umap import UMAP
    except ImportError:
        return None

    def reduce(units: np.ndarray) -> np.ndarray:
        return np.asarray(UMAP(n_components=2, metric="cosine", random_state=0, n_jobs=1).fit_transform(units))

    return reduce
