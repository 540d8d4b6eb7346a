"""Each run is published, logged and reported when it ends, whatever becomes of the runs after it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from bids_app.bids.query import BoldRun
from bids_app.cli.outcome import raise_when_terminated
from bids_app.errors import BadDataError, InputOutputError, Terminated
from bids_app.outputs.publish import Publication, publish
from bids_app.outputs.schema import (
    MODEL,
    PREPROCESSING,
    REFUSE,
    WARN,
    AdapterFacts,
    AttributionSidecar,
    CheckRecord,
    CoverageSidecar,
    EmbeddingsSidecar,
    PredictionSidecar,
    QualitySidecar,
    RunOutcome,
    Summary,
    VerdictRecord,
)
from bids_app.settings import PARTICIPANT, ResourceSettings, Settings
from bids_app.workflow import ends, participant
from bids_app.workflow.context import ChosenModel, RunContext
from bids_app.workflow.graph import Graph
from bids_app.workflow.method import RunSteps
from bids_app.workflow.participant import process_runs

WARNINGS = ["bold: no slice times.", "bold: not denoised."]


def make_anatomy(participant: str, out_dir: Path) -> Path:
    return write_file(out_dir, f"sub-{participant}/anat/sub-{participant}_desc-preproc_T1w.json")


def make_table(stem: str, name: str, event: str, anatomy: Path, out_dir: Path) -> Path:
    """Write an output; ``event`` is what happens at this step."""
    (out_dir.parents[1] / "scratch.txt").open("a").write(
        f"{stem}: {sorted(p.name for p in out_dir.parent.iterdir())}\n"
    )
    if event == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    if event == "fail":
        raise BadDataError(f"{stem}: truncated.", "Copy it again.")
    return write_file(out_dir, f"{stem.partition('_')[0]}/func/{stem}_{name}")


def hash_nothing(out_dir: Path) -> dict[str, str]:
    return {}


def write_file(out_dir: Path, name: str) -> Path:
    path = out_dir / "tree" / name
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"quality": {}, "warnings": WARNINGS}))
    return out_dir / "tree"


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """Return a function that processes runs of trivial steps; the arguments are what happens to their models."""
    settings = Settings(
        tmp_path, tmp_path / "out", PARTICIPANT, tmp_path / "work", resources=ResourceSettings(), clean_workdir=True
    )
    for folder in (settings.out_dir, settings.work_dir):
        folder.mkdir()
    model = ChosenModel("demo", (), "", {}, (), False)
    context = RunContext(settings, model, "MNI152NLin2009aSym", {}, {}, None, False, False, {})

    def process(**models: str) -> int:
        def add_run(graph: Graph, run: BoldRun, context: RunContext) -> RunSteps:
            name, label = run.stem.replace("-", "_"), run.participant
            anatomy = graph.steps.get(f"{label}_anatomy") or graph.step(
                f"{label}_anatomy", make_anatomy, participant=label
            )
            quality, table = "desc-quality_metrics.json", "desc-demo_predictions.json"
            first = graph.step(f"{name}_outputs", make_table, stem=run.stem, name=quality, event="", anatomy=anatomy)
            second = graph.step(
                f"{name}_tables", make_table, stem=run.stem, name=table, event=models[run.stem], anatomy=anatomy
            )
            what = Publication(run.stem, graph.invocation, "c", {}, first.stamp)
            common = {"target": context.settings.out_dir, "publication": what, "always": True}
            published = (
                graph.step(f"{name}_publish", publish, part=PREPROCESSING, a=anatomy, b=first, **common),
                graph.step(f"{name}_publish_model", publish, part=MODEL, a=second, **common),
            )
            return RunSteps(first, first, published, graph.step(f"{name}_hashes", hash_nothing))

        monkeypatch.setattr(participant, "add_run", add_run)
        entities = [dict(part.split("-") for part in stem.split("_")) for stem in models]
        runs = [BoldRun(tmp_path / f"{stem}_bold.nii.gz", own, {}) for stem, own in zip(models, entities, strict=True)]
        return process_runs(runs, context)

    process.out, process.work = settings.out_dir, settings.work_dir
    return process


def summaries(out: Path) -> dict[str, Summary]:
    """Return the last summary of each participant."""
    return {path.parts[-4]: Summary.read(path) for path in sorted(out.glob("sub-*/log/*/summary.json"))}


def test_a_time_limit_leaves_complete_outputs_logs_and_reports_of_what_was_done(study) -> None:
    before = signal.getsignal(signal.SIGTERM)
    raise_when_terminated()
    try:
        with pytest.raises(Terminated):
            study(**{"sub-1_task-a": "", "sub-2_task-a": "", "sub-2_task-b": "terminate", "sub-3_task-a": ""})
    finally:
        signal.signal(signal.SIGTERM, before)
    found = summaries(study.out)
    assert {label: summary.status for label, summary in found.items()} == {"sub-1": "ok", "sub-2": "running"}
    assert [run.stem for run in found["sub-2"].runs] == ["sub-2_task-a"]
    assert found["sub-2"].unfinished == ("sub-2_task-b",)
    for label in ("sub-1", "sub-2"):
        assert f"{label}_task-a_desc-quality_metrics.json" in {path.name for path in study.out.rglob("*")}
        assert (study.out / f"{label}.html").read_text().rstrip().endswith("</html>")
    assert not (study.out / "sub-3.html").exists()


class InterruptedWhenFreed:
    """An object that receives a signal while it is freed: Python drops the exception."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_that_python_drops_while_it_frees_an_object_is_sent_again(
    monkeypatch, capsys, number: int, error: type[BaseException]
) -> None:
    monkeypatch.setattr("sys.unraisablehook", sys.__unraisablehook__)
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    raise_when_terminated()
    try:
        with pytest.raises(error):
            wait_for_signal(number)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert "Traceback" not in capsys.readouterr().err


