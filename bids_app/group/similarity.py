"""Sections of the group's page about embeddings: their map, who resembles whom, and runs that may have been swapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app.bids.writer import write_tsv
from bids_app.group.cohort import Cohort
from bids_app.group.identity import (
    BINS,
    ReIdentification,
    Suspicion,
    principal_components,
    reidentify,
    sample_for_matrix,
    standardise,
    suspected_swaps,
)
from bids_app.group.reading import RunRecord
from bids_app.group.sites import encoded_runs
from bids_app.group.statistics import proportion
from bids_app.reports.contents import spec
from bids_app.reports.figures.group_charts import Cloud, plot_clouds, plot_identity, plot_similarities
from bids_app.reports.group import BAD, FIGURES, GOOD, WARN, Cell, Picture, Remark, Section, Table, report_url

IDENTITY = "group_identity.tsv"
IN_MATRIX = 240
"""Runs that the identity matrix shows at most."""
IN_UMAP = 5000
"""Runs that UMAP is given at most."""


@dataclass(frozen=True)
class Kind:
    """Embeddings of one model under one normalisation."""

    name: str
    runs: list[RunRecord]
    values: np.ndarray
    """(N, C), as the encoder gives them."""
    units: np.ndarray
    """(N, C), see `standardise`; without what a task makes of everybody."""
    people: np.ndarray
    """(N,) int, in the order of the runs."""


def kinds_of(cohort: Cohort) -> list[Kind]:
    """Every kind of embedding that two runs have."""
    kinds = []
    for (model, normalisation), runs in encoded_runs(cohort.runs).items():
        if len(runs) > 1:
            values = np.stack([run.vectors[model, normalisation].values for run in runs])
            numbers = {name: i for i, name in enumerate(dict.fromkeys(run.participant for run in runs))}
            people = np.array([numbers[run.participant] for run in runs])
            tasks = [run.entities.get("task", "") for run in runs]
            kinds.append(Kind(f"{model}, {normalisation}", runs, values, standardise(values, tasks), people))
    return kinds


def map_section(cohort: Cohort, kinds: Sequence[Kind], out_dir: Path) -> Section:
    """The map of the embeddings, coloured by what may lie behind their differences."""
    section = Section("map", "Map of embeddings")
    kinds = [kind for kind in kinds if len(kind.runs) > 2]
    if not kinds:
        section.paragraphs.append("Fewer than three runs have embeddings.")
        return section
    colourings = _colourings(cohort, kinds[0].runs)
    reduce = _umap()
    for number, kind in enumerate(kinds):
        units = standardise(kind.values)
        scores, shares = principal_components(units, 2)
        scores = np.pad(scores, ((0, 0), (0, 2 - scores.shape[1])))
        axes = tuple(f"component {i + 1} ({share:.0%})" for i, share in enumerate([*shares, 0.0][:2]))
        clouds = [
            Cloud(f"{kind.name}: {name}", scores, [colour(run) for run in kind.runs], (axes[0], axes[1]))
            for name, colour in colourings.items()
        ]
        section.pictures.append(_drawn_map(clouds, f"map{number + 1}", kind.name, "principal components", out_dir))
        if reduce and len(kind.runs) > 15:
            chosen = np.linspace(0, len(kind.runs) - 1, min(len(kind.runs), IN_UMAP)).astype(int)
            points = reduce(units[chosen])
            clouds = [
                Cloud(f"{kind.name}: {name}", points, [colour(kind.runs[i]) for i in chosen])
                for name, colour in colourings.items()
            ]
            section.pictures.append(_drawn_map(clouds, f"umap{number + 1}", kind.name, "UMAP", out_dir))
    section.paragraphs.append(
        "Each dot is a run. Features are standardised over runs first."
        + ("" if reduce else " UMAP is drawn too where the package umap-learn is installed; here it is not.")
    )
    return section


def identity_section(cohort: Cohort, kinds: Sequence[Kind], out_dir: Path) -> Section:
    """How alike runs are, how well participants are found again, and whose runs may have been swapped."""
    section = Section("identity", "Identity")
    kinds = [kind for kind in kinds if 1 < len(set(kind.people)) < len(kind.people)]
    if not kinds:
        section.paragraphs.append("No two participants have embeddings, or none has two runs that could be compared.")
        return section
    occasions, what = _occasions(cohort)
    found = [
        reidentify(kind.units, kind.people, np.array([occasions[run.stem] for run in kind.runs])) for kind in kinds
    ]
    section.paragraphs.append(
        "Similarity is the cosine of embeddings whose features were standardised over the runs of a task: 0 is what "
        f"two runs have in common on average. A run is found again when, of all {what}, the most similar one is of its "
        "own participant (Rank-1)."
    )
    section.pictures += [_matrix(kinds, out_dir), _histograms(kinds, found, out_dir)]
    section.tables.append(_rank1_table(kinds, found, what))
    best = int(np.argmax([re.hits.sum() / max(1, re.tried.sum()) for re in found]))
    _look_for_swaps(section, kinds[best], found[best], out_dir)
    return section


def _look_for_swaps(section: Section, kind: Kind, found: ReIdentification, out_dir: Path) -> None:
    settings = spec()["group"]
    rate = proportion(int(found.hits.sum()), int(found.tried.sum()))
    _write_identity(kind, found, out_dir)
    if not rate.n or rate.value < settings["rank1"]:
        text = (
            "Swapped participants were not looked for: runs are found again too rarely to tell "
            f"(Rank-1 {rate.value:.0%})."
            if rate.n
            else "Swapped participants could not be looked for: no participant has runs of two sessions."
        )
        section.paragraphs.append(text)
        section.remarks.append(Remark(WARN, text))
        return
    suspicions = suspected_swaps(found, kind.people, settings["swap_margin"])
    names = list(dict.fromkeys(run.participant for run in kind.runs))
    section.paragraphs.append(
        "A swap is suspected where a run looks more like another participant than like its own by a margin of "
        f"{settings['swap_margin']} or more; 1 is as much as runs usually look more like their own. The margin must "
        f"also be larger than chance gives among so many runs. Embeddings: {kind.name}, where most are found again."
    )
    section.tables.append(_swap_table(suspicions, kind, names))
    if not suspicions:
        section.remarks.append(
            Remark(GOOD, f"No run is suspected of belonging to somebody else (Rank-1 {rate.value:.0%}).")
        )
    for suspicion in suspicions[:3]:
        one, two = (names[i] for i in suspicion.participants)
        text = f"Runs of {one} and {two} may have been swapped: {len(suspicion.runs)} look like the other's."
        if not suspicion.mutual:
            owner = kind.runs[suspicion.runs[0]].participant
            text = f"A run of {owner} looks like {two if owner == one else one}'s."
        section.remarks.append(Remark(BAD, text))


def _swap_table(suspicions: Sequence[Suspicion], kind: Kind, names: Sequence[str]) -> Table:
    rows = []
    for suspicion in suspicions:
        one, two = (names[i] for i in suspicion.participants)
        runs = [kind.runs[i].stem for i in suspicion.runs]
        shown = ", ".join(runs[:6]) + (f" and {len(runs) - 6} more" if len(runs) > 6 else "")
        rows.append(
            (
                Cell(one, report_url(one)),
                Cell(two, report_url(two)),
                Cell("yes" if suspicion.mutual else "no"),
                Cell(f"{suspicion.margin:.2f}"),
                Cell(shown),
            )
        )
    headings = ("Participant", "looks like", "each like the other", "Largest margin", "Runs")
    return Table("Suspected swaps" if rows else "Suspected swaps: none", headings, rows, IDENTITY)


def _write_identity(kind: Kind, found: ReIdentification, out_dir: Path) -> None:
    """Each run's nearest relatives, as a table."""
    margins = found.margins()
    columns = {
        "participant_id": [run.participant for run in kind.runs],
        "run": [run.stem for run in kind.runs],
        "similarity_own": np.round(found.own.astype(float), 4),
        "similarity_other": np.round(found.other.astype(float), 4),
        "nearest_other": [kind.runs[i].stem if i >= 0 else "n/a" for i in found.nearest],
        "margin": np.round(margins, 3),
    }
    write_tsv(out_dir / IDENTITY, columns)


