"""Sections of the group report: head motion, site effects, swapped participants, reliability."""

import json
import re
import sys
from types import ModuleType

import numpy as np
import pytest

from bids_app.group.predictions import collect_predictions, compare_with_phenotypes
from bids_app.group.quality import motion_section, quality_section
from bids_app.group.reliability import reliability_section, session_tables
from bids_app.group.similarity import collect_embeddings, embedding_maps, identity_section, map_section
from bids_app.group.sites import sites_section


def remarks(section):
    return {remark.level: remark.text for remark in section.remarks}


def table(section, title):
    return next(table for table in section.tables if table.title.startswith(title))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_page_is_complete_and_small(finished):
    text = finished.page()
    assert len(text) < 300_000
    assert "14 participants with 28 BOLD runs in 2 sessions: 28 ok." in text
    sections = re.findall(r'<section id="(\w+)">', text)
    assert sections == [
        "summary", "wall", "runs", "ratings", "predictions", "quality", "motion", "sites", "map", "identity",
        "reliability", "about",
    ]  # fmt: skip
    figures = re.findall(r'<img [^>]*src="([^"]+)"', text)
    assert len(figures) == 8
    for name in (*figures, *re.findall(r'href="([^"#]+\.(?:tsv|h5))"', text)):
        assert (finished.out / name).is_file(), name
        assert not name.endswith(".svg") or (finished.out / name).stat().st_size < 1_000_000


def test_the_page_is_reproducible(finished):
    page = finished.page()
    assert finished.run() == 0
    assert finished.page() == page


def test_a_prediction_correlated_with_motion_is_flagged(make_group):
    group = make_group(participants=60, sessions=1, motion_in_age=300)
    section = motion_section(group.write_tables())
    text = remarks(section)["bad"]
    r, low, high = map(float, re.search(r"r = ([\d.]+) \(([\d.]+) to ([\d.]+)\)", text).groups())
    assert 0.3 < low < r < high < 1
    assert "madeage: age (years) correlates with head motion" in text


def test_an_uncorrelated_prediction_is_not_flagged(make_group):
    group = make_group(participants=60, sessions=1)
    assert set(remarks(motion_section(group.write_tables()))) == {"good"}


def test_runs_are_averaged_by_participant(make_group):
    group = make_group(participants=20, sessions=3)
    section = motion_section(group.write_tables())
    assert table(section, "Correlation").rows[0][3].text == "20"


def test_outlier_runs_are_listed_and_linked(make_group):
    group = make_group(participants=30, sessions=1)
    path = next(group.out.glob("sub-07/func/*_metrics.json"))
    edit(path, lambda content: content["quality"].update(fd_mean=2.5, tsnr=5, snr=60))
    section = quality_section(group.write_tables(), group.out)
    row = table(section, "Outlier runs").rows[0]
    assert (row[0].text, row[0].url, row[1].text) == (
        "sub-07_task-rest",
        "sub-07.html",
        "2",
    )  # a high SNR is not an outlier
    assert "Mean framewise displacement 2.5 mm" in row[3].text
    assert "1 outlier run; largest deviations: sub-07_task-rest (Mean" in section.remarks[0].text
    found = [row for row in group.rows("group_outliers.tsv") if row["run"] == "sub-07_task-rest"]
    assert {(row["measure"], row["outlier"], row["beyond_limit"]) for row in found} == {
        ("fd_mean", "yes", "yes"), ("tsnr", "yes", "yes"),
    }  # fmt: skip


def test_a_difference_without_practical_size_is_no_outlier(make_group):
    group = make_group(participants=30, sessions=1)
    for number, path in enumerate(sorted(group.out.glob("sub-*/func/*_metrics.json"))):
        coverage = 0.9999 - 0.00001 * (number % 5)
        edit(path, lambda content, value=coverage: content["quality"].update(coverage=value))
    changed = {"sub-07": 0.999, "sub-08": 0.95}
    for participant, coverage in changed.items():
        path = next(group.out.glob(f"{participant}/func/*_metrics.json"))
        edit(path, lambda content, value=coverage: content["quality"].update(coverage=value))
    section = quality_section(group.write_tables(), group.out)
    found = {row[0].text: row[3].text for row in table(section, "Outlier runs").rows}
    assert "Brain coverage" in found["sub-08_task-rest"]
    assert "Brain coverage" not in found.get("sub-07_task-rest", "")


def test_outlier_detection_requires_enough_runs(make_group):
    group = make_group(participants=5, sessions=1)
    section = quality_section(group.write_tables(), group.out)
    assert "Outlier detection requires at least 8 runs" in section.paragraphs[0]
    assert not table(section, "Outlier runs").rows


