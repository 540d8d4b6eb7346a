"""Options and errors of ``neurostorm-review``."""

import sys

import pytest

from bids_app.cli.review import main
from bids_app.errors import NoInputError, TemporaryError, UsageError
from bids_app.review.server import listen
from tests.helpers.figures import write_figures


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], UsageError.exit_code, "--rater is missing"),
        (["--rater", "A/B"], UsageError.exit_code, "--rater"),
        (["--static", "--rater", "AB"], UsageError.exit_code, "--static cannot be combined"),
        (["--rater", "AB", "--port", "-1"], UsageError.exit_code, "--port"),
    ],
)
def test_invalid_options_are_errors(tmp_path, capsys, options, code, said):
    assert main([str(write_figures(tmp_path)), *options]) == code
    assert said in capsys.readouterr().err


def test_a_missing_folder_and_one_without_reports_are_errors(tmp_path, capsys):
    for out in (tmp_path / "none", tmp_path):
        for options in (["--static"], ["--rater", "AB"]):
            assert main([str(out), *options]) == NoInputError.exit_code
            assert str(out) in capsys.readouterr().err


def test_a_port_in_use_is_an_error(tmp_path, capsys):
    with listen(0) as other:
        port = other.getsockname()[1]
        assert main([str(write_figures(tmp_path)), "--rater", "AB", "--port", str(port)]) == TemporaryError.exit_code
    assert f"Port {port} is in use" in capsys.readouterr().err


def test_the_static_page_is_named_and_figures_without_bids_names_are_reported(tmp_path, capsys):
    out = write_figures(tmp_path)
    (out / "sub-01" / "figures" / "sub-01_task-a b_desc-coreg_bold.svg").write_text("<svg/>")
    assert main([str(out), "--static"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"14 figures: {out / 'review.html'}\n"
    assert "1 figures without a BIDS name are left out: sub-01/figures/sub-01_task-a b_" in printed.err


def test_without_its_packages_the_server_names_the_extra_and_the_page_works(tmp_path, capsys, monkeypatch):
    out = write_figures(tmp_path)
    monkeypatch.delitem(sys.modules, "bids_app.review.server")
    monkeypatch.delattr("bids_app.review.server")
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert main([str(out), "--rater", "AB"]) == UsageError.exit_code
    assert "neurostorm[review]" in capsys.readouterr().err
    assert main([str(out), "--static"]) == 0
