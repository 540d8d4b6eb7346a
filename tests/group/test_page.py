"""What the group's page finds: motion in answers, differing sites, exchanged participants, unreliable answers."""

import json
import re
import sys
from types import ModuleType

import numpy as np
import pytest

from bids_app.group.predictions import answers_of, beside_traits
from bids_app.group.quality import motion_section, quality_section
from bids_app.group.reliability import reliability_section, tables_of_sessions
from bids_app.group.similarity import identity_section, kinds_of, map_section
from bids_app.group.sites import sites_section


@pytest.fixture(autouse=True)
def without_figures(request, monkeypatch):
    """Figures take most of the time, and have tests of their own; the finished page has them."""
    for module, names in {
        "similarity": ("plot_clouds", "plot_identity", "plot_similarities"),
        "quality": ("plot_distributions", "plot_pairs"),
        "reliability": ("plot_pairs",),
        "sites": ("plot_sites",),
    }.items():
        for name in names:
            monkeypatch.setattr(f"bids_app.group.{module}.{name}", lambda *_, **__: None)


def remarks(section):
    return {remark.level: remark.text for remark in section.remarks}


def table(section, title):
    return next(table for table in section.tables if table.title.startswith(title))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_page_is_complete_and_light(finished):
    text = finished.page()
    assert len(text) < 300_000
    assert "14 participants with 28 BOLD runs in 2 sessions: 28 ok." in text
    sections = re.findall(r'<section id="(\w+)">', text)
    assert sections == [
        "summary", "runs", "answers", "quality", "motion", "sites", "map", "identity", "reliability", "about",
    ]  # fmt: skip
    figures = re.findall(r'<img [^>]*src="([^"]+)"', text)
    assert len(figures) == 8
    for name in (*figures, *re.findall(r'href="([^"#]+\.(?:tsv|h5))"', text)):
        assert (finished.out / name).is_file(), name
        assert not name.endswith(".svg") or (finished.out / name).stat().st_size < 1_000_000


def test_the_same_derivatives_give_the_same_page(finished):
    page = finished.page()
    assert finished.run() == 0
    assert finished.page() == page


def test_an_answer_that_follows_motion_is_warned_of(make_group):
    group = make_group(participants=60, sessions=1, motion_in_age=300)
    section = motion_section(group.gather(), group.out)
    text = remarks(section)["bad"]
    r, low, high = map(float, re.search(r"r = ([\d.]+) \(([\d.]+) to ([\d.]+)\)", text).groups())
    assert 0.3 < low < r < high < 1
    assert "madeage: age (years) follows head motion" in text


def test_an_answer_that_does_not_is_not(make_group):
    group = make_group(participants=60, sessions=1)
    assert set(remarks(motion_section(group.gather(), group.out))) == {"good"}


def test_participants_count_once_however_many_runs_they_have(make_group):
    group = make_group(participants=20, sessions=3)
    section = motion_section(group.gather(), group.out)
    assert table(section, "Correlation").rows[0][3].text == "20"


def test_a_run_that_stands_out_is_named_and_linked(make_group):
    group = make_group(participants=30, sessions=1)
    path = next(group.out.glob("sub-07/func/*_metrics.json"))
    edit(path, lambda content: content["quality"].update(fd_mean=2.5, tsnr=5, snr=60))
    section = quality_section(group.gather(), group.out)
    row = table(section, "Runs that stand out").rows[0]
    assert (row[0].text, row[0].url, row[1].text) == ("sub-07_task-rest", "sub-07.html", "2")  # a high SNR is no fault
    assert "Mean framewise displacement 2.5 mm" in row[3].text
    assert "1 run of odd quality, first of all sub-07_task-rest (Mean" in section.remarks[0].text
    found = [row for row in group.rows("group_outliers.tsv") if row["run"] == "sub-07_task-rest"]
    assert {(row["measure"], row["outlier"], row["beyond_limit"]) for row in found} == {
        ("fd_mean", "yes", "yes"), ("tsnr", "yes", "yes"),
    }  # fmt: skip


def test_of_few_runs_none_stands_out(make_group):
    group = make_group(participants=5, sessions=1)
    section = quality_section(group.gather(), group.out)
    assert "none can be said to stand out" in section.paragraphs[0]
    assert not table(section, "Runs that stand out").rows


def test_sites_that_differ_are_found_and_p_is_corrected(make_group):
    group = make_group(participants=45, sessions=1, site_in_embedding=1.5)
    for number in range(3, 46, 3):  # all of the first site
        path = next(group.out.glob(f"sub-{number:02d}/func/*_metrics.json"))
        edit(path, lambda content: content["quality"].update(tsnr=content["quality"]["tsnr"] - 30))
    section = sites_section(group.gather(), group.out)
    rows = {row[0].text: row for row in table(section, "Differences").rows}
    differ = {name for name, row in rows.items() if row[5].text == "sites differ"}
    assert differ == {"Temporal SNR", "Embedding of made, global", "Embedding of made, voxel"}
    assert float(rows["Temporal SNR"][1].text) > 0.5
    assert f"{len(rows)} tests" in section.paragraphs[0]