def wait_for_signal(number: int) -> None:
    InterruptedWhenFreed(number)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        time.sleep(0.01)


def test_a_failed_model_does_not_keep_its_preprocessing_from_being_published(study) -> None:
    assert study(**{"sub-1_task-a": "fail", "sub-1_task-b": ""}) == 65
    names = {path.name for path in study.out.glob("sub-1/func/*.json")}
    assert names == {
        "sub-1_task-a_desc-quality_metrics.json",
        "sub-1_task-b_desc-quality_metrics.json",
        "sub-1_task-b_desc-demo_predictions.json",
    }


def test_warnings_of_a_run_are_in_its_summary_and_on_the_terminal(study, capsys) -> None:
    assert study(**{"sub-1_task-a": "", "sub-2_task-a": "fail"}) == 65
    for summary in summaries(study.out).values():
        assert [run.warnings for run in summary.runs] == [tuple(WARNINGS)]
    said = capsys.readouterr().err
    for warning in WARNINGS:
        assert f"neurostorm: 2 runs, such as sub-1_task-a: {warning}" in said
    assert said.index("sub-2_task-a failed") < said.index("sub-1_task-a: bold")


def test_reasons_for_the_verdict_on_the_scan_are_warnings_of_the_run(tmp_path: Path) -> None:
    """A reason may consist of several warnings of preprocessing, which are not repeated."""
    verdict = VerdictRecord(
        level=WARN,
        checks=(
            CheckRecord(name="motion", level=WARN, message="The mean FD is 1.2 mm."),
            CheckRecord(name="preprocessing", level=WARN, message="No field map. Not denoised."),
        ),
    )
    files = {
        "a_desc-quality_metrics.json": QualitySidecar(quality={}, warnings=("No field map.", "Not denoised.", "Odd.")),
        "a_desc-x_embeddings.json": EmbeddingsSidecar(verdict=verdict),
    }
    for name, sidecar in files.items():
        (tmp_path / name).write_text(json.dumps(sidecar.to_json()))
    found = ends.read_notices(RunOutcome(stem="a", outputs=(*files, "a_bold.svg")), tmp_path).warnings
    assert found == ("The mean FD is 1.2 mm.", "No field map. Not denoised.", "Odd.")
    own = VerdictRecord(
        level=REFUSE,
        checks=(
            CheckRecord(name="origin", level=REFUSE, message="The scan is real."),
            CheckRecord(name="motion", level=WARN, message="The mean FD is 1.2 mm."),
        ),
    )
    sidecar = PredictionSidecar(adapter=AdapterFacts(name="state"), verdict=own)
    (tmp_path / "a_desc-state_predictions.json").write_text(json.dumps(sidecar.to_json()))
    outcome = RunOutcome(stem="a", outputs=(*files, "a_desc-state_predictions.json"))
    notices = ends.read_notices(outcome, tmp_path)
    assert notices.warnings == (found[0], found[1], "prediction of state: The scan is real.", "Odd.")
    assert (notices.other, notices.withheld) == (found, (("state", "The scan is real."),))