def _occasions(cohort: Cohort) -> tuple[dict[str, int], str]:
    """A number for each run's session, and what the others are called; without sessions each run is its own."""
    sessions = sorted({run.entities.get("ses", "") for run in cohort.runs})
    if len(sessions) > 1:
        return {run.stem: sessions.index(run.entities.get("ses", "")) for run in cohort.runs}, "runs of other sessions"
    return {run.stem: i for i, run in enumerate(cohort.runs)}, "other runs"


def _rank1_table(kinds: Sequence[Kind], found: Sequence[ReIdentification], what: str) -> Table:
    rows = []
    for kind, re in zip(kinds, found, strict=True):
        rate = proportion(int(re.hits.sum()), int(re.tried.sum()))
        row = [Cell(kind.name), Cell(f"{rate.value:.3f}" if rate.n else "n/a")]
        row += [Cell(f"{rate.low:.3f} to {rate.high:.3f}" if rate.n else "n/a", value=rate.low if rate.n else None)]
        row += [Cell(str(rate.n)), Cell(f"{re.mean_same:z.3f}"), Cell(f"{re.mean_different:z.3f}")]
        rows.append(row)
    headings = (
        "Embeddings", "Rank-1", "95 % interval", "Runs", "Similarity, same participant", "Similarity, different ones",
    )  # fmt: skip
    return Table(f"Re-identification among {what}", headings, rows)


