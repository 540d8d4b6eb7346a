"""Table and wall of all runs: columns, thumbnails, and the size of the page."""

import json
from pathlib import Path

import pytest

from bids_app.cli.neurostorm import main
from bids_app.group import wall
from bids_app.group.ratings import GroupRatings
from bids_app.group.wall import FOLDER, run_table, write_wall
from bids_app.outputs.ratings import RunRating
from bids_app.reports.figures.thumbnails import write_thumbnails
from bids_app.reports.run_table import RunTable, metric_column
from tests.helpers.figures import write_figures

SVG = '<svg viewBox="0 0 10 10"><image width="10" height="10" href="data:image/png;base64,{}"/></svg>'
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="


def columns_of(table):
    return {column["name"]: column for column in json.loads(table.to_json())["columns"]}


@pytest.fixture
def walled(make_group):
    """Study of three participants; the first has figures."""
    group = make_group(participants=3, sessions=1)
    folder = group.out / "sub-01" / "figures"
    folder.mkdir()
    for desc in ("norm", "carpet"):
        (folder / f"sub-01_task-rest_desc-{desc}_bold.svg").write_text(SVG.format(PIXEL))
    group.cohort = group.write_tables()
    return group


def test_the_table_has_status_verdict_rating_quality_and_phenotypes(walled):
    runs = walled.cohort.runs
    for name in ("sub-01", "sub-02"):
        (walled.out / f"{name}.html").touch()
    ratings = GroupRatings(runs={runs[1].stem: RunRating(runs[1].stem, {"AB": "fail"})})
    table = run_table(walled.cohort, ratings, [], walled.out, 1)
    columns = columns_of(table)
    assert {"status", "verdict", "rating", "fd_mean", "tsnr", "site", "participants-age", "prediction-madeage"} <= set(
        columns
    )
    assert columns["rating"]["levels"] == ["fail"]
    assert columns["rating"]["values"] == [-1, 0, -1]
    assert columns["rating"]["colours"]["fail"] == "bad"
    assert columns["fd_mean"]["values"][0] == pytest.approx(runs[0].quality["fd_mean"], rel=1e-3)
    assert columns["participants-age"]["kind"] == "number"
    assert list(table.pages) == ["sub-01.html", "sub-02.html", ""]  # no report, no link


def test_each_kind_shows_the_first_figure_that_a_run_has(walled):
    codes = write_wall(walled.cohort.runs, walled.out, 1)
    assert codes == ["2010", "0000", "0000"]  # the template in place of the T1w image, and the carpet plot
    assert [path.name for path in (walled.out / FOLDER).iterdir()] == ["sub-01_task-rest.jpg"]


def test_thumbnails_are_made_again_only_for_newer_figures(walled):
    write_wall(walled.cohort.runs, walled.out, 1)
    thumbnails = walled.out / FOLDER / "sub-01_task-rest.jpg"
    thumbnails.write_bytes(b"kept")
    write_wall(walled.cohort.runs, walled.out, 1)
    assert thumbnails.read_bytes() == b"kept"
    (walled.out / "sub-01/figures/sub-01_task-rest_desc-carpet_bold.svg").write_text(SVG.format(PIXEL) + "\n")
    write_wall(walled.cohort.runs, walled.out, 1)
    assert thumbnails.read_bytes() != b"kept"


def test_figures_that_cannot_be_read_are_marked_also_when_nothing_is_made_again(walled):
    (walled.out / "sub-01/figures/sub-01_task-rest_desc-carpet_bold.svg").write_text("<svg>")
    assert write_wall(walled.cohort.runs, walled.out, 1) == ["20x0", "0000", "0000"]
    thumbnails = walled.out / FOLDER / "sub-01_task-rest.jpg"
    made = thumbnails.stat().st_mtime_ns
    assert write_wall(walled.cohort.runs, walled.out, 1) == ["20x0", "0000", "0000"]
    assert thumbnails.stat().st_mtime_ns == made


def test_thumbnails_of_runs_that_are_gone_are_removed(walled):
    write_wall(walled.cohort.runs, walled.out, 1)
    write_wall(walled.cohort.runs[1:], walled.out, 1)
    assert not list((walled.out / FOLDER).iterdir())


def test_runs_without_outputs_have_no_page(walled):
    walled.cohort.runs[2].status = "missing"
    assert list(run_table(walled.cohort, GroupRatings(), [], walled.out, 1).pages)[2] == ""


def test_ten_thousand_runs_fit_on_the_page():
    runs = [f"sub-{i // 2:05d}_ses-{i % 2}_task-restingstate_run-1" for i in range(10_000)]
    columns = [metric_column(f"metric{k}", [0.1234 + i / 7 for i in range(10_000)]) for k in range(80)]
    text = RunTable(runs, [f"{run[:9]}.html" for run in runs], columns, ["1111"] * 10_000, ({},) * 4, "wall").to_json()
    assert len(text) < 4_100_000
    assert json.loads(text)["left_out"]


def test_figures_that_are_no_svg_leave_the_group_level_running(make_group):
    group = make_group(participants=3, sessions=1)
    write_figures(group.out, 1, ["rest"])  # figures without images
    assert main([str(group.raw), str(group.out), "group", "--nprocs", "1", "-w", str(group.out.parent / "w")]) == 0
    assert (group.out / FOLDER / "sub-01_task-rest.jpg").is_file()


def test_thumbnails_of_other_figures_are_made_again(tmp_path: Path) -> None:
    figures = [tmp_path / "sub-1_desc-coreg_bold.svg", tmp_path / "sub-1_desc-norm_bold.svg"]
    for figure in figures:
        figure.write_text("<svg/>")
    path = write_thumbnails([figures[0], None], tmp_path / "sub-1.jpg")
    assert not wall._is_outdated(([figures[0], None], path))
    figures[0].unlink()
    assert wall._is_outdated(([figures[1], None], path))
