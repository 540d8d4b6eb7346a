"""Group level: tables and an HTML report over all runs, from the participants' derivatives. No model is loaded.

`reading` and `cohort` read the derivatives, `tables` writes the tables, `statistics` and `identity` compute on arrays,
`page` puts the report together. The other modules are its sections, which `bids_app.reports.group` renders.
"""

from __future__ import annotations

import gc
import logging
from collections import Counter
from pathlib import Path

from bids_app.bids.entities import natural_key
from bids_app.errors import EXIT_OK, NoInputError, NoMatchError
from bids_app.group.cohort import Cohort, read_cohort
from bids_app.group.processes import second_process
from bids_app.group.publish import PAGE, staged
from bids_app.group.ratings import GroupRatings, read_group_ratings, without_failed, write_rating_tables
from bids_app.outputs.schema import OK
from bids_app.reports.index import METRICS, IndexRow, update_index
from bids_app.reports.pages import pages_without_outputs
from bids_app.settings import QuerySettings, Settings
from bids_app.terminal import count_of, first_of
from bids_app.workflow.preflight import check_output

LOGGER = logging.getLogger(__name__)


def run_group(settings: Settings) -> int:
    """Summarise the participants' derivatives in tables and ``group.html``, and update ``index.html``.

    Raises
    ------
    NoInputError
        The output folder has no participants.
    NoMatchError
        A selected participant has no outputs.
    BadDataError
        A table of ratings is damaged.
    """
    from bids_app.group.page import dataset_name, write_page
    from bids_app.group.similarity import collect_embeddings
    from bids_app.group.tables import write_tables

    out_dir, n_procs = settings.out_dir, settings.resources.n_procs
    folders = find_participant_folders(settings)
    if settings.check:
        print(f"{out_dir}: {len(folders)} participants; no files were written")
        return EXIT_OK
    check_output(settings)
    cohort = read_cohort(folders, settings.bids_dir, settings.query, n_procs)
    gc.freeze()  # looking for garbage among the records, again and again, would take a second for 10,000 runs
    for note in cohort.notes:
        LOGGER.warning("%s", note)
    if orphans := pages_without_outputs(out_dir):
        LOGGER.warning(
            "%s: reports of participants without outputs; delete them if they were withdrawn: %s",
            out_dir,
            first_of(orphans, 5),
        )
    ratings = read_group_ratings(out_dir, cohort, required=settings.exclude_failed)
    used = without_failed(cohort, ratings) if settings.exclude_failed else cohort
    selection = describe_selection(settings.query, len(cohort.participants), out_dir)
    if selection:
        LOGGER.warning("%s The files of the whole folder are replaced.", selection)
    with staged(out_dir) as folder, second_process(len(folders), n_procs) as executor:
        embeddings = collect_embeddings(used, executor)
        files = [*write_tables(folder, cohort, used), *write_rating_tables(folder, cohort, ratings)]
        names = [path.relative_to(folder).as_posix() for path in files]
        write_page(folder, out_dir, cohort, names, used, ratings, embeddings, executor, n_procs, selection)
    update_index(out_dir, index_rows(cohort, ratings), dataset_name(out_dir))
    LOGGER.info("Group report of %s: %s", describe_runs(cohort), out_dir / PAGE)
    return EXIT_OK


def describe_runs(cohort: Cohort) -> str:
    """Return the numbers of runs and participants, and of runs without results, as text."""
    total = f"{count_of(len(cohort.runs), 'run')} of {count_of(len(cohort.participants), 'participant')}"
    counts = Counter(run.status for run in cohort.runs if run.status != OK)
    return total + (f" ({', '.join(f'{n:,} {status}' for status, n in counts.items())})" if counts else "")


def find_participant_folders(settings: Settings) -> list[Path]:
    """Return the folders of the selected participants, in natural order."""
    out_dir, wanted = settings.out_dir, settings.query.participants
    found = sorted((p for p in out_dir.glob("sub-*") if p.is_dir()), key=lambda p: natural_key(p.name))
    if not found:
        raise NoInputError(f"{out_dir}: no participant outputs.", "Run the participant level first.")
    labels = [path.name.removeprefix("sub-") for path in found]
    missing = [label for label in wanted if label not in labels]
    if missing:
        raise NoMatchError(
            f"{out_dir}: no outputs of sub-{', sub-'.join(missing)}.",
            "Correct --participant-label or run the participant level for these participants first.",
        )
    return [path for path, label in zip(found, labels, strict=True) if not wanted or label in wanted]


def describe_selection(query: QuerySettings, n: int, out_dir: Path) -> str:
    """Return a sentence on the selected participants, sessions and tasks; empty if all are used."""
    options = {
        "--participant-label": query.participants, "--session-label": query.sessions, "--task-id": query.tasks,
    }  # fmt: skip
    given = [f"{name} {first_of(labels, 5, ' ')}" for name, labels in options.items() if labels]
    if not given:
        return ""
    total = max(n, sum(path.is_dir() for path in out_dir.glob("sub-*")))
    return f"Page and tables are of {n:,} of {total:,} participants ({', '.join(given)})."


def index_rows(cohort: Cohort, ratings: GroupRatings) -> list[IndexRow]:
    """Return the rows of all runs in ``index.html``."""
    return [
        IndexRow(
            run.stem,
            run.status,
            run.worst_verdict,
            ratings.consensus(run),
            {name: float(run.quality[name]) for name in METRICS if name in run.quality},
        )
        for run in cohort.runs
    ]
