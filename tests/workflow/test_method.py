"""The order of steps is defined once, for the graph, the plan of --check and the methods text."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.bids.query import BoldRun
from bids_app.errors import BadDataError
from bids_app.outputs.boilerplate import compose
from bids_app.settings import PARTICIPANT, ModelSettings, PreprocessSettings, Settings
from bids_app.workflow.context import RunContext, read_context
from bids_app.workflow.graph import Graph
from bids_app.workflow.method import add_run, methods_sentences, plan_of


@pytest.fixture
def run(tmp_path: Path) -> BoldRun:
    """Run with empty files: only their names, sizes and times are used."""
    bold, t1w = tmp_path / "sub-01_task-rest_bold.nii.gz", tmp_path / "sub-01_T1w.nii.gz"
    bold.touch()
    t1w.touch()
    return BoldRun(bold, {"sub": "01", "task": "rest"}, {"RepetitionTime": 2.0}, t1w)


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return read_context(
        Settings(tmp_path, tmp_path / "out", PARTICIPANT, tmp_path / "work", model=ModelSettings("demo"))
    )


def names_of(run: BoldRun, context: RunContext) -> list[str]:
    graph = Graph()
    add_run(graph, run, context)
    return [name.rpartition("_")[2] for name in graph.steps]


def test_anatomy_comes_first_then_the_run_then_the_model_then_outputs(run: BoldRun, context: RunContext) -> None:
    assert names_of(run, context) == [
        *("prepare", "normalise", "outputs"),
        *("examine", "hmc", "mask", "align", "confounds", "collect", "grid"),
        *("encode", "judge"),
        *("outputs", "tables", "figures", "publish", "model", "hashes"),
    ]


def test_the_sbref_replaces_the_reference_before_distortion_is_corrected(run: BoldRun, context: RunContext) -> None:
    graph = Graph()
    add_run(graph, replace(run, sbref=run.bold), context)
    (mask,) = (step for step in graph.steps.values() if step.name.endswith("_mask"))
    assert mask.upstream["motion"].name.endswith("_sbref")


def test_echoes_are_combined_after_head_motion(run: BoldRun, context: RunContext) -> None:
    multi_echo = replace(run, echoes=(run.bold,) * 3, echo_times=(0.012, 0.028, 0.044))
    graph = Graph()
    add_run(graph, multi_echo, context)
    kinds = [name.rpartition("_")[2] for name in graph.steps]
    assert kinds[3:9] == ["examine", "hmc", "combine", "series", "motion", "mask"]
    (confounds,) = (step for step in graph.steps.values() if step.name.endswith("_confounds"))
    assert {key: step.name.rpartition("_")[2] for key, step in confounds.upstream.items()} == {
        "series": "series",
        "motion": "motion",
        "alignment": "align",
    }


RESULT_OF = {
    "anatomy": ("normalise", "outputs"),
    "prepared": ("prepare",),
    "series": ("examine", "series"),
    "motion": ("hmc", "sbref", "sdc", "motion"),
    "reference": ("mask",),
    "alignment": ("align",),
    "confounds": ("confounds",),
    "preprocessed": ("collect", "ingest"),
    "grid": ("grid",),
    "encoded": ("encode", "judge"),
    "attributed": ("attribute",),
    "preprocessing": ("outputs",),
    "model": ("tables",),
    "attribution": ("attribution",),
    "figures": ("figures",),
}
"""Which steps may give an argument of a later step."""


def test_each_step_gets_the_result_that_its_argument_is_named_after(run: BoldRun, context: RunContext) -> None:
    attributing = replace(context.settings, model=ModelSettings("demo", attribution="occlusion"))
    graph = Graph()
    add_run(graph, run, replace(context, settings=attributing))
    edges = [(key, parent.name) for step in graph.steps.values() for key, parent in step.upstream.items()]
    assert {key for key, _ in edges} == RESULT_OF.keys()
    assert [edge for edge in edges if edge[1].rpartition("_")[2] not in RESULT_OF[edge[0]]] == []


def test_runs_with_the_same_t1w_share_its_steps(run: BoldRun, context: RunContext) -> None:
    graph = Graph()
    add_run(graph, run, context)
    n_first = len(graph.steps)
    other = replace(run, entities={"sub": "01", "task": "motor"})
    assert "publish" in add_run(graph, other, context).published[0].name
    assert len(graph.steps) == 2 * n_first - 3


def test_the_plan_has_a_line_for_each_step(run: BoldRun, context: RunContext) -> None:
    lines = plan_of(run, context)
    assert lines[0].startswith("T1w")
    assert lines[-1].startswith("Outputs")
    without = plan_of(replace(run, t1w=None), context)
    assert not [line for line in without if line.startswith("T1w")]
    assert [line for line in without if "no T1w" in line]


def test_the_methods_text_describes_the_steps_of_the_graph_only(run: BoldRun, context: RunContext) -> None:
    with_t1w = {sentence.name for sentence in methods_sentences([run], context)}
    without = {sentence.name for sentence in methods_sentences([replace(run, t1w=None)], context)}
    assert with_t1w - without == {"t1w_prepare", "t1w_template", "bold_t1w"}
    assert without - with_t1w == {"bold_template"}
    timed = replace(run, metadata=run.metadata | {"SliceTiming": [0.0, 1.0]})
    assert {s.name for s in methods_sentences([timed], context)} - with_t1w == {"slice_timing"}


def test_each_sentence_appears_once_for_several_runs(run: BoldRun, context: RunContext) -> None:
    runs = [replace(run, entities={"sub": "01", "task": task}) for task in ("rest", "motor", "language")]
    assert methods_sentences(runs, context) == methods_sentences(runs[:1], context)
    assert compose(methods_sentences(runs, context))


def test_an_unusable_run_adds_no_sentence(run: BoldRun, context: RunContext) -> None:
    broken = replace(run, problem=BadDataError("no header"))
    assert {s.name for s in methods_sentences([broken], context)} == {"query", "seed"}


def test_options_change_only_the_stamps_of_their_steps(run: BoldRun, context: RunContext) -> None:
    def stamps(run: BoldRun, **changes) -> dict[str, str]:
        graph = Graph()
        settings = replace(context.settings, preprocess=PreprocessSettings(**changes))
        add_run(graph, run, replace(context, settings=settings))
        return {name: step.stamp for name, step in graph.steps.items()}

    before, after = stamps(run), stamps(run, fd_spike_threshold=0.9)
    same = {name.rpartition("_")[2] for name in before if before[name] == after[name]}
    assert {"normalise", "hmc", "align"} <= same
    assert not {"confounds", "collect", "publish"} & same
    os.utime(run.t1w, (1, 1))
    moved = stamps(run)
    assert moved["sub_01_task_rest_hmc"] == before["sub_01_task_rest_hmc"]
    assert moved["sub_01_task_rest_align"] != before["sub_01_task_rest_align"]
