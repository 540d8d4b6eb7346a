"""Dry run (``--check``): checks all requirements and prints the processing plan, without writing anything."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from bids_app.bids.layout import DATABASE_FILE
from bids_app.bids.query import BoldRun, find_runs
from bids_app.errors import EXIT_OK, NeurostormError
from bids_app.preprocess.io.headers import BoldHeader
from bids_app.settings import BRAINMARKS_PREFIX, QuerySettings, Settings
from bids_app.workflow.disk import check_disk
from bids_app.workflow.faults import faults_of_optional_images, inspect_run
from bids_app.workflow.preflight import Finding, check_finding, examine

MAX_NAMES = 12
"""Maximum number of runs named in a line about several runs; with ``-v`` all are named."""
DIFFERENCES = {r"\b(sub|ses|run)-[A-Za-z0-9]+": r"\1-*", r"\d[\d,]*(?= bytes)": "…"}
"""Labels and file sizes that differ between runs of which the same can be said, and what is printed instead."""


@dataclass(frozen=True)
class RunReport:
    """What is printed about a run: its processing, or its faults, each with its hint."""

    run: BoldRun
    lines: tuple[str, ...]
    faults: tuple[NeurostormError, ...] = ()

    @property
    def kind(self) -> tuple[str, ...]:
        """Its lines without `DIFFERENCES`: equal for runs that are printed together."""
        return (str(bool(self.faults)), *map(without_differences, self.lines))


def without_differences(line: str) -> str:
    """Replace labels and file sizes."""
    for pattern, replacement in DIFFERENCES.items():
        line = re.sub(pattern, replacement, line)
    return line


DIRECT_ROUTE = "no T1w image: BOLD to template directly"


def print_plan(settings: Settings) -> int:
    """Print the results of all checks, the runs and their steps.

    Returns
    -------
    int
        0 if everything passed, else the exit code of the first error.
    """
    errors: list[NeurostormError] = []
    for finding in examine(settings):
        print_finding(finding)
        errors += [finding.error] if finding.error else []
    try:
        runs = find_runs(settings.bids_dir, without_new_database(settings.query))
    except NeurostormError as error:
        print_finding(Finding("dataset", error.message, error))
        return (errors or [error])[0].exit_code
    known: dict[Path, tuple[NeurostormError, ...]] = {}
    reports = [report_on(run, settings, known) for run in runs]
    usable = [report.run for report in reports if not report.faults]
    disk = check_finding("disk", lambda: check_disk(usable, settings))
    print_finding(disk)
    errors += [disk.error] if disk.error else []
    errors += [fault for report in reports for fault in report.faults]
    print(f"\n{len(runs)} BOLD runs of {len({run.participant for run in runs})} participants:")
    print_reports(reports, all_names=settings.verbosity > 0)
    if not errors:
        print_steps(usable, settings)
    print("\nNothing was written.")
    return errors[0].exit_code if errors else EXIT_OK


def print_finding(finding: Finding) -> None:
    """Print the result of a check."""
    print(f"{'FAIL' if finding.error else 'ok':4}  {finding.name}: {finding.text}")
    if finding.error and finding.error.hint:
        print(f"      {finding.error.hint}")


def print_reports(reports: Sequence[RunReport], *, all_names: bool = False) -> None:
    """Print the reports on runs; runs with the same report are printed together."""
    alike: dict[tuple[str, ...], list[RunReport]] = {}
    for report in reports:
        alike.setdefault(report.kind, []).append(report)
    for (_, *kind), found in alike.items():
        names = [report.run.stem for report in found]
        lines = kind if len(found) > 1 else found[0].lines
        print(f"{'FAIL' if found[0].faults else 'ok':4}  {name_runs(names, all_names=all_names)}: {lines[0]}")
        for line in lines[1:]:
            print(f"      {line}")


def name_runs(names: Sequence[str], *, all_names: bool = False) -> str:
    """Name a run, or several: ``12 runs (sub-01_task-rest, ... and 2 more)``."""
    if len(names) == 1:
        return names[0]
    shown = names if all_names else names[:MAX_NAMES]
    more = f" and {len(names) - len(shown)} more; -v names all" if len(names) > len(shown) else ""
    return f"{len(names)} runs ({', '.join(shown)}{more})"


def report_on(run: BoldRun, settings: Settings, known: dict[Path, tuple[NeurostormError, ...]]) -> RunReport:
    """Describe the processing of a run, or all its faults; ``known`` has the faults of images seen before."""
    header, faults = inspect_run(run, settings, known)
    if header is None or faults:
        lines = (text for fault in faults for text in (fault.message, fault.hint) if text)
        return RunReport(run, tuple(lines), faults)
    return RunReport(run, tuple(describe(run, header, settings)))


def without_new_database(query: QuerySettings) -> QuerySettings:
    """Return the query without a PyBIDS database that does not exist yet, as PyBIDS would write it."""
    folder = query.database_dir
    if folder is not None and os.path.lexists(folder / DATABASE_FILE if folder.is_dir() else folder):
        return query
    return replace(query, database_dir=None)


def print_steps(runs: Sequence[BoldRun], settings: Settings) -> None:
    """Print the processing steps, once for all runs with the same steps."""
    from bids_app.workflow.context import read_context
    from bids_app.workflow.method import plan_of

    context = read_context(settings)
    plans: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        plans.setdefault(tuple(plan_of(run, context)), []).append(run.stem)
    for steps, stems in plans.items():
        others = f" and {len(stems) - 1} more" if len(stems) > 1 else ""
        print(f"\nSteps of {stems[0]}{others}:")
        for number, does in enumerate(steps, start=1):
            print(f"{number:4}. {does}")


@lru_cache(maxsize=8)
def clip_volumes(model: str) -> int:
    """Return the volumes of a clip of a model; of the published ones, if its weights are not on this machine."""
    from bids_app.catalog.models import find_model
    from bids_app.clips.cut import CLIP_VOLUMES
    from bids_app.model.checkpoint import read_checkpoint

    path = find_model(model).path
    return read_checkpoint(path).config.img_size[3] if path.is_file() else CLIP_VOLUMES


def describe(run: BoldRun, header: BoldHeader, settings: Settings) -> Iterator[str]:
    """Describe the processing of a run from its header and sidecar."""
    from bids_app.clips.cut import MODEL_TR
    from bids_app.preprocess.ingest.derivatives import describe_transform
    from bids_app.preprocess.io.headers import examine_anatomy
    from bids_app.preprocess.sdc.choice import correction_of

    left_out = faults_of_optional_images(run, settings)
    odd = [f"{fault.message} The image will not be used." for faults in left_out.values() for fault in faults]
    route = DIRECT_ROUTE
    if run.derived:
        route = f"from {run.derived.pipeline}"
    elif run.t1w and run.t1w not in left_out:
        odd += examine_anatomy(run.t1w)[1]
        route = f"T1w {run.t1w.name}"
    size = " x ".join(f"{s:g}" for s in header.shape[:3])
    voxels = " x ".join(f"{s:.3g}" for s in header.voxel_sizes_mm)
    seconds = (header.n_volumes - (settings.preprocess.dummy_scans or 0)) * header.tr
    clips = "one sample"
    if not settings.model.model.startswith(BRAINMARKS_PREFIX):
        clips = f"{round(seconds / MODEL_TR) // clip_volumes(settings.model.model)} clips"
    yield f"{header.n_volumes} volumes of {size} voxels ({voxels} mm), TR {header.tr:g} s; {clips}; {route}"
    if run.derived:
        yield f"ingested: {describe_transform(run.derived.space)}"
        mask, table = run.derived.mask, run.derived.confounds
        yield f"brain mask: {mask.name if mask else 'computed'}; confounds: {table.name if table else 'none'}"
    else:
        yield "slice timing: " + ("corrected" if header.slices else "not corrected")
        yield correction_of(run, settings.preprocess)[1]
    yield from (*run.notes, *odd, *header.warnings, *header.omitted)
