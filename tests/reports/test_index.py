"""Index of the output folder: all participants and runs, kept up to date by each report."""

import json
import re
import threading

import pytest

from bids_app.reports.index import INDEX, IndexRow, read_rows, update_index


def write_report(out, *participants):
    out.mkdir(exist_ok=True)
    for participant in participants:
        (out / f"{participant}.html").write_text("<html></html>")
        (out / participant.partition("_")[0]).mkdir(exist_ok=True)


def rows_of(out):
    return {row.run: row for row in read_rows(out / INDEX)}


def test_rows_are_read_back_as_written(tmp_path):
    write_report(tmp_path, "sub-01")
    row = IndexRow("sub-01_task-rest", "ok", "warn", "pass", {"fd_mean": 0.25, "tsnr": 50.0})
    update_index(tmp_path, [row])
    assert read_rows(tmp_path / INDEX) == [row]


def test_a_metric_that_is_no_number_is_left_out(tmp_path):
    write_report(tmp_path, "sub-01")
    update_index(tmp_path, [IndexRow("sub-01_task-rest", "ok", quality={"fd_mean": float("nan"), "tsnr": 50.0})])
    assert rows_of(tmp_path)["sub-01_task-rest"].quality == {"tsnr": 50.0}


def test_a_report_replaces_the_rows_of_its_participant_only(tmp_path):
    write_report(tmp_path, "sub-01", "sub-02")
    update_index(tmp_path, [IndexRow("sub-01_task-a", "ok"), IndexRow("sub-02_task-a", "failed")])
    update_index(tmp_path, [IndexRow("sub-01_task-b", "ok")])
    assert set(rows_of(tmp_path)) == {"sub-01_task-b", "sub-02_task-a"}


def test_a_participant_whose_report_is_gone_is_left_out(tmp_path):
    write_report(tmp_path, "sub-01", "sub-02")
    update_index(tmp_path, [IndexRow("sub-01_task-a", "ok"), IndexRow("sub-02_task-a", "ok")])
    (tmp_path / "sub-02.html").unlink()
    update_index(tmp_path, [IndexRow("sub-01_task-a", "ok")])
    assert set(rows_of(tmp_path)) == {"sub-01_task-a"}


def test_a_participant_whose_outputs_are_gone_is_left_out(tmp_path):
    write_report(tmp_path, "sub-01", "sub-02")
    (tmp_path / "sub-02").rmdir()
    text = update_index(tmp_path, [IndexRow("sub-01_task-a", "ok")]).read_text()
    assert set(rows_of(tmp_path)) == {"sub-01_task-a"}
    assert "sub-02" not in text


def test_without_scripts_the_participants_are_links(tmp_path):
    write_report(tmp_path, "sub-01")
    text = update_index(tmp_path, [IndexRow("sub-01_task-a", "ok"), IndexRow("sub-02_task-a", "missing")]).read_text()
    plain = "".join(re.findall("<noscript>(.*?)</noscript>", text, re.DOTALL))
    assert '<li><a href="sub-01.html">sub-01</a></li><li>sub-02 (no report)</li>' in plain


@pytest.mark.parametrize("content", ["", "<html>", '<script type="application/json" id="index-rows">[[1]]</script>'])
def test_reports_without_rows_are_listed_after_damage_to_the_page(tmp_path, content):
    write_report(tmp_path, "sub-01", "sub-02", "sub-02_ses-1")
    (tmp_path / INDEX).write_text(content)
    update_index(tmp_path, [IndexRow("sub-01_task-a", "ok")])
    assert set(rows_of(tmp_path)) == {"sub-01_task-a", "sub-02"}


def test_two_writers_at_once_lose_no_participant(tmp_path):
    people = [f"sub-{i:02d}" for i in range(8)]
    write_report(tmp_path, *people)
    threads = [threading.Thread(target=update_index, args=(tmp_path, [IndexRow(f"{p}_task-a", "ok")])) for p in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(rows_of(tmp_path)[f"{p}_task-a"].status == "ok" for p in people)


def test_runs_link_to_the_report_of_their_session_and_counts_to_the_filter(tmp_path):
    write_report(tmp_path, "sub-01", "sub-01_ses-2")
    rows = [IndexRow(f"sub-01_ses-{i}_task-a", "ok", "refuse") for i in (1, 2)]
    text = update_index(tmp_path, rows, "My <study>").read_text()
    table = json.loads(re.search(r'id="run-table">(.*?)</script>', text)[1])
    assert [table["page"]["levels"][code] for code in table["page"]["values"]] == ["sub-01.html", "sub-01_ses-2.html"]
    assert '<a href="#wall&amp;is-verdict=refuse">2</a>' in text
    assert "My &lt;study&gt;" in text


def test_other_files_are_linked_if_they_exist(tmp_path):
    write_report(tmp_path, "sub-01")
    (tmp_path / "group.html").touch()
    text = update_index(tmp_path, [IndexRow("sub-01_task-a", "ok")]).read_text()
    assert 'href="group.html"' in text
    assert "review.html" not in text
