"""``neurostorm-train export``: options, what is left out, and outputs that exist."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from bids_app.cli.train import main
from bids_app.training.export import command, tables

SEX = ["--target", "participants.tsv:sex"]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Replace the writer of Parquet, whose package is large, by one that keeps what it is given."""
    calls: list[dict] = []

    def write(path: Path, table, found, about) -> None:
        calls.append({"path": path, "table": table, "found": found, "about": about})

    monkeypatch.setattr(tables, "check_packages", lambda name: None)
    monkeypatch.setitem(command.WRITERS, "parquet", write)
    return calls


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that exports as Parquet from the folder of the test."""
    monkeypatch.chdir(tmp_path)

    def export(out: Path, *options: str) -> int:
        return main(["export", str(out), "--format", "parquet", "--normalisation", "global", *options])

    return export


def test_labels_sets_and_provenance_reach_the_writer(make_outputs, written, run, capsys) -> None:
    made = make_outputs(participants=10)
    assert run(made.out, *SEX, "--also-target", "participants.tsv:site", "--seed", "3") == 0
    (call,) = written
    assert call["path"] == Path("embeddings.parquet")
    assert set(call["table"]["split"]) == {"training", "validation", "test"}
    assert set(call["table"]["site"]) == {"site0", "site1", "site2"}
    about = call["about"]
    assert (about["target"], about["classes"]) == ("participants.tsv:sex", ["F", "M"])
    assert about["sets"] == "5 folds by participant, seed 3"
    assert about["other_targets"] == ["participants.tsv:site"]
    assert "Wrote embeddings.parquet: 20 runs of 10 participants" in capsys.readouterr().out


def test_numbers_that_are_classes_stay_text(make_outputs, written, run) -> None:
    made = make_outputs(participants=10)
    made.label("group", {name: "12"[i % 2] for i, name in enumerate(made.participants)})
    assert run(made.out, "--target", "participants.tsv:group") == 0
    assert set(written[0]["table"]["group"]) == set(written[0]["about"]["classes"]) == {"1", "2"}
    assert run(made.out, "--target", "participants.tsv:age", "--task", "regression") == 0
    assert written[1]["table"]["age"].dtype == float


def test_without_a_target_there_are_no_labels_and_no_sets(make_outputs, written, run) -> None:
    assert run(make_outputs(participants=2).out) == 0
    assert not {"sex", "split", "fold"} & set(written[0]["table"])
    assert "target" not in written[0]["about"]


def test_participants_without_a_label_are_named_and_left_out(make_outputs, written, run, capsys) -> None:
    made = make_outputs(participants=11)
    made.label("handedness", {name: "RL"[i % 2] for i, name in enumerate(made.participants[:10])})
    assert run(made.out, "--target", "participants.tsv:handedness") == 0
    assert "Left out, without a value of participants.tsv:handedness: sub-11_ses-1" in capsys.readouterr().out
    assert written[0]["about"]["n_participants"] == 10
    made.label("none", {})
    assert run(made.out, "--target", "participants.tsv:none") == 18
    assert run(made.out, "--target", "participants.tsv:absent") == 65


def test_participants_of_no_set_of_a_split_file_are_left_out(make_outputs, written, run, tmp_path, capsys) -> None:
    made = make_outputs(participants=4)
    split = tmp_path / "own.tsv"
    split.write_text("participant_id\tsplit\nsub-01\ttraining\nsub-02\ttraining\nsub-03\ttest\n")
    assert run(made.out, *SEX, "--split", str(split)) == 0
    assert "Left out, in no set of own.tsv: sub-04_ses-1" in capsys.readouterr().out
    assert written[0]["table"]["split"].tolist() == ["training"] * 4 + ["test"] * 2
    assert "fold" not in written[0]["table"]
    split.write_text("participant_id\tsplit\nsub-01\ttraining\nsub-01\ttest\n")
    assert run(made.out, *SEX, "--split", str(split)) == 65
    split.write_text("participant_id\tsplit\nsub-77\ttraining\n")
    assert run(made.out, *SEX, "--split", str(split)) == 18


def test_fewer_folds_than_wanted_and_small_classes_are_named(make_outputs, written, run, capsys) -> None:
    assert run(make_outputs(participants=5).out, *SEX) == 0
    printed = capsys.readouterr().out
    assert 'class "M" has only 2 participants' in printed
    assert "Warning: 2 folds instead of 5" in printed
    assert set(written[0]["table"]["split"]) == {"training", "test"}


def test_families_stay_together(make_outputs, written, run) -> None:
    made = make_outputs(participants=20)
    made.label("family", {name: f"family{i // 4}" for i, name in enumerate(made.participants)})
    assert run(made.out, *SEX, "--family-column", "family") == 0
    sets = written[0]["table"].groupby("participant_id")["split"].first().tolist()
    assert all(len(set(sets[i : i + 4])) == 1 for i in range(0, 20, 4))
    assert written[0]["about"]["families"] == "participants.tsv:family"


def test_an_existing_output_is_kept_unless_it_is_to_be_overwritten(
    make_outputs, written, run, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_outputs(participants=2)
    monkeypatch.setattr(tables, "has_provenance", lambda path, name: name == "parquet")
    Path("embeddings.parquet").touch()
    assert run(made.out) == 73
    assert "--overwrite" in capsys.readouterr().err
    assert not written
    assert run(made.out, "--overwrite") == 0
    Path("embeddings.parquet").unlink()
    Path("embeddings.parquet").mkdir()
    assert run(made.out, "--overwrite") == 73
    assert len(written) == 1


@pytest.mark.parametrize("name", ["zarr", "brainmarks"])
def test_a_folder_that_is_no_export_is_never_replaced(name: str, make_outputs, written, tmp_path, capsys) -> None:
    made = make_outputs(participants=2)
    folder = tmp_path / "data.zarr"
    folder.mkdir()
    (folder / "thesis.txt").write_text("all my work")
    options = ["--format", name, *SEX, "--normalisation", "global", "--output", str(folder), "--overwrite"]
    assert main(["export", str(made.out), *options]) == 73
    assert "is no export" in capsys.readouterr().err
    assert (folder / "thesis.txt").read_text() == "all my work"


def test_a_file_that_is_no_export_is_never_replaced(make_outputs, written, tmp_path: Path, capsys) -> None:
    made, path = make_outputs(participants=2), tmp_path / "cells.h5ad"
    options = ["--format", "anndata", "--normalisation", "global", "--output", str(path), "--overwrite"]
    for write in (lambda: path.write_text("all my work"), lambda: h5py.File(path, "w").create_group("uns")):
        write()
        before = path.read_bytes()
        assert main(["export", str(made.out), *options]) == 73
        assert "is no export" in capsys.readouterr().err
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "1"], "--seed has no effect without --target"),
        (["--also-target", "participants.tsv:age"], "--also-target has no effect"),
        (["--name", "mine"], "--name has no effect with --format parquet"),
        ([*SEX, "--split", "s.tsv", "--seed", "1"], "no effect with --split"),
        ([*SEX, "--also-target", "sessions.tsv:sex"], "same column: sex"),
        (["--output", "table.csv"], "ends with .parquet"),
    ],
)
def test_options_without_effect_are_refused(make_outputs, written, run, options, said, capsys) -> None:
    Path("s.tsv").touch()
    assert run(make_outputs(participants=2).out, *options) == 64
    assert said in capsys.readouterr().err
    assert not written


def test_refused_scans_are_counted(make_outputs, written, run, capsys) -> None:
    made = make_outputs(participants=2)
    made.change_sidecar("sub-01", Verdict={"Level": "refuse", "Checks": []})
    assert run(made.out) == 0
    assert "Warning: 2 runs with the verdict refuse" in capsys.readouterr().out
