"""Names of the reports of a participant."""

import pytest

from bids_app.reports.pages import find_pages, page_of


@pytest.mark.parametrize(
    ("files", "page"),
    [
        ([], ""),
        (["sub-01.html"], "sub-01.html"),
        (["sub-01.html", "sub-01_ses-2.html"], "sub-01.html"),
        (["sub-01.html", "sub-01_ses-1.html"], "sub-01_ses-1.html"),
    ],
)
def test_a_run_is_in_the_report_of_its_session_if_there_is_one(tmp_path, files, page):
    (tmp_path / "sub-01").mkdir()
    for name in files:
        (tmp_path / name).touch()
    assert page_of(find_pages(tmp_path), "sub-01", "sub-01_ses-1_task-rest") == page


def test_reports_of_participants_without_outputs_are_not_found(tmp_path):
    for name in ("sub-01.html", "sub-02.html", "sub-02_ses-1.html"):
        (tmp_path / name).touch()
    (tmp_path / "sub-01").mkdir()
    assert find_pages(tmp_path) == {"sub-01.html"}
