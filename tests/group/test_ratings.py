"""Ratings of people at the group level: agreement, verdicts, metrics, and runs to leave out."""

import json

import numpy as np
import pytest

from bids_app.errors import BadDataError, NoInputError
from bids_app.group import ratings as module
from bids_app.group.cohort import Cohort
from bids_app.group.ratings import (
    GroupRatings,
    agreements,
    compare_metrics,
    compare_verdicts,
    include_rows,
    kappa,
    ratings_section,
    read_group_ratings,
    without_failed,
    write_rating_tables,
)
from bids_app.group.reading import RunRecord
from bids_app.outputs.ratings import Rating, RunRating, ratings_path, store_rating


def cohort_of(n=6, **columns):
    """Make a cohort of runs with given values by column: quality metrics, ``verdict``, and ``age`` (verdicts)."""
    runs = []
    for i in range(n):
        run = RunRecord(f"sub-{i}_task-rest", {"sub": str(i), "task": "rest"}, "ok")
        for name, values in columns.items():
            if name == "verdict":
                run.verdict = values[i]
            elif name == "age":
                run.predictions["age"] = {"verdict": values[i]}
            else:
                run.quality[name] = values[i]
        runs.append(run)
    return Cohort(runs)


def rated(cohort, *consensus, **by_rater):
    runs = {
        run.stem: RunRating(run.stem, {"AB": rating}, ("motion",) if rating == "fail" else (), ("AB: <b>x</b>\n\ty",))
        for run, rating in zip(cohort.runs, consensus, strict=True)
        if rating
    }
    return GroupRatings(by_rater or {"AB": {"x": Rating("x", "pass")}}, runs)


def figures(ratings, start=0):
    return {
        f"sub-{i + start}_desc-norm_T1w": Rating(f"sub-{i + start}_desc-norm_T1w", r) for i, r in enumerate(ratings)
    }


def rate(group, rater="AB", **by_number):
    """Store ratings of the runs of participants: ``_03="fail"``."""
    for label, rating in by_number.items():
        name = f"sub-{label.strip('_')}_ses-1_task-rest_desc-carpet_bold"
        store_rating(group.out, rater, Rating(name, rating, ("motion",) if rating == "fail" else ()))


def test_kappa_is_that_of_cohen():
    one = ["pass"] * 25 + ["fail"] * 25
    other = ["pass"] * 20 + ["fail"] * 5 + ["pass"] * 10 + ["fail"] * 15
    assert kappa(one, other) == pytest.approx(0.4)  # Cohen's example: 70 % observed, 50 % expected
    assert np.isnan(kappa(["pass"] * 3, ["pass"] * 3))
    near, far = (
        kappa(["pass", "fail", "pass", "fail"], ["pass", x, "pass", "fail"], "linear") for x in ("doubtful", "pass")
    )
    assert near > far


def test_raters_are_compared_on_figures_that_both_have_rated():
    ratings = GroupRatings({"AB": figures(["pass", "fail", "pass"]), "CD": figures(["fail", "pass", "", "fail"], 1)})
    (found,) = agreements(ratings)
    assert (found.raters, found.n, found.same) == (("AB", "CD"), 2, 1.0)
    assert agreements(GroupRatings({"AB": figures(["pass"]), "CD": figures(["pass"], 5)})) == []


def test_verdicts_of_scan_and_predictions_are_compared_with_people():
    cohort = cohort_of(verdict=["pass", "pass", "warn", "refuse", "refuse", ""], age=["warn"] * 6)
    ratings = rated(cohort, "pass", "fail", "doubtful", "fail", "pass", "pass")
    scan, age = compare_verdicts(cohort, ratings)
    assert scan.counts.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert scan.same.value == pytest.approx(3 / 5)
    assert (age.name, age.n, age.same.value) == ("age", 6, pytest.approx(1 / 6))
    section = ratings_section(cohort, ratings)
    table = next(t for t in section.tables if t.title == "Agreement of verdicts and ratings")
    assert [cell.text for cell in table.rows[0]][:3] == ["scan", "5", "60 %"]
    assert [cell.text for cell in table.rows[0]][-2:] == ["1", "1"]  # passed but rated fail, refused but rated pass


def test_metrics_of_failed_and_passed_runs_are_compared_the_largest_difference_first():
    cohort = cohort_of(n=7, fd_mean=[0.9, 0.8, 0.7, 0.1, 0.2, 0.3, 9.0], tsnr=[40, 50, 60, 41, 51, 61, 0])
    ratings = rated(cohort, "fail", "fail", "fail", "pass", "pass", "pass", "doubtful")
    first, second = compare_metrics(cohort, ratings)
    assert (first.metric, first.auc) == ("fd_mean", 1.0)
    assert second.auc == pytest.approx(1 / 3)
    assert np.median(first.failed) == 0.8
    few = rated(cohort, "fail", "fail", "", "pass", "pass", "pass", "")
    assert compare_metrics(cohort, few) == []


def test_include_lists_all_runs_and_the_reason_of_those_to_leave_out():
    cohort = cohort_of(n=4)
    cohort.runs[3].status = "failed"
    rows = include_rows(cohort, rated(cohort, "pass", "fail", "", "pass"))
    assert [(row["include"], row["rating"], row["reason"]) for row in rows] == [
        ("yes", "pass", "n/a"), ("no", "fail", "motion"), ("yes", "n/a", "n/a"), ("no", "pass", "status failed"),
    ]  # fmt: skip


