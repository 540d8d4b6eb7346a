"""Protocols of the papers: option files that the commands accept, and our numbers beside the published ones."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.cli.train import main as train
from bids_app.clips import MODEL_GRID_AFFINE
from bids_app.errors import BadDataError, NoInputError, UsageError
from tests.helpers.paths import ROOT
from tests.helpers.scripts import BENCHMARKS, load_benchmark

FILES = sorted((BENCHMARKS / "papers").glob("*.args"))
PRETRAINING = [path for path in FILES if path.name.endswith(".pretrain.args")]
ROWS = [path for path in FILES if path not in PRETRAINING]
SETUP = {
    "Target": "group",
    "Task": "classification",
    "Encoder": "neurostorm-5ds (sha256 0123456789ab…)",
    "Strategy": "linear",
    "Normalisation": "global",
    "Recipe": "published",
    "Folds": "5, by participant, repeated 10 times",
    "Participants": "4",
}


@pytest.fixture(scope="module")
def papers():
    """The benchmark."""
    return load_benchmark("papers")


def write_result(folder: Path, scores: dict[str, tuple[float, float, float]], right=(), **setup: str) -> Path:
    """Write results as evaluate does; ``right``: whether the encoder was right for each participant."""
    folder.mkdir(parents=True)
    rows = [f"{name.replace(' ', chr(9))}\t{v}\t{low}\t{high}" for name, (v, low, high) in scores.items()]
    (folder / "scores.tsv").write_text("method\tscore\tvalue\tlow\thigh\n" + "\n".join(rows) + "\n")
    lines = [f"{name}\t{value}" for name, value in (SETUP | setup).items()]
    (folder / "setup.tsv").write_text("name\tvalue\n" + "\n".join(lines) + "\n")
    answers = [
        f"sub-{k:02d}\tADHD\t{0.8 if is_right else 0.2}\t{0.2 if is_right else 0.8}" for k, is_right in enumerate(right)
    ]
    (folder / "answers.tsv").write_text(
        "participant_id\ttruth\tencoder_p_ADHD\tencoder_p_control\n" + "\n".join(answers) + "\n"
    )
    return folder


def lines_of(text: str, row: str) -> list[list[str]]:
    """Return the cells of the lines of a row."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {row} |")]


def test_each_row_has_an_option_file_and_each_option_file_a_row(papers) -> None:
    published = papers.read_published()
    assert set(published.rows) == {path.stem for path in ROWS}
    before = {row.before for row in published.rows.values() if row.before}
    assert before <= {path.stem for path in PRETRAINING}
    for row in published.rows.values():
        assert row.dataset in published.datasets
        assert row.source in published.sources


def test_the_guide_names_the_data_of_each_row(papers) -> None:
    table = (ROOT / "docs" / "reproduce.md").read_text().partition("## 1. Data")[2].partition("## 2.")[0]
    patterns = re.findall(r"`([\w*-]+)`", table)
    assert [name for name in papers.read_published().rows if not any(fnmatch(name, p) for p in patterns)] == []
    assert "(docs/reproduce.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_options_of_a_row_are_accepted_up_to_the_missing_data(path: Path, tmp_path, capsys) -> None:
    command = ["evaluate", str(tmp_path / "no-data"), f"@{path}", "--model", "demo", "--output", str(tmp_path / "out")]
    assert train(command) == 66
    assert "no-data: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("path", PRETRAINING, ids=lambda path: path.stem)
def test_options_of_a_pretraining_are_accepted_up_to_the_missing_data(path: Path, tmp_path, capsys) -> None:
    labels = np.zeros((96, 96, 96), np.int16)
    labels[20:40, 20:40, 20:40], labels[50:70, 50:70, 50:70] = 1, 2
    nib.save(nib.Nifti1Image(labels, MODEL_GRID_AFFINE), tmp_path / "atlas.nii.gz")
    atlas = ["--atlas", str(tmp_path / "atlas.nii.gz")] if "--mask atlas" in path.read_text() else []
    output = ["--output", str(tmp_path / "encoder.safetensors")]
    assert train(["pretrain", str(tmp_path / "no-data"), f"@{path}", *atlas, *output]) == 66
    assert "no-data: no such folder" in capsys.readouterr().err


def test_recipes_are_the_published_ones(papers) -> None:
    """All choices are those of the published recipe; one row is about another normalisation."""
    for row in papers.read_published().rows.values():
        setup = papers.expected_setup(row)
        expected = "published, with normalisation voxel" if row.name == "states21-voxel" else "published"
        assert setup["Recipe"] == expected
    assert papers.expected_setup(papers.read_published().rows["identity"])["Gallery"] == "100 participants"