def test_site_effects_are_found_and_p_is_corrected(make_group):
    group = make_group(participants=45, sessions=1, site_in_embedding=1.5)
    for number in range(3, 46, 3):  # all of the first site
        path = next(group.out.glob(f"sub-{number:02d}/func/*_metrics.json"))
        edit(path, lambda content: content["quality"].update(tsnr=content["quality"]["tsnr"] - 30))
    section = sites_section(group.write_tables())
    rows = {row[0].text: row for row in table(section, "Differences").rows}
    differ = {name for name, row in rows.items() if row[5].text == "sites differ"}
    assert differ == {"Temporal SNR", "Embedding of made, global", "Embedding of made, voxel"}
    assert float(rows["Temporal SNR"][1].text) > 0.5
    assert f"{len(rows)} tests" in section.paragraphs[0]


def test_a_missing_site_column_is_reported(make_group):
    group = make_group(participants=4, sessions=1)
    (group.raw / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\n")
    section = sites_section(group.write_tables())
    assert "no column with sites" in section.paragraphs[0]


def test_swapped_participants_are_listed_with_their_runs(make_group):
    group = make_group(participants=16, sessions=3, swapped=((4, 11, 2),))
    cohort = group.write_tables()
    section = identity_section(cohort, collect_embeddings(cohort), group.out)
    assert remarks(section)["bad"] == "Runs of sub-04 and sub-11 may have been swapped (2 runs)."
    (row,) = table(section, "Suspected swaps").rows
    assert [cell.text for cell in row[:3]] == ["sub-04", "sub-11", "yes"]
    assert row[4].text == "sub-04_ses-2_task-rest, sub-11_ses-2_task-rest"
    margins = {row["run"]: float(row["margin"]) for row in group.rows("group_identity.tsv")}
    swapped = {"sub-04_ses-2_task-rest", "sub-11_ses-2_task-rest"}
    assert set(sorted(margins, key=margins.__getitem__)[-2:]) == swapped


def test_copies_of_a_series_under_other_labels_are_named_on_page_and_terminal(make_group, caplog):
    group = make_group(participants=4, sessions=1)
    cohort = group.write_tables()
    first, copy = cohort.runs[0], cohort.runs[2]
    copy.vectors.update(first.vectors)
    section = identity_section(cohort, collect_embeddings(cohort), group.out)
    names = f"{first.participant} = {copy.participant}"
    assert names in remarks(section)["bad"]
    assert names in caplog.text


def test_no_swap_is_reported_without_a_swap(finished):
    cohort = finished.write_tables()
    section = identity_section(cohort, collect_embeddings(cohort), finished.out)
    assert "No swapped runs suspected" in remarks(section)["good"]


def test_swaps_are_not_looked_for_between_two_participants(make_group):
    group = make_group(participants=2, sessions=3)
    cohort = group.write_tables()
    found = remarks(identity_section(cohort, collect_embeddings(cohort), group.out))
    assert "at least 3 participants are required" in found["warn"]
    assert "No swapped runs" not in found.get("good", "")


def test_the_accuracy_of_chance_stands_beside_the_rank_1_accuracy(finished):
    cohort = finished.write_tables()
    found = table(identity_section(cohort, collect_embeddings(cohort), finished.out), "Re-identification")
    assert found.headings[3] == "Chance"
    assert [row[3].text for row in found.rows] == ["0.071", "0.071"]  # one of 14 runs of the other session


def test_swap_detection_is_skipped_without_reidentification(make_group):
    group = make_group(participants=16, noise=50)
    cohort = group.write_tables()
    section = identity_section(cohort, collect_embeddings(cohort), group.out)
    assert "Swap detection was skipped" in remarks(section)["warn"]
    assert not [table for table in section.tables if table.title.startswith("Suspected")]


def test_reliability_of_predictions_equals_the_simulation(make_group):
    group = make_group(participants=60)
    section = reliability_section(group.write_tables())
    cells = [cell.text for cell in table(section, "Test-retest reliability of predictions").rows[0]]
    low, high = map(float, cells[2].split(" to "))
    truth = 300 / (300 + 16)  # ages sampled uniformly from 20 to 80, error SD 4 years
    assert low < truth < high
    assert high - low < 0.1
    assert cells[5:] == ["60", "2"]
    assert "0.950" in [cell.text for cell in table(section, "Split-half reliability").rows[0]]


def test_participants_with_missing_sessions_are_excluded(make_group):
    group = make_group(participants=10, sessions=3)
    for path in group.out.glob("sub-0[12]/ses-2/func/*_predictions.*"):
        path.unlink()
    cohort = group.write_tables()
    (found,) = session_tables(cohort, collect_predictions(cohort)[0]).values()
    assert found.shape == (8, 3)


def test_umap_is_plotted_if_installed(make_group, monkeypatch):
    group = make_group(participants=20, sessions=1)
    cohort = group.write_tables()
    monkeypatch.setitem(sys.modules, "umap", None)
    section = map_section(cohort, embedding_maps(collect_embeddings(cohort)))
    assert "Install the package umap-learn" in section.paragraphs[0]
    assert len(section.figures) == 2

    class UMAP:
        def __init__(self, **options):
            assert options["random_state"] == 0

        def fit_transform(self, values):
            assert values.shape == (20, 16)
            return np.zeros((20, 2))

    module = ModuleType("umap")
    module.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", module)
    section = map_section(cohort, embedding_maps(collect_embeddings(cohort)))
    assert [figure.title.endswith("UMAP") for figure in section.figures] == [False, True, False, True]


def test_a_page_of_one_run(make_group):
    group = make_group(participants=1, sessions=1)
    assert group.run() == 0
    assert "1 participant with 1 BOLD run: 1 ok." in group.page()


def test_text_from_files_is_escaped(make_group):
    group = make_group(participants=2, sessions=1)
    evil = "<img src=x onerror=alert(1)>"
    failed = {"stem": "sub-01_task-rest", "status": "failed", "reason": evil, "hint": evil, "exit_code": 65}
    group.study.write_log(group.out, "01", [failed], when="20270101-000000")
    assert group.run() == 0
    assert evil not in group.page()
    assert "&lt;img src=x" in group.page()


def test_runs_without_results_are_counted_on_the_terminal(make_group, caplog):
    group = make_group(participants=3, sessions=1)
    for path in (group.out / "sub-02" / "func").iterdir():
        path.unlink()
    with caplog.at_level("INFO"):
        assert group.run() == 0
    assert "3 runs of 3 participants (1 missing)" in caplog.text


def test_reports_of_participants_without_outputs_are_named(make_group, caplog):
    group = make_group(participants=2, sessions=1)
    for name in ("sub-01.html", "sub-77.html", "sub-77_ses-1.html"):
        (group.out / name).touch()
    assert group.run() == 0
    assert "delete them if they were withdrawn: sub-77.html, sub-77_ses-1.html" in caplog.text


def test_outdated_files_are_removed(make_group):
    group = make_group(participants=2, sessions=1)
    own = [
        "group_identity.tsv",
        "group_identity.json",
        "group_outliers.tsv",
        "group_embeddings.h5",
        "group_figures/umap1.svg",
    ]
    others = ["group_notes.txt", "group_analysis.tsv"]
    (group.out / "group_figures").mkdir()
    for name in (*own, *others):
        (group.out / name).write_text("outdated")
    for path in group.out.glob("sub-*/func/*_embeddings.*"):
        path.unlink()
    assert group.run() == 0
    assert (group.out / "group_outliers.tsv").read_text() != "outdated"
    assert not any((group.out / name).exists() for name in own if name != "group_outliers.tsv")
    assert all((group.out / name).exists() for name in others)


def test_a_page_of_selected_participants_says_so(make_group, caplog):
    group = make_group(participants=3, sessions=1)
    assert group.run("--participant-label", "02") == 0
    sentence = "Page and tables are of 1 of 3 participants (--participant-label 02)."
    assert sentence in group.page()
    assert sentence in caplog.text
    assert group.run() == 0
    assert "Page and tables are of" not in group.page()


def test_predictions_are_compared_with_the_age_column(make_group):
    group = make_group(participants=40)
    (found,) = compare_with_phenotypes(group.write_tables())
    assert (found.adapter, found.column, found.estimate.n) == ("madeage", "age", 40)
    assert found.estimate.low > 0.9
    assert found.error == pytest.approx(4 * np.sqrt(2 / np.pi / 2), rel=0.3)  # mean of two runs, error SD 4 years


def test_predictions_are_compared_with_the_class_column(make_group):
    group = make_group(participants=6, sessions=1)
    rows = ["participant_id\tSex", *(f"sub-{i:02d}\t{'F' if i < 3 else 'm'}" for i in range(1, 7))]
    (group.raw / "participants.tsv").write_text("\n".join(rows) + "\n")
    for path in group.out.glob("sub-*/func/*_predictions.tsv"):
        label = "F" if path.name < "sub-05" else "M"
        head, clips = "clip\tonset\tduration\tlabel\tp_F\tp_M", ("mean\t0.0\t16.0", "0\t0.0\t16.0")
        path.write_text("\n".join([head, *(f"{clip}\t{label}\t0.5\t0.5" for clip in clips)]) + "\n")
        edit(path.with_suffix(".json"), lambda content: content.update(Target="sex", Task="classification"))
    (found,) = compare_with_phenotypes(group.write_tables())
    assert found.estimate.value == pytest.approx(4 / 6)
    assert found.measure == "accuracy"