def _matrix(kinds: Sequence[Kind], out_dir: Path) -> Picture:
    matrices = {}
    for kind in kinds[:2]:
        shown = sample_for_matrix(kind.people, IN_MATRIX)
        matrices[kind.name] = (kind.units[shown] @ kind.units[shown].T, kind.people[shown])
    n_all = max(len(kind.runs) for kind in kinds[:2])
    n_shown = max(len(people) for _, people in matrices.values())
    drawn = f"{n_shown} runs" + (f", drawn from {n_all:,} by participant" if n_shown < n_all else "")
    description = f"Similarity of {drawn}; squares on the diagonal are participants."
    plot_identity(matrices, out_dir / FIGURES / "identity.svg", title="Identity", description=description)
    return Picture(f"{FIGURES}/identity.svg", "Identity matrix", description, description)


def _histograms(kinds: Sequence[Kind], found: Sequence[ReIdentification], out_dir: Path) -> Picture:
    counts = {kind.name: (re.same, re.different) for kind, re in zip(kinds, found, strict=True)}
    plot_similarities(counts, BINS, out_dir / FIGURES / "similarities.svg", title="Similarities over sessions")
    means = "; ".join(
        f"{kind.name}: {re.mean_same:z.2f} and {re.mean_different:z.2f}" for kind, re in zip(kinds, found, strict=True)
    )
    return Picture(
        f"{FIGURES}/similarities.svg",
        "Similarity of the same and of different participants",
        "The further the two lie apart, the better embeddings tell participants apart and stay the same over sessions.",
        f"Histograms of similarities; means of the same and of different participants are {means}.",
    )


def _drawn_map(clouds: Sequence[Cloud], name: str, kind: str, how: str, out_dir: Path) -> Picture:
    title = f"Runs by their embeddings ({kind}), {how}"
    plot_clouds(clouds, out_dir / FIGURES / f"{name}.svg", title=title, columns=3)
    shown = ", ".join(cloud.title.rpartition(": ")[2] for cloud in clouds)
    return Picture(f"{FIGURES}/{name}.svg", title, f"Coloured by {shown}.", f"{title}; coloured by {shown}.")


def _colourings(cohort: Cohort, runs: Sequence[RunRecord]):
    """What runs may be coloured by, where it differs between them; at least the verdict."""
    choices = {
        "site": cohort.site,
        "session": lambda run: run.entities.get("ses", ""),
        "task": lambda run: run.entities.get("task", ""),
        "verdict": lambda run: run.worst_verdict or "not judged",
    }
    telling = {name: colour for name, colour in choices.items() if len({colour(run) for run in runs}) > 1}
    return dict(list((telling or {"verdict": choices["verdict"]}).items())[:3])


def _umap():
    """The function that lays out points (N, 2), where umap-learn is installed; None where it is not."""
    try:
        from umap import UMAP
    except ImportError:
        return None

    def reduce(units: np.ndarray) -> np.ndarray:
        return np.asarray(UMAP(n_components=2, metric="cosine", random_state=0, n_jobs=1).fit_transform(units))

    return reduce