def test_only_figures_with_a_source_are_given(papers) -> None:
    """The tables of the papers could not be read: a figure that appears here needs its source in this list."""
    stated = {
        (row.source, row.name)
        for row in papers.read_published().rows.values()
        if any(value is not None for value in row.figures.values())
    }
    assert {source for source, _ in stated} == {"frozen", "states21"}
    assert [d.value for d in papers.read_published().differences] == [0.0423]


def test_ours_stands_beside_the_published_figure_with_its_interval(papers, tmp_path, capsys) -> None:
    scores = {"encoder balanced_accuracy": (0.55, 0.52, 0.58), "connectivity balanced_accuracy": (0.5, 0.45, 0.55)}
    write_result(tmp_path / "frozen-abide", scores)
    assert papers.main([str(tmp_path), "--rows", "frozen-abide", "frozen-adni"]) == 0
    text = capsys.readouterr().out
    found = lines_of(text, "frozen-abide")[0]
    assert found[1:5] == ["ABIDE", "diagnosis", "balanced_accuracy", "0.535"]
    assert found[5:] == ["0.550 (0.520 to 0.580)", "within", "not stated / 4", "as in the file"]
    assert lines_of(text, "frozen-abide, connectivity")[0][4:7] == ["0.598", "0.500 (0.450 to 0.550)", "above ours"]
    assert lines_of(text, "frozen-adni")[0][5] == "no results"
    assert "evaluate DERIVATIVES --raw LABELS @benchmarks/papers/frozen-adni.args --output RESULTS/frozen-adni" in text
    assert "ADNI (adni.loni.usc.edu, application)" in text
    assert "frozen-abide.args" not in text


def test_a_figure_that_is_not_stated_is_not_compared(papers, tmp_path, capsys) -> None:
    write_result(tmp_path / "abide", {"encoder accuracy": (0.6, 0.5, 0.7)}, Strategy="prompt")
    assert papers.main([str(tmp_path / "abide"), "--rows", "abide"]) == 0
    accuracy, auroc = lines_of(capsys.readouterr().out, "abide")
    assert accuracy[4:7] == ["not stated", "0.600 (0.500 to 0.700)", ""]
    assert auroc[5] == "not measured"


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        ({"Strategy": "full"}, "Strategy full instead of linear"),
        ({"Encoder": "demo (sha256 0123456789ab…)"}, "Encoder demo instead of neurostorm-5ds"),
        ({"Recipe": "ours"}, "Recipe ours instead of published"),
        ({"Normalisation": "voxel"}, "Normalisation voxel instead of global"),
        ({"Folds": "3, leave one site out"}, "Folds 3, leave one site out instead of 5, by participant"),
        ({"Folds": "one split, as given"}, "Folds one split, as given instead of 5, by participant"),
        ({"Folds": "2, by participant, repeated 3 times"}, "Folds 2, by participant instead of 5, by participant"),
        ({"Head": "none: zero-shot"}, "Head none: zero-shot instead of trained"),
    ],
)
def test_results_with_other_settings_are_named(papers, tmp_path, setup: dict[str, str], said: str) -> None:
    folder = write_result(tmp_path / "frozen-abide", {"encoder balanced_accuracy": (0.5, 0.4, 0.6)}, **setup)
    assert papers.describe_protocol(papers.read_published().rows["frozen-abide"], papers.read_result(folder)) == said


def test_a_masking_row_with_another_encoder_is_named(papers, tmp_path) -> None:
    row = papers.read_published().rows["masking-atlas"]
    for name, said in (
        ("masking-atlas", "as in the file"),
        ("masking-random", "Encoder masking-random instead of masking-atlas"),
    ):
        encoder = f"{name} (sha256 0123456789ab…)"
        folder = write_result(tmp_path / name / "masking-atlas", {"encoder accuracy": (0.5, 0.4, 0.6)}, Encoder=encoder)
        assert papers.describe_protocol(row, papers.read_result(folder)) == said


