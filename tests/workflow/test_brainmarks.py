"""Encoders of Brainmarks at the participant level: checks before the start, the step, verdict, outputs and texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from bids_app.adapters.predict import Encoded
from bids_app.bids.orientation import Orientation
from bids_app.bids.query import BoldRun
from bids_app.cli.neurostorm import parse_settings
from bids_app.cli.phantom import main as phantom
from bids_app.clips.series import GridSeriesWriter
from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.group.reading import read_participant
from bids_app.model.brainmarks import build, describe_wrapper
from bids_app.outputs.boilerplate import as_markdown, compose
from bids_app.outputs.predictions import model_outputs
from bids_app.outputs.schema import EmbeddingsSidecar
from bids_app.preprocess.brainmarks_samples import columns_on_grid
from bids_app.preprocess.preprocessed import OnGrid
from bids_app.settings import PARTICIPANT, ModelSettings, Settings
from bids_app.workflow import preflight
from bids_app.workflow.adapters import chosen_adapters
from bids_app.workflow.brainmarks import check_wrapper, encode_with_brainmarks, find_wrapper
from bids_app.workflow.context import choose_model, read_context
from bids_app.workflow.graph import Graph
from bids_app.workflow.method import add_run, plan_of
from bids_app.workflow.nodes import judge
from tests.helpers.brainmarks import MODELS, stand_in
from tests.helpers.installed import INSTALLED, needs
from tests.helpers.paths import ROOT

__all__ = ["stand_in"]
N_VOLS, TR = 12, 2.5
TRANSFORMER = ModelSettings("brainmarks:transformer", allow_untrained=True)


@pytest.fixture
def grid(tmp_path: Path) -> OnGrid:
    brain = columns_on_grid("mni") > 0
    values = np.random.default_rng(5).normal(1000, 30, (N_VOLS, int(brain.sum()))).astype(np.float32)
    with GridSeriesWriter(tmp_path / "grid", brain, TR, N_VOLS, start=5.0) as writer:
        writer.append(values)
    return OnGrid(tmp_path / "grid", 1.0)


@pytest.fixture
def preprocessed(tmp_path: Path) -> SimpleNamespace:
    return SimpleNamespace(
        source=tmp_path / "raw/sub-01/func/sub-01_task-rest_bold.nii.gz",
        template="MNI152NLin6Asym",
        slices=None,
        start_time=None,
        tr=TR,
        n_volumes=N_VOLS,
        n_dummy=0,
        offset=0.0,
        quality={"tsnr": 50.0},
        orientation=Orientation(),
        omitted=(),
        doubts=(),
    )


@pytest.fixture
def saved(stand_in: Path, tmp_path: Path) -> Path:
    """Weights of the transformer."""
    path = tmp_path / "tiny.pt"
    torch.save(build("transformer", (), seed=3).wrapper.state_dict(), path)
    return path


def encode(wanted: ModelSettings, grid: OnGrid, preprocessed: SimpleNamespace, tmp_path: Path) -> Encoded:
    wrapper = find_wrapper(wanted)
    return encode_with_brainmarks(grid, preprocessed, wrapper, "cpu", 1, "", tmp_path)


def settings_with(tmp_path: Path, model: ModelSettings, **others) -> Settings:
    return Settings(tmp_path, tmp_path / "out", PARTICIPANT, tmp_path / "work", model=model, **others)


def test_an_encoder_of_ours_is_no_wrapper() -> None:
    assert find_wrapper(ModelSettings("demo")) is None


def test_an_untrained_encoder_runs_only_on_request(stand_in: Path) -> None:
    with pytest.raises(UsageError, match=r"brainmarks:transformer is untrained: \d+ of \d+ tensors") as caught:
        find_wrapper(replace(TRANSFORMER, allow_untrained=False))
    assert "--allow-untrained" in caught.value.hint
    assert find_wrapper(TRANSFORMER).is_untrained
    assert "UNTRAINED" in check_wrapper(TRANSFORMER)


def test_weights_that_were_given_are_used(saved: Path, grid: OnGrid, preprocessed, tmp_path: Path) -> None:
    wanted = ModelSettings("brainmarks:transformer", model_options=(f"ckpt_path={saved}",))
    trained = encode(wanted, grid, preprocessed, tmp_path)
    untrained = encode(TRANSFORMER, grid, preprocessed, tmp_path)
    assert (trained.facts.untrained, untrained.facts.untrained) == (False, True)
    assert trained.facts.weights_sha256 != untrained.facts.weights_sha256
    assert not np.allclose(trained.embeddings.values["none"], untrained.embeddings.values["none"])
    assert "UNTRAINED" not in check_wrapper(wanted)


def test_the_run_is_one_clip_at_its_own_repetition_time(stand_in: Path, grid, preprocessed, tmp_path: Path) -> None:
    rows = list(encode(TRANSFORMER, grid, preprocessed, tmp_path).embeddings.rows())
    assert [(row["normalisation"], row["clip"], row["onset"], row["duration"]) for row in rows] == [
        ("none", "mean", 5.0, N_VOLS * TR),
        ("none", 0, 5.0, N_VOLS * TR),
    ]
    assert len(rows[0]) == 4 + 8


def test_weights_that_changed_after_the_start_are_an_error(stand_in: Path, grid, preprocessed, tmp_path: Path) -> None:
    wrapper = replace(describe_wrapper("transformer", ()), weights_sha256="0" * 64)
    with pytest.raises(BadDataError, match="brainmarks:transformer: its weights changed"):
        encode_with_brainmarks(grid, preprocessed, wrapper, "cpu", 1, "", tmp_path)


def test_the_verdict_warns_of_random_weights_and_applies_no_limit_of_our_encoders(
    saved: Path, grid, preprocessed, tmp_path: Path
) -> None:
    given = ModelSettings("brainmarks:transformer", model_options=(f"ckpt_path={saved}",))
    preprocessed.tr = 10.0  # beyond the range of our encoders
    for wanted, level in ((TRANSFORMER, "warn"), (given, "pass")):
        judged = judge(
            encode(wanted, grid, preprocessed, tmp_path), preprocessed, grid, None, None, None, "warn", tmp_path
        )
        assert judged.verdict.level == level
        assert any("its weights are random" in reason for reason in judged.verdict.reasons) is (level == "warn")
        assert {"tr", "duration", "reconstruction"} <= set(judged.verdict.unknown)
        assert {"tsnr", "coverage", "tokens"} <= {check.name for check in judged.verdict.checks}


def test_the_verdict_warns_of_tokens_that_cancel(stand_in: Path, grid, preprocessed, tmp_path: Path) -> None:
    found = encode(ModelSettings("brainmarks:identity"), grid, preprocessed, tmp_path)
    judged = judge(found, preprocessed, grid, None, None, None, "warn", tmp_path)
    assert (judged.verdict.level, found.facts.untrained, found.facts.weights_sha256) == ("warn", False, None)
    assert "0 up to rounding" in " ".join(judged.verdict.reasons)


def test_sidecar_and_group_level_say_that_the_weights_are_random(
    stand_in: Path, grid, preprocessed, tmp_path: Path
) -> None:
    found = encode(TRANSFORMER, grid, preprocessed, tmp_path)
    found = judge(found, preprocessed, grid, None, None, None, "warn", tmp_path)
    tree = model_outputs(found, preprocessed, {"sub": "01", "task": "rest"}, {"raw": tmp_path / "raw"}, tmp_path)
    (path,) = tree.rglob("*_desc-brainmarkstransformer_embeddings.json")
    sidecar = EmbeddingsSidecar.read(path)
    assert (sidecar.model, sidecar.untrained, sidecar.scan_backend) == ("brainmarks:transformer", True, None)
    assert sidecar.split_half == {"none": None}
    assert set(sidecar.columns["normalisation"]["Levels"]) == {"none"}
    assert "the class token" in sidecar.columns["eNNNN"]["Description"]
    assert "Brainmarks 0.1.1" in sidecar.model_card["Source"]
    record = read_participant(tree / "sub-01")
    assert record.cards["brainmarkstransformer"].untrained
    ((kind, vector),) = record.runs[0].vectors.items()
    assert kind == ("brainmarkstransformer", "none")
    assert np.allclose(vector.values, found.embeddings.values["none"][0])


def test_trained_encoders_have_no_mark(saved: Path, grid, preprocessed, tmp_path: Path) -> None:
    wanted = ModelSettings("brainmarks:transformer", model_options=(f"ckpt_path={saved}",))
    found = encode(wanted, grid, preprocessed, tmp_path)
    tree = model_outputs(found, preprocessed, {"sub": "01", "task": "rest"}, {"raw": tmp_path / "raw"}, tmp_path)
    (path,) = tree.rglob("*_embeddings.json")
    assert "Untrained" not in json.loads(path.read_text())
    assert EmbeddingsSidecar.read(path).model_card["Source"].endswith(", options ckpt_path=tiny.pt")  # no folder


def test_parcels_are_said_to_be_from_volumes(stand_in: Path, tmp_path: Path, monkeypatch) -> None:
    from bids_app.preprocess.brainmarks_samples import Sample
    from bids_app.workflow import brainmarks, sentences

    wrapper = describe_wrapper("connectome", ())
    text = as_markdown(compose(sentences.brainmarks(wrapper)))
    assert "not over vertices of the surface" in text
    assert "connectome of Brainmarks 0.1.1 (without weights)" in text
    assert "random" not in text
    empty = np.array([[1.0, 0.0]], np.float32)
    card = brainmarks.describe(wrapper, Sample(np.zeros((3, 2), np.float32), empty, empty, 2.0))
    assert "not over vertices of the surface as in Brainmarks; 1 of 2 without data" in card["Inputs"]
    assert "random: its embeddings are a control" in as_markdown(
        compose(sentences.brainmarks(describe_wrapper("transformer", ())))
    )


def test_the_graph_has_the_step_whose_stamp_depends_on_weights_and_options(saved: Path, tmp_path: Path) -> None:
    bold = tmp_path / "sub-01_task-rest_bold.nii.gz"
    bold.touch()
    run = BoldRun(bold, {"sub": "01", "task": "rest"}, {"RepetitionTime": 2.0})
    stamps = {}
    for name, options in (("none", ()), ("width", ("width=4",)), ("file", (f"ckpt_path={saved}",))):
        graph = Graph()
        add_run(graph, run, read_context(settings_with(tmp_path, replace(TRANSFORMER, model_options=options))))
        (step,) = (step for step in graph.steps.values() if step.name.endswith("_encode"))
        assert step.function is encode_with_brainmarks
        stamps[name] = step.stamp
    assert len(set(stamps.values())) == 3
    assert "Model: embed the run at its own repetition time (brainmarks:transformer)" in plan_of(
        run, read_context(settings_with(tmp_path, TRANSFORMER))
    )


def test_hashes_are_those_of_the_files_that_the_encoder_needs(saved: Path, tmp_path: Path) -> None:
    wanted = replace(TRANSFORMER, model_options=(f"ckpt_path={saved}",))
    chosen = choose_model(settings_with(tmp_path, wanted))
    assert {Path(path).name for path in chosen.hashes} == {
        "tpl-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz", "tiny.pt"
    }  # fmt: skip
    assert (chosen.adapters, chosen.labels) == (
        (), {"brainmarkstransformer": "Outputs of the model brainmarks:transformer"}
    )  # fmt: skip
    assert not chosen_adapters(settings_with(tmp_path, wanted))


def test_checks_before_the_start_name_encoder_and_space(stand_in: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("NEUROSTORM_CACHE", "NILEARN_DATA", "TEMPLATEFLOW_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    text = preflight.check_weights(settings_with(tmp_path, TRANSFORMER, check=True))
    assert text.startswith("brainmarks:transformer of Brainmarks 0.1.1, weights ")
    assert text.endswith("UNTRAINED, space mni")
    with pytest.raises(NoInputError, match="schaefer2018-400-17networks"):
        preflight.check_weights(settings_with(tmp_path, ModelSettings("brainmarks:connectome")))
    flat = ModelSettings("brainmarks:identity", model_options=("space=flat",))
    with pytest.raises(UsageError, match="space flat"):
        preflight.check_weights(settings_with(tmp_path, flat))
    preflight.check_fit(settings_with(tmp_path, TRANSFORMER))


def test_options_of_the_other_kind_of_encoder_are_refused(stand_in: Path, tmp_path: Path) -> None:
    for model, message in (
        (ModelSettings("demo", model_options=("width=4",)), "--model-options .* but the model is demo"),
        (replace(TRANSFORMER, adapters=("a.safetensors",)), "transformer: --adapter cannot be used"),
        (
            replace(TRANSFORMER, adapters=("a.safetensors",), attribution="occlusion"),
            "transformer: --adapter and --attribution cannot",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            preflight.check_weights(settings_with(tmp_path, model))
    attributing = replace(TRANSFORMER, attribution="reconstruction")
    assert preflight.check_atlas(settings_with(tmp_path, attributing)) == "not needed"  # one error is enough


@pytest.mark.parametrize("given", [["ckpt_path"], ["=3"], ["a b=3"], ["width=3", "width=4"]])
def test_malformed_options_are_refused(given: list[str]) -> None:
    with pytest.raises(UsageError, match="Invalid value for --model-options: "):
        parse_settings(["in", "out", "participant", "--model", "brainmarks:x", "--model-options", *given])


def test_paths_in_options_are_made_absolute_and_names_are_kept() -> None:
    given = ["width=0.5", "ckpt_path=weights/a.pt", "mode=mean", "text="]
    found = parse_settings(["in", "out", "participant", "--model", "brainmarks:a.b/c", "--model-options", *given])
    assert found.model.model == "brainmarks:a.b/c"
    path = Path("weights/a.pt").absolute()
    assert found.model.model_options == (f"ckpt_path={path}", "mode=mean", "text=", "width=0.5")


COMMAND = "import sys; from bids_app.cli.neurostorm import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs("brainmarks")
def test_the_participant_level_runs_encoders_of_the_real_package(tmp_path: Path) -> None:
    """Our demonstration encoder is found through Brainmarks, too, and gives nearly the same embedding.

    Voxels without data are 0 in a sample of Brainmarks, and are left out by our own path.
    """
    raw, plugin = tmp_path / "raw", tmp_path / "plugin"
    phantom([str(raw), "--participants", "1", "--states", "rest", "--size", "small", "--no-t1w"])
    (plugin / "brainmarks/models").mkdir(parents=True)
    (plugin / "brainmarks/models/models_of_the_tests.py").write_text(MODELS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, plugin, INSTALLED)))}

    def run(model: str, *options: str) -> subprocess.CompletedProcess[str]:
        out = tmp_path / model.replace(":", "_")
        command = [sys.executable, "-c", COMMAND, str(raw), str(out), "participant", "-w", str(tmp_path / "work")]
        command += ["--level", "minimal", "--nprocs", "1", "--model", model, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)

    embedded = {}
    for model, options in (
        ("demo", ()), ("brainmarks:bids_app_demo", ()), ("brainmarks:transformer", ("--allow-untrained",))
    ):  # fmt: skip
        done = run(model, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        (path,) = (tmp_path / model.replace(":", "_")).rglob("*_embeddings.tsv")
        table = pd.read_csv(path, sep="\t", dtype={"clip": str})
        mean = table[(table["clip"] == "mean") & table["normalisation"].isin(["global", "none"])]
        embedded[model] = mean.filter(regex=r"^e\d+$").to_numpy()[0]
        assert json.loads(path.with_suffix(".json").read_text()).get("Untrained") == (True if options else None)
    assert np.corrcoef(embedded["demo"], embedded["brainmarks:bids_app_demo"])[0, 1] > 0.999
    refused = run("brainmarks:transformer")
    assert (refused.returncode, "is untrained" in refused.stderr) == (64, True)
