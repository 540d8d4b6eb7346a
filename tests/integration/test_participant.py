"""From a raw dataset to derivatives and reports, with one unusable run."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_app.adapters.file import Adapter, AdapterCard, load_adapter, save_adapter
from bids_app.bids.entities import split_name
from bids_app.cli.neurostorm import main, parse_settings
from bids_app.cli.phantom import main as phantom
from bids_app.errors import BadDataError
from bids_app.model.api import load_model
from bids_app.model.encoder import EncoderConfig
from bids_app.workflow import encoding
from tests.helpers.models import save_random_encoder

pytestmark = [pytest.mark.timeout(600)]
GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))


@dataclass(frozen=True)
class Finished:
    """Finished run of the app: its folders and exit code."""

    raw: Path
    out: Path
    work: Path
    model: Path
    adapter: Path
    exit_code: int = 0

    def again(self, *options: str) -> int:
        """Repeat the command with cached steps in this process: without the time for workers to start."""
        return self.command("--nprocs", "1", *options)

    def command(self, *options: str) -> int:
        where = [str(self.raw), str(self.out), "participant", "-w", str(self.work), "--nprocs", "2"]
        return main([*where, "--model", str(self.model), "--adapter", str(self.adapter), *options])

    def summary(self, participant: str) -> dict:
        newest = max((self.out / f"sub-{participant}" / "log").glob("*/summary.json"), key=os.path.getmtime)
        return json.loads(newest.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    """Two simulated participants without T1w images; the file of the second is truncated."""
    folder = tmp_path_factory.mktemp("participant")
    raw = folder / "raw"
    arguments = ["--participants", "2", "--seed", "3", "--size", "small", "--states", "rest", "--no-t1w"]
    assert phantom([str(raw), *arguments]) == 0
    shutil.rmtree(raw / "derivatives")
    bold = raw / "sub-02" / "func" / "sub-02_task-rest_bold.nii.gz"
    bold.write_bytes(bold.read_bytes()[:100_000])
    run = Finished(raw, folder / "out", folder / "work", *tiny_model(folder))
    return replace(run, exit_code=run.command("--output-spaces", "MNI152NLin6Asym"))


def tiny_model(folder: Path) -> tuple[Path, Path]:
    """Write an untrained encoder and an adapter for it; both are marked as demonstration."""
    encoder = save_random_encoder(folder / "tiny.safetensors", CONFIG, demonstration=True)
    card = AdapterCard(
        "tinystate",
        "classification",
        "state",
        load_model(encoder).weights_sha256,
        "voxel",
        ("rest", "lefthand", "righthand"),
        demonstration=True,
    )
    head = {"head.weight": torch.randn(3, 8), "head.bias": torch.zeros(3)}
    return encoder, save_adapter(folder / "tinystate.safetensors", Adapter(card, head))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_exit_code_is_that_of_the_failed_run(finished: Finished) -> None:
    assert finished.exit_code == 65


def test_the_other_participant_is_complete(finished: Finished) -> None:
    assert finished.summary("01")["status"] == "ok"
    made = sorted(
        re.sub(r"-[0-9a-f]{8}\.js$", ".js", path.relative_to(finished.out).as_posix())
        for path in finished.out.rglob("*")
        if path.is_file() and "sub-02" not in path.as_posix() and "/log/" not in path.as_posix()
    )
    assert made == (GOLDEN / "participant_without_t1w.txt").read_text().split()


def test_the_summary_has_the_error_and_its_hint(finished: Finished) -> None:
    summary = finished.summary("02")
    (run,) = summary["runs"]
    assert (summary["status"], summary["exit_code"]) == ("failed", 65)
    assert "sub-02_task-rest_bold.nii.gz" in run["reason"]
    assert len(run["hint"]) > 10
    assert run["step"].endswith("_examine")


def test_the_summary_has_inputs_and_costs(finished: Finished) -> None:
    summary = finished.summary("01")
    (run,) = summary["runs"]
    for name in ("sub-01/func/sub-01_task-rest_bold.nii.gz", "sub-01/func/sub-01_task-rest_bold.json"):
        assert run["inputs"][f"bids:raw:{name}"] == hashlib.sha256((finished.raw / name).read_bytes()).hexdigest()
    assert summary["weights"] == {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in (finished.model, finished.adapter)
    }
    assert summary["started"] <= summary["finished"]
    assert summary["seconds"] > 0
    assert summary["peak_memory_mb"] == max(cost["peak_rss_mb"] for cost in run["steps"].values())
    assert {"neurostorm", "torch", "nipype"} <= summary["versions"].keys()
    assert summary["random_seed"]
    failed = finished.summary("02")["runs"][0]
    assert len(failed["inputs"]) == 2  # a file that cannot be used is told apart from its mended version


def test_the_report_has_the_same_error(finished: Finished) -> None:
    (run,) = finished.summary("02")["runs"]
    page = (finished.out / "sub-02.html").read_text()
    assert "sub-02_task-rest_bold.nii.gz" in page
    assert run["hint"].split(".")[0] in page


def test_rebuilt_reports_are_identical(finished: Finished) -> None:
    before = {label: (finished.out / f"sub-{label}.html").read_bytes() for label in ("01", "02")}
    for label in before:
        (finished.out / f"sub-{label}.html").unlink()
    assert finished.again("--reports-only") == 0
    assert {label: (finished.out / f"sub-{label}.html").read_bytes() for label in before} == before


def test_the_report_shows_prediction_verdict_and_cards(finished: Finished) -> None:
    page = (finished.out / "sub-01.html").read_text()
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "not calibrated" in text
    assert "Checks of the prediction" in text
    assert "Model tiny Not a medical device." in text
    assert "Adapter tinystate Not a medical device." in text
    assert 'class="trace"' in page


def test_figures_are_small_files(finished: Finished) -> None:
    sizes = {path.name: path.stat().st_size for path in (finished.out / "sub-01" / "figures").iterdir()}
    assert sizes
    assert max(sizes.values()) < 1_000_000


def test_a_failed_run_leaves_no_outputs(finished: Finished) -> None:
    assert not list(finished.out.glob("sub-02/func/*"))


def test_every_link_of_a_report_is_valid(finished: Finished) -> None:
    page = (finished.out / "sub-01.html").read_text()
    links = re.findall(r'(?:src|data|href)="([^"#:]+)"', page)
    assert len(links) > 5
    for link in links:
        assert (finished.out / link).is_file(), link


def test_the_labels_of_all_files_are_explained(finished: Finished) -> None:
    folders = [path for path in finished.out.rglob("*") if path.parent.name in ("anat", "func")]
    used = {f"desc-{label}" for path in folders if (label := split_name(path.name)[0].get("desc"))}
    explained = {row["desc_id"]: row["description"] for row in rows(finished.out / "descriptions.tsv")}
    assert {"desc-preproc", "desc-tiny", "desc-tinystate"} <= used <= explained.keys()
    assert all(len(text) > 10 for text in explained.values())
    assert json.loads((finished.out / "dataset_description.json").read_text())["BIDSVersion"] == "1.11.1"


def test_masks_and_series_are_described(finished: Finished) -> None:
    func = finished.out / "sub-01" / "func"
    sidecars = [*func.glob("*_mask.json"), *func.glob("*_desc-preproc_bold.json")]
    assert len(sidecars) == 3
    assert all(json.loads(path.read_text())["Description"] for path in sidecars)


def test_outputs_pass_the_bids_validator(finished: Finished) -> None:
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    result = subprocess.run(
        [validator, "--format", "json", str(finished.out)], capture_output=True, text=True, check=False
    )
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_embeddings_have_a_row_per_clip_and_normalisation(finished: Finished) -> None:
    (path,) = finished.out.glob("sub-01/func/*_desc-tiny_embeddings.tsv")
    table = rows(path)
    assert {row["normalisation"] for row in table} == {"global", "voxel"}
    for name in ("global", "voxel"):
        own = [row for row in table if row["normalisation"] == name]
        features = [key for key in own[0] if key.startswith("e0")]
        clips = np.array([[float(row[key]) for key in features] for row in own if row["clip"] != "mean"])
        mean = np.array([float(own[0][key]) for key in features])
        np.testing.assert_allclose(mean, clips.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_outputs_of_the_demonstration_model_are_marked(finished: Finished) -> None:
    sidecars = list(finished.out.glob("sub-01/func/*_embeddings.json")) + list(
        finished.out.glob("sub-01/func/*_predictions.json")
    )
    assert len(sidecars) == 2
    for path in sidecars:
        assert json.loads(path.read_text())["Demonstration"] is True
    assert "demonstration" in (finished.out / "sub-01.html").read_text().lower()
    assert "demonstration" in (finished.out / "logs" / "CITATION.md").read_text()


def raw_ancestors(out: Path, sidecar: Path) -> set[str]:
    """Follow the sources of a file to the raw data; every source must exist."""
    found: set[str] = set()
    for uri in json.loads(sidecar.read_text())["Sources"]:
        _, dataset, name = uri.split(":", 2)
        if dataset:
            found.add(uri)
            continue
        assert (out / name).is_file(), f"{sidecar.name} names {name}"
        own = Path(str(out / name).removesuffix(".gz")).with_suffix(".json")
        if "timeseries" not in name:
            found |= raw_ancestors(out, own)
    return found


def test_sources_of_all_files_lead_to_the_raw_series(finished: Finished) -> None:
    for path in finished.out.glob("sub-01/func/*.json"):
        if "timeseries" not in path.name:
            found = raw_ancestors(finished.out, path)
            assert found == {"bids:raw:sub-01/func/sub-01_task-rest_bold.nii.gz"}, path.name


def test_images_have_codes_and_units(finished: Finished) -> None:
    images = list(finished.out.glob("sub-01/**/*.nii.gz"))
    assert len(images) == 4
    for path in images:
        header = nib.load(path).header
        code = 4 if "space-MNI" in path.name else 1
        assert (header["qform_code"], header["sform_code"]) == (code, code), path.name
        assert header.get_xyzt_units() == ("mm", "sec"), path.name


def test_the_preprocessed_series_is_aligned_with_the_template(finished: Finished) -> None:
    (path,) = finished.out.glob("sub-01/func/*_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz")
    (mask,) = finished.out.glob("sub-01/func/*_space-MNI152NLin6Asym_res-2_desc-brain_mask.nii.gz")
    series, brain = nib.load(path), nib.load(mask).get_fdata() > 0
    assert series.shape[:3] == (91, 109, 91)
    np.testing.assert_allclose(series.header.get_zooms()[:3], 2)
    mean = series.get_fdata().mean(axis=3)
    assert mean[brain].mean() > 3 * mean[~brain].mean()


def test_the_report_warns_of_the_missing_t1w_image(finished: Finished) -> None:
    assert "T1w" in (finished.out / "sub-01.html").read_text()
    (path,) = finished.out.glob("sub-01/func/*_desc-quality_metrics.json")
    content = json.loads(path.read_text())
    assert content["route"] == "direct"
    assert any("no T1w image" in text for text in content["warnings"])


def test_a_second_run_comes_from_the_cache_and_restores_only_what_was_deleted(finished: Finished) -> None:
    def state() -> dict[str, tuple[int, int]]:
        paths = (p for p in (finished.out / "sub-01" / "func").iterdir() if p != deleted)
        return {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in paths}

    (deleted,) = finished.out.glob("sub-01/func/*_embeddings.tsv")
    content, before = deleted.read_bytes(), state()
    deleted.unlink()
    costs = {p: p.stat().st_mtime_ns for p in finished.work.glob("neurostorm/sub_01_*/done.json")}
    assert finished.again("--output-spaces", "MNI152NLin6Asym", "--participant-label", "01") == 0
    assert state() == before
    assert deleted.read_bytes() == content
    again = [p.parent.name for p, then in costs.items() if p.stat().st_mtime_ns != then]
    assert sorted(again) == ["sub_01_task_rest_publish", "sub_01_task_rest_publish_model"]


@pytest.mark.slow
def test_a_run_with_other_options_leaves_nothing_of_the_first(finished: Finished, tmp_path: Path) -> None:
    out, work = (shutil.copytree(folder, tmp_path / folder.name) for folder in (finished.out, finished.work))
    other = replace(finished, out=out, work=work)
    assert other.command("--level", "minimal", "--participant-label", "01", "--nprocs", "1") == 0
    (run,) = other.summary("01")["runs"]
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {name for name in files if name.startswith(("sub-01/func", "sub-01/figures"))} == set(run["outputs"])
    assert {Path(name).suffix for name in run["removed"]} == {".svg", ".tsv", ".json", ".gz"}
    assert not [name for name in files if "predictions" in name or "preproc_bold" in name]
    assert "clips predict" not in (out / "sub-01.html").read_text()
    sidecars = [json.loads((out / name).read_text()) for name in run["outputs"] if name.endswith(".json")]
    assert len({sidecar["ConfigurationHash"] for sidecar in sidecars}) == 1
    assert other.command("--participant-label", "01", "--reports-only") == 0
    assert main([str(finished.raw), str(out), "group", "-w", str(work)]) == 0
    assert not (out / "phenotype").exists() or not list((out / "phenotype").iterdir())


def test_preprocessing_is_published_where_encoding_fails(finished: Finished, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise BadDataError("tiny.safetensors: not finite.", "Fetch it again.")

    monkeypatch.setattr(encoding, "encode_run", fail)
    shutil.copytree(finished.work, tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "neurostorm" / "sub_01_task_rest_encode")
    run = replace(finished, out=tmp_path / "out", work=tmp_path / "work")
    assert run.again("--output-spaces", "MNI152NLin6Asym", "--participant-label", "01") == 65
    (outcome,) = run.summary("01")["runs"]
    assert outcome["step"] == "sub_01_task_rest_encode"
    made = {path.name for path in (run.out / "sub-01" / "func").iterdir()}
    assert "sub-01_task-rest_desc-confounds_timeseries.tsv" in made
    assert not [name for name in made if "embeddings" in name]
    assert sorted(name for name in made) == sorted(Path(name).name for name in outcome["outputs"] if "/func/" in name)


def test_a_participants_log_and_report_do_not_wait_for_the_others(finished: Finished) -> None:
    """The second participant fails at its first step, while the first is still worked on."""
    logs = [min((finished.out / f"sub-{label}" / "log").iterdir()) for label in ("01", "02")]
    assert logs[0].name == logs[1].name
    first, second = ((log / "summary.json").stat().st_mtime for log in logs)
    assert second < first


def test_a_run_leaves_few_files_in_scratch(finished: Finished) -> None:
    left = [path for path in finished.work.glob("neurostorm/sub_01_*/**/*") if path.is_file()]
    assert 0 < len(left) <= 200


def test_no_lock_file_is_left(finished: Finished) -> None:
    assert not list(finished.out.rglob("running*.json")) + list(finished.work.glob("running*.json"))


def test_the_log_of_a_run_can_be_used_as_its_config_file(finished: Finished, tmp_path: Path) -> None:
    (log,) = list((finished.out / "sub-02" / "log").glob("*/neurostorm.toml"))[:1]
    settings = parse_settings(["a", "b", "participant", "--config-file", str(log)])
    assert settings.model.model == str(finished.model)
    assert settings.preprocess.output_spaces == ("MNI152NLin6Asym",)


def test_the_group_level_collects_the_outputs_of_participants(finished: Finished) -> None:
    assert main([str(finished.raw), str(finished.out), "group", "-w", str(finished.work)]) == 0
    runs = rows(finished.out / "group_runs.tsv")
    assert {(row["participant_id"], row["status"]) for row in runs} == {("sub-01", "ok"), ("sub-02", "failed")}
    (bold,) = rows(finished.out / "group_bold.tsv")
    assert bold["participant_id"] == "sub-01"
    assert float(bold["coverage"]) > 0.5
    assert len(rows(finished.out / "group_embeddings.tsv")) == 2
    (prediction,) = rows(finished.out / "phenotype" / "neurostorm_tinystate.tsv")
    assert prediction["label"] in ("rest", "lefthand", "righthand")


def asking(finished: Finished, folder: Path, **card) -> Finished:
    """Run again with another adapter into a separate folder; finished steps come from the cache."""
    plain = load_adapter(finished.adapter)
    path = save_adapter(folder / "other.safetensors", replace(plain, card=replace(plain.card, name="other", **card)))
    return replace(finished, adapter=path, out=folder / "out")


def test_a_prediction_for_an_out_of_distribution_scan_has_a_warning_or_is_withheld(
    finished: Finished, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = asking(finished, tmp_path, ranges={"age": [3, 4], "tr": [0.1, 9]})
    for policy in ("warn", "refuse"):
        assert asked.again("--participant-label", "01", "--on-out-of-domain", policy) == 0
        (table,) = asked.out.glob("sub-01/func/*_desc-other_predictions.tsv")
        mean, *clips = rows(table)
        sidecar = json.loads(table.with_suffix(".json").read_text())
        figures = list(asked.out.glob("sub-01/figures/*otherpredictions*"))
        assert (mean["verdict"], sidecar["Verdict"]["Level"]) == (policy, policy)
        (age,) = (check for check in sidecar["Verdict"]["Checks"] if check["Check"] == "age")
        assert age["Level"] == policy
        assert age["Value"] > 4
        assert "embedding" in sidecar["Verdict"]["NotKnown"]
        withheld = policy == "refuse"
        assert ("Uncertainty" in sidecar, "Views" in sidecar) == (not withheld, not withheld)
        assert all((row["label"] == "n/a") is withheld for row in (mean, *clips))
        assert ("is withheld. The age" in capfd.readouterr().err) is withheld
        assert len(figures) == (0 if withheld else 1)  # that of the first time is taken back


def test_every_run_has_a_verdict_and_halves_without_any_adapter(finished: Finished) -> None:
    (path,) = finished.out.glob("sub-01/func/*_desc-tiny_embeddings.json")
    content = json.loads(path.read_text())
    assert content["Verdict"]["Level"] in ("pass", "warn")
    assert {check["Check"] for check in content["Verdict"]["Checks"]} >= {"tr", "duration", "coverage", "tsnr"}
    assert content["SplitHalf"]["voxel"] is None or -1 <= content["SplitHalf"]["voxel"]["Correlation"] <= 1
    assert "orientation" in content["Verdict"]["NotKnown"]


def test_an_adapter_of_a_diagnosis_needs_an_acknowledgement(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = asking(finished, tmp_path, research_only=True)
    only = ("--participant-label", "01")
    assert asked.again(*only) == 64
    assert "--acknowledge-research-use" in capsys.readouterr().err
    assert not asked.out.exists()
    assert asked.again(*only, "--acknowledge-research-use") == 0
    (sidecar,) = asked.out.glob("sub-01/func/*_desc-other_predictions.json")
    assert json.loads(sidecar.read_text())["ResearchOnly"] is True
    (log,) = asked.out.glob("sub-01/log/*/neurostorm.toml")
    settings = parse_settings(["a", "b", "participant", "--config-file", str(log)])
    assert settings.model.acknowledge_research_use
