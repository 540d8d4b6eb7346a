"""The order of steps is defined once, for the graph, the plan of --check and the methods text."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bids_app.bids.query import BoldRun
from bids_app.catalog.atlases import Atlas
from bids_app.errors import BadDataError
from bids_app.outputs.boilerplate import compose
from bids_app.settings import PARTICIPANT, ModelSettings, PreprocessSettings, ResourceSettings, Settings
from bids_app.workflow.context import RunContext, choose_model, read_context
from bids_app.workflow.graph import Graph, Step
from bids_app.workflow.method import add_run, methods_sentences, plan_of
from tests.helpers.models import SMALL, save_random_encoder


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
        *("examine", "hmc", "mask", "search", "align", "confounds", "collect", "grid"),
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
    "start": ("search",),
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
    "regions": ("regions",),
}
"""Which steps may give an argument of a later step."""


def test_each_step_gets_the_result_that_its_argument_is_named_after(run: BoldRun, context: RunContext) -> None:
    wanted = PreprocessSettings(timeseries=("mine",))
    attributing = replace(context.settings, model=ModelSettings("demo", attribution="occlusion"), preprocess=wanted)
    graph = Graph()
    add_run(graph, run, replace(context, settings=attributing))
    edges = [(key, parent.name) for step in graph.steps.values() for key, parent in step.upstream.items()]
    assert {key for key, _ in edges} == RESULT_OF.keys()
    assert [edge for edge in edges if edge[1].rpartition("_")[2] not in RESULT_OF[edge[0]]] == []


def with_atlas(context: RunContext, folder: Path, content: str = "", **preprocess: object) -> RunContext:
    """Ask for the series of an atlas; only size and time of its file are used."""
    atlas = Atlas("mine", folder / "mine.nii.gz", {1: "a"})
    atlas.path.write_text(content)
    settings = replace(context.settings, preprocess=PreprocessSettings(timeseries=("mine",), **preprocess))
    return replace(context, settings=settings, region_atlases=(atlas,))


def regions_step(run: BoldRun, context: RunContext) -> tuple[Graph, Step]:
    graph = Graph()
    add_run(graph, run, context)
    (step,) = (step for step in graph.steps.values() if step.name.endswith("_regions"))
    return graph, step


def test_tables_by_region_are_published_with_the_preprocessing_and_need_no_model(
    run: BoldRun, context: RunContext, tmp_path: Path
) -> None:
    graph, step = regions_step(run, with_atlas(context, tmp_path))
    (publish,) = (step for step in graph.steps.values() if step.name.endswith("_publish"))
    assert publish.upstream["regions"] is step
    needed = {ancestor.name.rpartition("_")[2] for ancestor in graph.ancestors(publish)}
    assert "regions" in needed
    assert not needed & {"encode", "judge", "tables", "model"}


def test_tables_by_region_are_written_again_for_another_atlas_or_strategy(
    run: BoldRun, context: RunContext, tmp_path: Path
) -> None:
    first = with_atlas(context, tmp_path)
    renamed = replace(first, region_atlases=(replace(first.region_atlases[0], names={1: "b"}),))
    stamps = [regions_step(run, one)[1].stamp for one in (first, renamed)]
    stamps.append(regions_step(run, with_atlas(context, tmp_path, denoise="simple"))[1].stamp)
    stamps.append(regions_step(run, with_atlas(context, tmp_path, "changed"))[1].stamp)
    assert len(set(stamps)) == 4


def test_activities_are_recorded_on_request_only(run: BoldRun, context: RunContext, tmp_path: Path) -> None:
    plain = with_atlas(context, tmp_path)
    recorded = replace(plain, settings=replace(plain.settings, provenance=True))
    for asked, names in ((plain, set()), (recorded, {"anatomy", "preprocessing", "regions", "model"})):
        graph, _ = regions_step(run, asked)
        publications = [step.given["publication"] for step in graph.steps.values() if "publication" in step.given]
        assert len(publications) == 2
        assert {name for one in publications for name in one.activities} == names


def test_plan_and_methods_text_name_the_atlas(run: BoldRun, context: RunContext, tmp_path: Path) -> None:
    asked = with_atlas(context, tmp_path, denoise="compcor")
    assert "Outputs: mean series and correlations of the regions of mine" in plan_of(run, asked)
    text = " ".join(dict(compose(methods_sentences([run], asked)))["Functional data"].split())
    assert "Mean series of the regions of mine" in text
    assert "less than 50 % of their voxels" in text
    assert "strategy: compcor" in text
    plain = methods_sentences([run], with_atlas(context, tmp_path))
    assert "These series were not denoised." in " ".join(dict(compose(plain))["Functional data"].split())


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
    assert {"normalise", "hmc", "align", "grid", "encode"} <= same  # resampling needs no confounds
    assert not {"confounds", "collect", "judge", "publish"} & same
    os.utime(run.t1w, (1, 1))
    moved = stamps(run)
    assert moved["sub_01_task_rest_hmc"] == before["sub_01_task_rest_hmc"]
    assert moved["sub_01_task_rest_align"] != before["sub_01_task_rest_align"]


def stamps_with(run: BoldRun, context: RunContext, **resources) -> dict[str, str]:
    device = resources.pop("device", "cpu")
    settings = replace(
        context.settings,
        resources=ResourceSettings(**resources),
        model=replace(context.settings.model, device=device, attribution="occlusion"),
    )
    graph = Graph()
    add_run(graph, run, replace(context, settings=settings))
    return {name: step.stamp for name, step in graph.steps.items()}


@pytest.mark.parametrize(
    "other",
    [
        {"n_procs": 1, "omp_threads": 1},
        {"n_procs": 16, "omp_threads": 8},
        {"memory_gb": 64.0},
        {"low_mem": True},
        {"device": "auto"},
    ],
    ids=str,
)
def test_other_resources_repeat_no_step(run: BoldRun, context: RunContext, monkeypatch, other: dict) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert stamps_with(run, context, **other) == stamps_with(run, context, n_procs=2, omp_threads=1, memory_gb=8.0)


def test_another_device_repeats_the_steps_that_use_it_and_what_follows(run: BoldRun, context: RunContext) -> None:
    before, after = stamps_with(run, context, device="cpu"), stamps_with(run, context, device="cuda")
    same = {name.rpartition("_")[2] for name in before if before[name] == after[name]}
    assert same == {"prepare", "examine", "hashes"}


def test_steps_that_can_use_the_gpu_run_one_at_a_time(run: BoldRun, context: RunContext) -> None:
    graph = Graph(stamped=False)
    add_run(graph, run, replace(context, on_gpu=True))
    found = {name.rpartition("_")[2] for name, step in graph.steps.items() if step.gpu}
    assert found == {"normalise", "hmc", "grid", "encode"}


def test_weights_with_other_bytes_repeat_the_steps_of_the_model_whatever_their_times(
    run: BoldRun, context: RunContext, tmp_path: Path
) -> None:
    path = save_random_encoder(tmp_path / "own.safetensors", SMALL)
    settings = replace(context.settings, model=ModelSettings(str(path)))
    before = choose_model(settings)
    path.touch()
    assert choose_model(settings).stamp == before.stamp
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert choose_model(settings).stamp != before.stamp
    assert choose_model(settings).hashes != before.hashes


@pytest.mark.parametrize(("n_runs", "threads"), [(1, 6), (2, 3), (40, 2)])
def test_runs_that_are_encoded_at_the_same_time_share_the_processors(context, n_runs, threads) -> None:
    resources = replace(context.settings.resources, n_procs=6, omp_threads=2)
    shared = replace(context, n_runs=n_runs, settings=replace(context.settings, resources=resources))
    assert (shared.computing["threads"], shared.computing["n_procs"]) == (threads, threads)
    assert replace(shared, on_gpu=True).computing["n_procs"] == 1
