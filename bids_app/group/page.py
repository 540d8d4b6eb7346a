"""Page of the group level: its sections, figures and thumbnails."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

from bids_app.files import read_output
from bids_app.group.cohort import Cohort
from bids_app.group.overview import collect_counts, format_lead, predictions_section, runs_section
from bids_app.group.publish import PAGE
from bids_app.group.quality import motion_section, quality_section
from bids_app.group.ratings import GroupRatings, ratings_section
from bids_app.group.reliability import reliability_section
from bids_app.group.similarity import EmbeddingMap, EmbeddingSet, embedding_maps, identity_section, map_section
from bids_app.group.sites import sites_section
from bids_app.group.wall import run_table
from bids_app.reports.group import GroupPage, Section, write_group_page
from bids_app.reports.pages import find_pages


def write_page(
    folder: Path,
    out_dir: Path,
    cohort: Cohort,
    files: list[str],
    used: Cohort,
    ratings: GroupRatings,
    embeddings: Sequence[EmbeddingSet],
    executor: Executor,
    n_procs: int,
    selection: str = "",
) -> Path:
    """Write ``group.html`` with its figures and thumbnails.

    Parameters
    ----------
    folder, out_dir : pathlib.Path
        Folder of the page, and output folder with the reports and figures of the participants. The thumbnails are
        written to the latter.
    cohort, used : Cohort
        All runs, and those without the runs that ``--exclude-failed`` leaves out.
    files : list of str
        Tables, relative to the output folder.
    ratings : GroupRatings
    embeddings : sequence of EmbeddingSet
        Embeddings of ``used``.
    executor : concurrent.futures.Executor
        Draws the figures.
    n_procs : int
        Number of processes for the thumbnails.
    selection : str
        See `describe_selection`.
    """
    maps = embedding_maps(embeddings)
    indices = {run.stem: i for i, run in enumerate(cohort.runs)}
    sections, plots = [], []
    for section in make_sections(folder, cohort, used, ratings, embeddings, maps):
        sections.append(section)
        plots += [executor.submit(figure.plot, folder / figure.url) for figure in section.figures]
    cards = cohort.cards.values()
    page = GroupPage(
        name=dataset_name(out_dir),
        lead=format_lead(cohort),
        counts=collect_counts(cohort),
        sections=sections,
        table=run_table(cohort, ratings, [each.to_json(indices) for each in maps], out_dir, n_procs),
        demonstration=any(card.demonstration for card in cards),
        untrained=tuple(name for name, card in cohort.cards.items() if card.untrained),
        research_only=tuple(name for name, card in cohort.cards.items() if card.research_only),
        selection=selection,
        notes=cohort.notes,
        files=tuple(name for name in files if not name.endswith(".json")),
    )
    path = write_group_page(folder / PAGE, page, find_pages(out_dir))
    for plot in plots:
        plot.result()
    return path


def make_sections(
    folder: Path,
    cohort: Cohort,
    used: Cohort,
    ratings: GroupRatings,
    embeddings: Sequence[EmbeddingSet],
    maps: Sequence[EmbeddingMap],
) -> Iterator[Section]:
    """Yield the sections of the page, and write their tables; see `write_page`."""
    yield runs_section(cohort)
    yield ratings_section(cohort, ratings, excluded=used is not cohort)
    yield predictions_section(used)
    yield quality_section(used, folder)
    yield motion_section(used)
    yield sites_section(used)
    yield map_section(used, maps)
    yield identity_section(used, embeddings, folder)
    yield reliability_section(used)


def dataset_name(out_dir: Path) -> str:
    """Return the name of the output dataset, or that of its folder."""
    try:
        return str(json.loads(read_output(out_dir / "dataset_description.json"))["Name"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return out_dir.name