def test_differences_are_paired_by_participant(papers, tmp_path, capsys) -> None:
    """Of 40 participants, the second method is wrong in ten that the first has right, and in none otherwise."""
    first = [k % 2 == 0 for k in range(40)]
    second = [is_right and k % 4 == 0 for k, is_right in enumerate(first)]
    for name, right in (("masking-atlas", first), ("masking-random", second)):
        write_result(tmp_path / name, {"encoder accuracy": (np.mean(right), 0.0, 1.0)}, right)
    (mean, low, high), n = papers.paired_difference(
        *(papers.read_result(tmp_path / f"masking-{m}") for m in ("atlas", "random"))
    )
    assert (mean, n) == (0.25, 40)
    error = np.sqrt(0.25 * 0.75 / 40)
    assert (low, high) == (pytest.approx(0.25 - 1.96 * error, abs=0.03), pytest.approx(0.25 + 1.96 * error, abs=0.03))
    assert papers.main([str(tmp_path), "--rows", "masking-atlas", "masking-random"]) == 0
    found = lines_of(capsys.readouterr().out, "masking-atlas minus masking-random")[0]
    assert found[4] == "+0.042"
    assert found[5].startswith("+0.250 (")


def test_differences_of_other_participants_are_refused(papers, tmp_path) -> None:
    results = [
        papers.read_result(write_result(tmp_path / f"{n}", {"encoder accuracy": (0.5, 0, 1)}, [True] * n))
        for n in (4, 6)
    ]
    with pytest.raises(BadDataError, match="2 participants are in one of them only"):
        papers.paired_difference(*results)


def test_results_that_are_no_row_or_twice_the_same_are_refused(papers, tmp_path) -> None:
    names = papers.read_published().rows
    with pytest.raises(NoInputError, match="no such folder"):
        papers.find_results(names, [tmp_path / "none"])
    write_result(tmp_path / "a" / "other", {"encoder accuracy": (0.5, 0, 1)})
    with pytest.raises(UsageError, match="no results of a row"):
        papers.find_results(names, [tmp_path / "a"])
    for folder in "bc":
        write_result(tmp_path / folder / "abide", {"encoder accuracy": (0.5, 0, 1)})
    with pytest.raises(UsageError, match="Two results of abide"):
        papers.find_results(names, [tmp_path / "b", tmp_path / "c"])
    assert list(papers.find_results(names, [tmp_path / "b", tmp_path / "b" / "abide"])) == ["abide"]


def test_labels_of_two_tables_are_joined_and_codes_translated(papers, tmp_path, capsys) -> None:
    (tmp_path / "open.csv").write_text('"Subject","Gender","CogTotalComp_AgeAdj"\n100307,F,101.5\n100408,M,\n')
    (tmp_path / "restricted.csv").write_text("Subject,Age_in_Yrs,Family_ID\n100408,31,51_1\n100307,27,52_2\n")
    output = tmp_path / "labels" / "participants.tsv"
    tables = [str(tmp_path / name) for name in ("open.csv", "restricted.csv")]
    assert papers.main(["--labels", "hcpya", *tables, "--output", str(output)]) == 0
    assert "2 participants" in capsys.readouterr().out
    assert output.read_text().splitlines() == [
        "participant_id\tsex\tcogtotalcomp_ageadj\tage\tfamily",
        "sub-100307\tF\t101.5\t27\t52_2",
        "sub-100408\tM\tn/a\t31\t51_1",
    ]


def test_codes_of_diagnoses_become_labels_and_participants_seven_digits(papers, tmp_path) -> None:
    datasets = papers.read_published().datasets
    table = tmp_path / "adhd.csv"
    table.write_text("ScanDir ID,Site,Gender,Age,DX\n1018959,3 ,0,12.4,0\n10001,1,1,9.0,3\n21005,1,1,10,pending\n")
    found = papers.make_labels(datasets["adhd200"], [table])
    assert found["participant_id"] == ["sub-1018959", "sub-0010001", "sub-0021005"]
    assert found["group"] == ["control", "ADHD", "n/a"]
    assert found["sex"] == ["F", "M", "M"]
    assert found["site"] == ["3", "1", "1"]
    table.write_text("ScanDir ID,DX\n1018959,7\n")
    with pytest.raises(BadDataError, match="unknown value '7'"):
        papers.make_labels(datasets["adhd200"], [table])
    table.write_text("Subject,DX\n1018959,1\n")
    with pytest.raises(BadDataError, match="column 'ScanDir ID' is missing"):
        papers.make_labels(datasets["adhd200"], [table])


@pytest.mark.parametrize("arguments", [["--rows", "nothing"], ["--labels", "cobre", "x.csv"], ["--labels", "abide"]])
def test_unknown_rows_and_datasets_are_refused(papers, arguments: list[str], capsys) -> None:
    assert papers.main(arguments) == 64
    assert "papers.py" in capsys.readouterr().err
