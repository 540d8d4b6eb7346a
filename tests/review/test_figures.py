"""Which figures are reviewed, and in which order."""

import json

import pytest

from bids_app.errors import NoInputError
from bids_app.outputs.schema import PREPROCESSING, manifest_path
from bids_app.review.figures import find_review


def test_figures_are_in_the_order_of_runs_anatomy_first_without_predictions(out):
    found = find_review(out)
    assert [figure.name for figure in found.figures[:5]] == [
        "sub-01_desc-norm_T1w",
        "sub-01_task-go_desc-coreg_bold",
        "sub-01_task-go_desc-norm_bold",
        "sub-01_task-go_desc-carpet_bold",
        "sub-01_task-rest_desc-coreg_bold",
    ]
    assert len(found.figures) == 14
    assert not any("predictions" in figure.name for figure in found.figures)
    assert [kind.second for kind in found.kinds] == ["T1w", "BOLD", "BOLD", ""]


def test_participants_are_in_natural_order(tmp_path):
    for label in ("10", "9"):
        folder = tmp_path / f"sub-{label}" / "figures"
        folder.mkdir(parents=True)
        (folder / f"sub-{label}_desc-norm_T1w.svg").write_text("<svg/>")
    assert [figure.image for figure in find_review(tmp_path).figures] == ["sub-9_T1w", "sub-10_T1w"]


def test_figures_of_an_earlier_invocation_are_left_out(out):
    path = manifest_path(out, "sub-01_task-go", PREPROCESSING)
    path.parent.mkdir(parents=True)
    kept = "sub-01/figures/sub-01_task-go_desc-coreg_bold.svg"
    path.write_text(json.dumps({"complete": True, "files": {kept: {"size": 1, "sha256": "0"}}}))
    found = [figure.path for figure in find_review(out).figures if figure.image == "sub-01_task-go"]
    assert found == [kept]


def test_names_that_are_no_bids_names_are_left_out_and_named(out):
    odd = "sub-01_task-<b>x_desc-coreg_bold.svg"
    (out / "sub-01" / "figures" / odd).write_text("<svg/>")
    found = find_review(out)
    assert found.left_out == (f"sub-01/figures/{odd}",)
    assert len(found.figures) == 14


def test_a_missing_folder_and_one_without_figures_are_errors(tmp_path):
    with pytest.raises(NoInputError, match="no such folder"):
        find_review(tmp_path / "none")
    with pytest.raises(NoInputError, match="no figures"):
        find_review(tmp_path)
