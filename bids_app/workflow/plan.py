"""Dry run (``--check``): checks all requirements and prints the processing plan, without writing anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bids_app.bids.query import BoldRun, find_runs
from bids_app.errors import EXIT_OK, BadDataError, NeurostormError
from bids_app.settings import Settings
from bids_app.workflow.preflight import examine

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
        print(f"{'FAIL' if finding.error else 'ok':4}  {finding.name}: {finding.text}")
        if finding.error:
            errors.append(finding.error)
            print(f"      {finding.error.hint}")
    try:
        runs = find_runs(settings.bids_dir, settings.query)
    except NeurostormError as error:
        print(f"FAIL  dataset: {error.message}\n      {error.hint}")
        return (errors or [error])[0].exit_code
    usable: list[BoldRun] = []
    print(f"\n{len(runs)} BOLD runs of {len({run.participant for run in runs})} participants:")
    for run in runs:
        try:
            if run.problem:
                raise run.problem
            lines = list(describe(run, settings))
            usable.append(run)
            print(f"ok    {run.stem}: {lines[0]}")
            for line in lines[1:]:
                print(f"      {line}")
        except NeurostormError as error:
            errors.append(error)
            print(f"FAIL  {run.stem}: {error.message}\n      {error.hint}")
    if not errors:
        print_steps(usable, settings)
    print("\nNothing was written.")
    return errors[0].exit_code if errors else EXIT_OK


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


def describe(run: BoldRun, settings: Settings) -> Iterator[str]:
    """Describe the processing of a run from its header and sidecar.

    Raises
    ------
    BadDataError
        The run is unusable.
    """
    from bids_app.clips.cut import CLIP_VOLUMES, MODEL_TR
    from bids_app.preprocess.ingest.derivatives import check_forms, describe_transform
    from bids_app.preprocess.io.headers import SLICE_TIMING, examine_anatomy, examine_header
    from bids_app.preprocess.sdc.choice import correction_of
    from bids_app.workflow.memory import check_run_memory

    odd: tuple[str, ...] = ()
    route = DIRECT_ROUTE
    if run.derived:
        route = f"from {run.derived.pipeline}"
        check_forms(run.bold)
    elif run.t1w:
        route = f"T1w {run.t1w.name}"
        try:
            _, odd = examine_anatomy(run.t1w)
        except BadDataError as error:
            if settings.preprocess.fail_without_t1w:
                raise
            odd = (f"{error.message} The T1w image will not be used.",)
            route = DIRECT_ROUTE
    header = examine_header(run.bold, run.metadata, (SLICE_TIMING,) if run.derived else settings.preprocess.ignore)
    check_run_memory(run, settings)
    size = " x ".join(f"{s:g}" for s in header.shape[:3])
    voxels = " x ".join(f"{s:.3g}" for s in header.voxel_sizes_mm)
    seconds = (header.n_volumes - (settings.preprocess.dummy_scans or 0)) * header.tr
    n_clips = round(seconds / MODEL_TR) // CLIP_VOLUMES
    yield f"{header.n_volumes} volumes of {size} voxels ({voxels} mm), TR {header.tr:g} s; {n_clips} clips; {route}"
    if run.derived:
        yield f"ingested: {describe_transform(run.derived.space)}"
        mask, table = run.derived.mask, run.derived.confounds
        yield f"brain mask: {mask.name if mask else 'computed'}; confounds: {table.name if table else 'none'}"
    else:
        yield "slice timing: " + ("corrected" if header.slices else "not corrected")
        yield correction_of(run, settings.preprocess)[1]
    yield from (*run.notes, *odd, *header.warnings)