def test_fewer_attributed_clips_than_wanted_are_a_warning(tmp_path: Path) -> None:
    names = [f"a_seg-x_desc-{adapter}_attribution.json" for adapter in ("age", "sex")]
    for name in names:
        (tmp_path / name).write_text(json.dumps(AttributionSidecar(clips=(0, 3)).to_json()))
    outcome = RunOutcome(stem="a", outputs=tuple(names))
    (warning,) = ends.read_notices(outcome, tmp_path, attribution_clips=5).warnings
    assert warning.startswith("--attribution-clips 5: the run has only 2")
    assert ends.read_notices(outcome, tmp_path, attribution_clips=2).warnings == ()


def test_why_regions_have_no_series_is_a_warning_once(tmp_path: Path) -> None:
    names = [f"a_seg-{atlas}_stat-coverage_bold.json" for atlas in ("x", "y")]
    for name in names:
        (tmp_path / name).write_text(json.dumps(CoverageSidecar(warnings=("Too few volumes.",)).to_json()))
    assert ends.read_notices(RunOutcome(stem="a", outputs=tuple(names)), tmp_path).warnings == ("Too few volumes.",)


def test_scratch_of_a_published_run_is_deleted_and_the_anatomy_stays_until_the_last_run(study) -> None:
    assert study(**{"sub-1_task-a": "", "sub-1_task-b": "", "sub-2_task-a": ""}) == 0
    lines = (study.work / "scratch.txt").read_text().splitlines()
    of_second, of_third = (next(line for line in lines if line.startswith(stem)) for stem in ("sub-1_task-b", "sub-2"))
    assert "sub_1_task_a" not in of_second
    assert "1_anatomy" in of_second
    assert "1_anatomy" not in of_third
    assert not (study.work / "neurostorm").exists()


def test_scratch_of_a_failed_run_stays(study) -> None:
    assert study(**{"sub-1_task-a": "fail", "sub-1_task-b": ""}) == 65
    left = {path.name for path in (study.work / "neurostorm").iterdir()}
    assert {"1_anatomy", "sub_1_task_a_outputs"} <= left
    assert not [name for name in left if "task_b" in name]


def test_participants_are_processed_in_batches(study, monkeypatch) -> None:
    monkeypatch.setattr(participant, "BATCH_RUNS", 2)
    n_steps = []
    real = participant.Engine
    monkeypatch.setattr(
        participant, "Engine", lambda graph, *rest: n_steps.append(len(graph.steps)) or real(graph, *rest)
    )
    models = {f"sub-{n}_task-{task}": "fail" if n == 1 else "" for n in range(5) for task in "ab"}
    assert study(**models) == 65
    assert n_steps == [11] * 5
    assert {label: summary.status for label, summary in summaries(study.out).items()} == {
        f"sub-{n}": "failed" if n == 1 else "ok" for n in range(5)
    }


def test_an_error_of_writing_a_report_does_not_stop_the_other_runs(study, monkeypatch, capsys) -> None:
    real = ends.build_participant_report

    def full(out_dir: Path, label: str, *options: int) -> Path:
        if label == "1":
            raise OSError(28, "No space left on device", str(out_dir))
        return real(out_dir, label, *options)

    monkeypatch.setattr(ends, "build_participant_report", full)
    with pytest.raises(InputOutputError, match="no space left") as caught:
        study(**{"sub-1_task-a": "", "sub-2_task-a": ""})
    assert caught.value.exit_code == 74
    assert (study.out / "sub-2.html").exists()
    assert summaries(study.out)["sub-2"].status == "ok"


def test_a_report_that_could_not_be_written_is_written_at_the_end(study, monkeypatch) -> None:
    real, failures = ends.build_participant_report, iter([1])

    def full_once(out_dir: Path, label: str, *options: int) -> Path:
        if next(failures, None):
            raise OSError(28, "No space left on device", str(out_dir))
        return real(out_dir, label, *options)

    monkeypatch.setattr(ends, "build_participant_report", full_once)
    assert study(**{"sub-1_task-a": "", "sub-2_task-a": ""}) == 0
    assert (study.out / "sub-1.html").exists()