def test_without_a_column_of_sites_it_is_said(make_group):
    group = make_group(participants=4, sessions=1)
    (group.raw / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\n")
    section = sites_section(group.gather(), group.out)
    assert "no column that tells sites" in section.paragraphs[0]


def test_exchanged_participants_are_named_with_their_runs(make_group):
    group = make_group(participants=16, sessions=3, swapped=((4, 11, 2),))
    cohort = group.gather()
    section = identity_section(cohort, kinds_of(cohort), group.out)
    assert remarks(section)["bad"] == "Runs of sub-04 and sub-11 may have been swapped: 2 look like the other's."
    (row,) = table(section, "Suspected swaps").rows
    assert [cell.text for cell in row[:3]] == ["sub-04", "sub-11", "yes"]
    assert row[4].text == "sub-04_ses-2_task-rest, sub-11_ses-2_task-rest"
    margins = {row["run"]: float(row["margin"]) for row in group.rows("group_identity.tsv")}
    exchanged = {"sub-04_ses-2_task-rest", "sub-11_ses-2_task-rest"}
    assert set(sorted(margins, key=margins.__getitem__)[-2:]) == exchanged


def test_without_a_swap_none_is_named(finished):
    cohort = finished.gather()
    section = identity_section(cohort, kinds_of(cohort), finished.out)
    assert "No run is suspected" in remarks(section)["good"]


def test_where_nobody_is_found_again_swaps_are_not_looked_for(make_group):
    group = make_group(participants=16, noise=50)
    cohort = group.gather()
    section = identity_section(cohort, kinds_of(cohort), group.out)
    assert "Swapped participants were not looked for" in remarks(section)["warn"]
    assert not [table for table in section.tables if table.title.startswith("Suspected")]


def test_reliability_of_answers_is_that_of_the_simulation(make_group):
    group = make_group(participants=60)
    section = reliability_section(group.gather(), group.out)
    cells = [cell.text for cell in table(section, "Answers over sessions").rows[0]]
    low, high = map(float, cells[2].split(" to "))
    truth = 300 / (300 + 16)  # ages drawn evenly from 20 to 80, and an error of 4 years
    assert low < truth < high
    assert high - low < 0.1
    assert cells[5:] == ["60", "2"]
    assert "0.950" in [cell.text for cell in table(section, "Embeddings over the halves").rows[0]]


def test_participants_who_miss_a_session_are_left_out_of_its_table(make_group):
    group = make_group(participants=10, sessions=3)
    for path in group.out.glob("sub-0[12]/ses-2/func/*_predictions.*"):
        path.unlink()
    cohort = group.gather()
    (found,) = tables_of_sessions(cohort, answers_of(cohort)[0]).values()
    assert found.shape == (8, 3)


def test_umap_is_drawn_where_it_is_installed(make_group, monkeypatch):
    group = make_group(participants=20, sessions=1)
    cohort = group.gather()
    monkeypatch.setitem(sys.modules, "umap", None)
    section = map_section(cohort, kinds_of(cohort), group.out)
    assert "here it is not" in section.paragraphs[0]
    assert len(section.pictures) == 2

    class UMAP:
        def __init__(self, **options):
            assert options["random_state"] == 0

        def fit_transform(self, values):
            assert values.shape == (20, 16)
            return np.zeros((20, 2))

    module = ModuleType("umap")
    module.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", module)
    section = map_section(cohort, kinds_of(cohort), group.out)
    assert [picture.title.endswith("UMAP") for picture in section.pictures] == [False, True, False, True]


def test_one_run_alone_makes_a_page(make_group):
    group = make_group(participants=1, sessions=1)
    assert group.run() == 0
    assert "1 participant with 1 BOLD run: 1 ok." in group.page()


def test_names_from_files_do_not_become_markup(make_group):
    group = make_group(participants=2, sessions=1)
    evil = "<img src=x onerror=alert(1)>"
    failed = {"stem": "sub-01_task-rest", "status": "failed", "reason": evil, "hint": evil, "exit_code": 65}
    group.study.write_log(group.out, "01", [failed], when="20270101-000000")
    assert group.run() == 0
    assert evil not in group.page()
    assert "&lt;img src=x" in group.page()


def test_what_an_earlier_run_left_is_not_taken_for_this_ones(make_group):
    group = make_group(participants=2, sessions=1)
    own = ["group_identity.tsv", "group_outliers.tsv", "group_embeddings.h5", "group_figures/umap1.svg"]
    others = ["group_notes.txt", "group_analysis.tsv"]
    (group.out / "group_figures").mkdir()
    for name in (*own, *others):
        (group.out / name).write_text("of yesterday")
    for path in group.out.glob("sub-*/func/*_embeddings.*"):
        path.unlink()
    assert group.run() == 0
    assert (group.out / "group_outliers.tsv").read_text() != "of yesterday"
    assert not any((group.out / name).exists() for name in own if name != "group_outliers.tsv")
    assert all((group.out / name).exists() for name in others)


def test_answers_are_compared_with_the_participants_own_age(make_group):
    group = make_group(participants=40)
    (found,) = beside_traits(group.gather())
    assert (found.adapter, found.column, found.estimate.n) == ("madeage", "age", 40)
    assert found.estimate.low > 0.9
    assert found.error == pytest.approx(4 * np.sqrt(2 / np.pi / 2), rel=0.3)  # of two runs, each 4 years off


def test_answers_are_compared_with_the_participants_own_class(make_group):
    group = make_group(participants=6, sessions=1)
    rows = ["participant_id\tSex", *(f"sub-{i:02d}\t{'F' if i < 3 else 'm'}" for i in range(1, 7))]
    (group.raw / "participants.tsv").write_text("\n".join(rows) + "\n")
    for path in group.out.glob("sub-*/func/*_predictions.tsv"):
        said = "F" if path.name < "sub-05" else "M"
        head, clips = "clip\tonset\tduration\tlabel\tp_F\tp_M", ("mean\t0.0\t16.0", "0\t0.0\t16.0")
        path.write_text("\n".join([head, *(f"{clip}\t{said}\t0.5\t0.5" for clip in clips)]) + "\n")
        edit(path.with_suffix(".json"), lambda content: content.update(Target="sex", Task="classification"))
    (found,) = beside_traits(group.gather())
    assert found.estimate.value == pytest.approx(4 / 6)
    assert found.measure == "share that is right"
