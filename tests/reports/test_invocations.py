"""The report says which outputs are of other invocations, and shows none that the last one did not make."""

import json
import shutil

import pytest

from bids_app.outputs.publish import write_manifest
from bids_app.outputs.schema import FileStamp, Manifest, may_be_gone
from bids_app.reports.participant import build_participant_report
from tests.reports.test_participant import Page

FIRST, SECOND = "sub-01_task-rest_run-1", "sub-01_task-rest_run-2"


def write_manifests(out, stem, configuration="aaaa1111", without=(), **changes):
    """Write the manifests of a run, with all files that it has except those whose names contain ``without``."""
    folders = (out / "sub-01/func", out / "sub-01/figures")
    found = [path.relative_to(out).as_posix() for folder in folders for path in folder.glob(f"{stem}_*")]
    named = {name for name in found if not any(part in name for part in without)}
    predicted = {name for name in named if "embeddings" in name or "predictions" in name}
    options = {"version": "1", "dummy_scans": configuration}
    for part, files in (("preprocessing", named - predicted), ("model", predicted)):
        stamps = {name: FileStamp(size=0, sha256="") for name in files}
        values = {"configuration": configuration, "options": options, "source": "x", "complete": True, "files": stamps}
        write_manifest(out, stem, part, Manifest(**values | changes))


def test_predictions_that_the_last_invocation_did_not_make_are_named_and_not_shown(out):
    before = Page(build_participant_report(out, "01"))
    assert before.words.count("clips predict left hand") == 2
    for stem, without in ((FIRST, ()), (SECOND, ("demostate",))):
        write_manifests(out, stem, without=without)
    page = Page(build_participant_report(out, "01"))
    assert page.words.count("clips predict left hand") == 1
    assert "Not shown, as the last invocation did not make them" in page.words
    assert f"{SECOND}_desc-demostate_predictions.tsv" in page.words
    assert f"{SECOND}_desc-demostatepredictions_bold.svg" not in " ".join(
        str(page.of(tag)) for tag in ("img", "object")
    )


@pytest.mark.parametrize(
    "pattern", ["figures/*run-2*.svg", "func/*run-2*_predictions.tsv", "func/*run-2*_embeddings.json"]
)
def test_a_figure_table_or_sidecar_that_was_deleted_is_named(out, pattern):
    for stem in (FIRST, SECOND):
        write_manifests(out, stem)
    assert "although the run wrote it" not in Page(build_participant_report(out, "01")).words
    lost = next(out.glob(f"sub-01/{pattern}"))
    lost.unlink()
    words = Page(build_participant_report(out, "01")).words
    assert f"{lost.relative_to(out)}: file not found, although the run wrote it" in words


def test_images_and_clips_may_be_deleted_to_save_space():
    assert may_be_gone("sub-01/func/sub-01_task-rest_desc-preproc_bold.nii.gz")
    assert may_be_gone("sub-01/clips/global/sub-01_task-rest/scan.json")
    assert not may_be_gone("sub-01/func/sub-01_task-clips_desc-preproc_bold.json")


def test_without_manifests_all_outputs_are_shown_as_before(out):
    page = Page(build_participant_report(out, "01"))
    assert "Not shown" not in page.words
    assert "configurations" not in page.words


def test_several_configurations_are_shown_with_what_differs(out):
    write_manifests(out, FIRST)
    write_manifests(out, SECOND)
    assert "configurations" not in Page(build_participant_report(out, "01")).words
    write_manifests(out, SECOND, "bbbb2222")
    words = Page(build_participant_report(out, "01")).words
    assert "made with 2 configurations" in words
    assert "aaaa1111 aaaa1111 task-rest, run-1 bbbb2222 bbbb2222 task-rest, run-2" in words
    assert "Configuration dummy_scans Runs" in words


def test_an_interrupted_publication_is_reported_and_not_shown(out):
    write_manifests(out, FIRST, complete=False)
    words = Page(build_participant_report(out, "01")).words
    assert "Writing the outputs was interrupted" in words
    assert words.count("clips predict left hand") == 1


@pytest.mark.parametrize("with_manifests", [True, False])
def test_outputs_from_before_a_failure_have_their_date(out, with_manifests):
    if with_manifests:
        write_manifests(out, FIRST, published="2026-01-01T12:00:00+0000")
    old = next(out.glob("sub-01/log/2*"))
    new = shutil.copytree(old, old.with_name("20260303-080000_1a"))
    content = json.loads((new / "summary.json").read_text())
    failed = {"status": "failed", "reason": "no space", "hint": "free some", "exit_code": 74}
    content |= {"finished": "2026-03-03T09:00:00+0000", "runs": [content["runs"][0] | failed]}
    (new / "summary.json").write_text(json.dumps(content))
    words = Page(build_participant_report(out, "01")).words
    assert "The run failed in the invocation of 2026-03-03 09:00:00+0000" in words
    made = "made by an earlier invocation"
    assert (f"{made} of 2026-01-01 12:00:00+0000" if with_manifests else f"{made}, perhaps") in words