def test_tables_have_one_line_per_run_and_are_not_written_without_ratings(tmp_path):
    cohort = cohort_of(n=3, verdict=["pass"] * 3)
    files = write_rating_tables(tmp_path, cohort, rated(cohort, "pass", "fail", ""))
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [
        "group_ratings.tsv", "group_ratings.json", "ratings/include.tsv", "ratings/include.json",
    ]  # fmt: skip
    header, *rows = (tmp_path / "group_ratings.tsv").read_text().splitlines()
    assert len(rows) == 2
    assert set(json.loads((tmp_path / "group_ratings.json").read_text())) == set(header.split("\t"))
    assert write_rating_tables(tmp_path / "other", cohort, GroupRatings()) == []
    assert not (tmp_path / "other").exists()


def test_ratings_are_on_the_page_and_notes_are_escaped(finished_with_ratings):
    text = finished_with_ratings.page()
    assert '<section id="ratings">' in text
    assert "2 raters; 4 of 8 runs rated: 2 pass, 0 doubtful, 2 fail." in text
    assert "&lt;b&gt;blurred&lt;/b&gt;" in text
    assert "<b>blurred" not in text
    assert "AB and CD" in text
    rows = finished_with_ratings.rows("ratings/include.tsv")
    assert [row["run"] for row in rows if row["include"] == "no"] == [
        "sub-02_ses-1_task-rest",
        "sub-03_ses-1_task-rest",
    ]
    assert (finished_with_ratings.out / "ratings" / "rater-CD_ratings.json").is_file()


@pytest.fixture
def finished_with_ratings(make_group):
    """Small study with two raters, after the group level."""
    group = make_group(participants=4)
    rate(group, _01="pass", _02="fail", _03="fail", _04="pass")
    rate(group, "CD", _01="pass", _02="fail", _03="pass")
    name = "sub-02_ses-1_task-rest_desc-carpet_bold"
    store_rating(group.out, "CD", Rating(name, "fail", ("motion",), "<b>blurred</b>\n\tvery"))
    ratings_path(group.out, "CD").with_suffix(".json").unlink()  # as downloaded from the browser
    assert group.run() == 0
    return group


def test_failed_runs_are_left_out_of_tables_and_sections_on_request(finished_with_ratings):
    group = finished_with_ratings
    assert len(group.rows("group_bold.tsv")) == 8
    assert group.run("--exclude-failed") == 0
    for name in ("group_bold.tsv", "phenotype/neurostorm_madeage.tsv"):
        rows = group.rows(name)
        assert len(rows) == 6
        assert not {("sub-02", "1"), ("sub-03", "1")} & {(row["participant_id"], row["ses"]) for row in rows}
    assert len(group.rows("group_runs.tsv")) == 8
    assert "2 runs rated as failed, left out of all other sections and tables." in group.page()
    assert len(group.rows("ratings/include.tsv")) == 8


def test_the_group_level_works_if_all_runs_failed(make_group):
    group = make_group(participants=2, sessions=1)
    for label in ("01", "02"):
        store_rating(group.out, "AB", Rating(f"sub-{label}_task-rest_desc-carpet_bold", "fail"))
    assert group.run("--exclude-failed") == 0
    assert not (group.out / "group_bold.tsv").exists()


def test_damaged_and_missing_ratings_are_errors(make_group, capsys):
    group = make_group(participants=2, sessions=1)
    assert group.run("--exclude-failed") == NoInputError.exit_code
    assert "--exclude-failed requires" in capsys.readouterr().err
    ratings_path(group.out, "AB").parent.mkdir()
    ratings_path(group.out, "AB").write_text("damaged\n")
    assert group.run() == BadDataError.exit_code
    assert "rater-AB_ratings.tsv: damaged table" in capsys.readouterr().err


def test_the_participant_level_refuses_the_option(make_group, capsys):
    from bids_app.cli.neurostorm import main

    group = make_group(participants=2, sessions=1)
    assert main([str(group.raw), str(group.out), "participant", "--exclude-failed"]) == 64
    assert "--exclude-failed is an option of the group level" in capsys.readouterr().err


def test_outdated_ratings_are_named_and_do_not_count(make_group):
    group = make_group(participants=2, sessions=1)
    name = "sub-01_task-rest_desc-carpet_bold"
    figure = group.out / "sub-01" / "figures" / f"{name}.svg"
    store_rating(group.out, "AB", Rating(name, "fail", figure_hash="0" * 16))
    figure.parent.mkdir()
    figure.write_text("<svg/>")
    cohort = group.write_tables()
    found = read_group_ratings(group.out, cohort)
    assert (found.outdated, found.runs) == ([name], {})
    assert without_failed(cohort, found).runs == cohort.runs
    assert f"1 figure changed after the rating, which does not count; rate again: {name}." in [
        remark.text for remark in ratings_section(cohort, found).remarks
    ]


def test_without_ratings_the_section_says_so():
    cohort = cohort_of(n=2)
    section = ratings_section(cohort, GroupRatings())
    assert "not been rated" in section.paragraphs[0]
    assert not section.tables
    assert module.INCLUDE.startswith("ratings/")
