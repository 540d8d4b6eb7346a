"""Provenance records: activities, software, environment and checksums, which agree with the sidecars."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bids_app.bids.query import BoldRun
from bids_app.catalog.atlases import Atlas
from bids_app.outputs.publish import Publication, publish
from bids_app.outputs.schema import MODEL, PREPROCESSING, MaskSidecar, RunOutcome
from bids_app.settings import PARTICIPANT, Settings
from bids_app.workflow import bids_prov
from bids_app.workflow.bids_prov import KINDS, activity_ids, describe_environment, label_of, write_records
from bids_app.workflow.context import ChosenModel, RunContext
from bids_app.workflow.graph import Graph

STEM = "sub-01_task-rest"
INPUTS = {
    "bids:raw:sub-01/func/sub-01_task-rest_bold.nii.gz": "b" * 64,
    "bids:raw:sub-01/anat/sub-01_T1w.nii.gz": "a" * 64,
}
FILES = {
    PREPROCESSING: {
        "anatomy": ["sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", "sub-01/anat/sub-01_desc-preproc_T1w.json"],
        "preprocessing": [f"sub-01/func/{STEM}_desc-brain_mask.nii.gz", f"sub-01/func/{STEM}_desc-brain_mask.json"],
        "regions": [f"sub-01/func/{STEM}_seg-x_stat-mean_timeseries.tsv"],
    },
    MODEL: {"model": [f"sub-01/func/{STEM}_desc-demo_embeddings.tsv"]},
}


@pytest.fixture
def run(tmp_path: Path) -> BoldRun:
    raw = tmp_path / "raw" / "sub-01"
    t1w = raw / "anat" / "sub-01_T1w.nii.gz"
    return BoldRun(raw / "func" / f"{STEM}_bold.nii.gz", {"sub": "01", "task": "rest"}, {}, t1w)


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    atlas = tmp_path / "x.nii.gz"
    atlas.write_bytes(b"labels")
    model = ChosenModel("demo", (), "", {"/models/demo.safetensors": "c" * 64}, (), False)
    settings = Settings(tmp_path / "raw", tmp_path / "out", PARTICIPANT, tmp_path / "work", provenance=True)
    (tmp_path / "out").mkdir()
    datasets = {"raw": tmp_path / "raw"}
    atlases = (Atlas("x", atlas, {}),)
    return RunContext(settings, model, "MNI152NLin6Asym", datasets, None, False, False, {}, {}, atlases)


def publish_all(context: RunContext, run_id: str = "first", parts=(PREPROCESSING, MODEL), *, recorded=True) -> None:
    for part in parts:
        trees = {}
        for name, files in FILES[part].items():
            tree = trees[name] = context.settings.work_dir / name
            for file in files:
                (tree / file).parent.mkdir(parents=True, exist_ok=True)
                (tree / file).write_text("{}" if file.endswith(".json") else name)
        ids = {name: f"bids::prov#{name}-{run_id}" for name in (*FILES[PREPROCESSING], *FILES[MODEL])}
        publication = Publication(STEM, run_id, "c", {}, "s", ids if recorded else {})
        publish(context.settings.out_dir, part, publication, context.settings.work_dir, **trees)


def read(context: RunContext, label: str) -> dict[str, Any]:
    """Return the contents of the four files of a record, by suffix."""
    folder = context.settings.out_dir / "prov" / f"prov-{label}"
    return {path.stem.rpartition("_")[2]: json.loads(path.read_text()) for path in folder.iterdir()}


def by_id(entries: list[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {entry["Id"]: entry for entry in entries}


def test_a_run_has_a_record_of_its_activities(run: BoldRun, context: RunContext) -> None:
    publish_all(context)
    write_records(run, RunOutcome(stem=STEM, inputs=INPUTS), "first", context)
    record = read(context, "sub01+taskrest")
    assert record.keys() == {"act", "soft", "env", "ent"}
    activities = {entry["Label"]: entry for entry in record["act"]["Activities"]}
    assert activities.keys() == {KINDS[name].label for name in ("preprocessing", "regions", "model")}
    (environment,) = record["env"]["Environments"]
    software, files = by_id(record["soft"]["Software"]), by_id(record["ent"]["Files"])
    for entry in activities.values():
        assert set(entry["AssociatedWith"]) <= software.keys()
        assert entry["Used"][0] == environment["Id"]
        assert "bids:raw:sub-01/func/sub-01_task-rest_bold.nii.gz" in entry["Used"]
        assert entry["Command"]
    named = {identifier for entry in activities.values() for identifier in entry["Used"][1:]}
    assert named - files.keys() == {"bids::sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"}
    assert files.keys() <= named
    weights = files["bids::prov#entity-cccccccc"]
    assert (weights["Label"], weights["Digest"]) == ("demo.safetensors", {"SHA-256": "c" * 64})
    assert weights["Id"] in activities[KINDS["model"].label]["Used"]
    assert weights["Id"] not in activities[KINDS["preprocessing"].label]["Used"]
    assert {entry["Label"] for entry in software.values()} >= {"neurostorm", "python", "torch", "nilearn"}


def test_a_t1w_image_has_a_record_of_its_own(run: BoldRun, context: RunContext) -> None:
    publish_all(context)
    write_records(run, RunOutcome(stem=STEM, inputs=INPUTS), "first", context)
    record = read(context, "sub01+T1w")
    (activity,) = record["act"]["Activities"]
    assert activity["Id"] == "bids::prov#anatomy-first"
    file, *template = record["ent"]["Files"]
    assert activity["Used"][1:] == [entry["Id"] for entry in record["ent"]["Files"]]
    assert file["Id"] == "bids:raw:sub-01/anat/sub-01_T1w.nii.gz"
    assert {entry["Label"] for entry in template} >= {"tpl-MNI152NLin6Asym_res-02_T1w.nii.gz"}
    assert file["Digest"] == {"SHA-256": "a" * 64}
    rows = (context.settings.out_dir / "prov" / "provenance.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == ["provenance_id", "prov-sub01+T1w", "prov-sub01+taskrest"]


def test_a_sidecar_names_its_activity_and_the_checksum_of_its_file(run: BoldRun, context: RunContext) -> None:
    publish_all(context)
    mask = context.settings.out_dir / "sub-01" / "func" / f"{STEM}_desc-brain_mask.json"
    sidecar = MaskSidecar.read(mask)
    assert sidecar.generated_by == "bids::prov#preprocessing-first"
    assert sidecar.digest == {"SHA-256": bids_prov.file_sha256(mask.with_name(f"{STEM}_desc-brain_mask.nii.gz"))}


@pytest.mark.parametrize("with_t1w", [True, False])
def test_the_template_is_used_by_what_is_registered_to_it(run: BoldRun, context: RunContext, with_t1w: bool) -> None:
    publish_all(context)
    chosen = run if with_t1w else replace(run, t1w=None)
    write_records(chosen, RunOutcome(stem=STEM, inputs=INPUTS), "first", context)
    record = read(context, "sub01+taskrest")
    files = by_id(record["ent"]["Files"])
    activities = {entry["Label"]: entry["Used"] for entry in record["act"]["Activities"]}
    used = {files[one]["Label"] for one in activities[KINDS["preprocessing"].label] if one in files}
    assert ("tpl-MNI152NLin6Asym_res-02_T1w.nii.gz" in used) != with_t1w


def test_the_table_of_the_names_of_regions_is_recorded_with_its_atlas(run: BoldRun, context: RunContext) -> None:
    (atlas,) = context.region_atlases
    table = atlas.path.with_name("x.tsv")
    table.write_text("index\tname\n")
    publish_all(context)
    named = replace(context, region_atlases=(replace(atlas, table=table),))
    write_records(run, RunOutcome(stem=STEM, inputs=INPUTS), "first", named)
    files = read(context, "sub01+taskrest")["ent"]["Files"]
    digests = {entry["Label"]: entry["Digest"]["SHA-256"] for entry in files}
    assert digests["x.tsv"] == bids_prov.file_sha256(table)
    assert digests["x.nii.gz"] == bids_prov.file_sha256(atlas.path)


def test_a_run_whose_model_failed_has_a_record_without_it(run: BoldRun, context: RunContext) -> None:
    publish_all(context, parts=(PREPROCESSING,))
    write_records(run, RunOutcome(stem=STEM, inputs=INPUTS), "first", context)
    record = read(context, "sub01+taskrest")
    assert len(record["act"]["Activities"]) == 2
    assert "bids::prov#entity-cccccccc" not in by_id(record["ent"]["Files"])


def test_what_an_earlier_invocation_published_keeps_its_record(run: BoldRun, context: RunContext) -> None:
    publish_all(context)
    write_records(run, RunOutcome(stem=STEM, inputs=INPUTS), "first", context)
    before = read(context, "sub01+taskrest")
    write_records(run, RunOutcome(stem=STEM), "second", context)
    assert read(context, "sub01+taskrest") == before


def test_without_the_option_nothing_is_recorded_and_an_earlier_record_is_removed(
    run: BoldRun, context: RunContext
) -> None:
    publish_all(context)
    write_records(run, RunOutcome(stem=STEM, inputs=INPUTS), "first", context)
    plain = replace(context, settings=replace(context.settings, provenance=False))
    publish_all(plain, "second", recorded=False)
    write_records(run, RunOutcome(stem=STEM, inputs=INPUTS), "second", plain)
    out = context.settings.out_dir
    assert not (out / "prov").exists()
    assert all("GeneratedBy" not in path.read_text() for path in (out / "sub-01").glob("[af]*/*.json"))


def test_records_of_other_runs_stay(run: BoldRun, context: RunContext) -> None:
    publish_all(context)
    write_records(run, RunOutcome(stem=STEM, inputs=INPUTS), "first", context)
    other = context.settings.out_dir / "prov" / "prov-sub02+taskrest" / "prov-sub02+taskrest_act.json"
    other.parent.mkdir()
    other.write_text("{}")
    plain = replace(context, settings=replace(context.settings, provenance=False))
    publish_all(plain, "second", recorded=False)
    write_records(run, RunOutcome(stem=STEM, inputs=INPUTS), "second", plain)
    assert [path.name for path in other.parents[1].iterdir() if path.is_dir()] == ["prov-sub02+taskrest"]
    rows = (other.parents[1] / "provenance.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[0] for row in rows] == ["prov-sub02+taskrest"]


def test_identifiers_differ_for_other_commands_inputs_and_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    def ids(stamped: int) -> str:
        step = Graph().step("a", abs, x=stamped)
        return activity_ids({"model": step, "regions": None})["model"]

    found = [ids(1), ids(2)]
    monkeypatch.setattr(sys, "argv", ["neurostorm", "other"])
    found.append(ids(1))
    monkeypatch.setattr(bids_prov, "describe_environment", lambda: {"Id": "another"})
    found.append(ids(1))
    assert len(set(found)) == 4
    assert all(identifier.startswith("bids::prov#model-") for identifier in found)


def test_the_environment_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    system = describe_environment()
    monkeypatch.setenv("NEUROSTORM_IMAGE", "neurostorm:0.1")
    assert describe_environment()["Label"] == "neurostorm:0.1"
    assert describe_environment()["OperatingSystem"] == system["OperatingSystem"]
    assert describe_environment()["Id"] != system["Id"]


def test_labels_of_images_differ() -> None:
    stems = ("sub-01_task-rest_run-1", "sub-01_task-restrun1", "sub-01_ses-a_task-rest")
    assert len({label_of(stem) for stem in stems}) == 3
