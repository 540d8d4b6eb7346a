"""Run steps in the current process, without nipype and its cache: for tests, benchmarks and other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bids_app.bids.query import BoldRun
from bids_app.settings import PARTICIPANT, ModelSettings, PreprocessSettings, ResourceSettings, Settings
from bids_app.workflow.context import read_context
from bids_app.workflow.graph import Graph, Step
from bids_app.workflow.method import RunSteps, add_run

Call = Callable[[Step, Mapping[str, Any]], Any]
"""Function that calls a step with its arguments."""


def call_step(step: Step, arguments: Mapping[str, Any]) -> Any:
    """Call a step."""
    return step.function(**arguments)


def run_in_process(
    graph: Graph, folder: Path, last: Step, call: Call = call_step, results: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run a step and its ancestors in order; nothing is cached.

    Parameters
    ----------
    graph : Graph
    folder : pathlib.Path
        Parent of the folders of the steps.
    last : Step
    call : callable, optional
        Function that calls a step with its arguments.
    results : mapping, optional
        Known results by step name; these steps are not run.

    Returns
    -------
    dict
        Results by step name.

    Raises
    ------
    Exception
        Error of the first step that fails.
    """
    found = dict(results or {})
    for step in graph.ancestors(last):
        if step.name not in found:
            out_dir = folder / step.name
            out_dir.mkdir(parents=True, exist_ok=True)
            upstream = {key: found[parent.name] for key, parent in step.upstream.items()}
            found[step.name] = call(step, {**step.given, **upstream, "out_dir": out_dir})
    return found


def steps_of(
    run: BoldRun, folder: Path, preprocess: PreprocessSettings | None = None, threads: int = 1, model: str = "demo"
) -> tuple[Graph, RunSteps]:
    """Build the graph of one run as the app does.

    Parameters
    ----------
    run : BoldRun
    folder : pathlib.Path
        Output and scratch folder.
    preprocess : PreprocessSettings, optional
    threads : int
    model : str
    """
    settings = Settings(
        bids_dir=run.bold.parent,
        out_dir=folder / "out",
        level=PARTICIPANT,
        work_dir=folder,
        preprocess=preprocess or PreprocessSettings(),
        model=ModelSettings(model),
        resources=ResourceSettings(n_procs=threads, omp_threads=threads),
    )
    graph = Graph()
    return graph, add_run(graph, run, read_context(settings))


def preprocess_in_process(
    run: BoldRun, folder: Path, preprocess: PreprocessSettings | None = None, threads: int = 1
) -> Any:
    """Preprocess one run with the steps of the app; see `steps_of`.

    Returns
    -------
    PreprocessedRun
    """
    graph, steps = steps_of(run, folder, preprocess, threads)
    return run_in_process(graph, folder, steps.preprocessed)[steps.preprocessed.name]
