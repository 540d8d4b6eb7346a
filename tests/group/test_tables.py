"""Tables of the group level: complete, described, identical in TSV and HDF5, and atomic."""

import csv
import json
import resource

import h5py
import numpy as np
import pytest

from bids_app.cli.neurostorm import main
from bids_app.errors import InputOutputError
from bids_app.group.tables import _write_embeddings_archive, _write_embeddings_table


def test_tsv_and_hdf5_have_the_same_embeddings(finished):
    rows = finished.rows("group_embeddings.tsv")
    features = [name for name in rows[0] if name.startswith("e0")]
    with h5py.File(finished.out / "group_embeddings.h5") as archive:
        for normalisation in ("global", "voxel"):
            own = [row for row in rows if row["normalisation"] == normalisation]
            part = archive[f"made/{normalisation}"]
            values = np.array([[row[name] for name in features] for row in own], np.float32)
            np.testing.assert_array_equal(part["values"][:], values)
            assert [text.decode() for text in part["participant_id"]] == [row["participant_id"] for row in own]
            assert [text.decode() for text in part["session"]] == [row["ses"] for row in own]
            stems = [f"{row['participant_id']}_ses-{row['ses']}_task-{row['task']}" for row in own]
            assert [text.decode() for text in part["run"]] == stems


def test_embeddings_equal_the_participant_tables(finished):
    path = next(finished.out.glob("sub-03/ses-2/func/*_embeddings.tsv"))
    with path.open(newline="") as file:
        means = {row["normalisation"]: row for row in csv.DictReader(file, delimiter="\t") if row["clip"] == "mean"}
    (row,) = [
        row
        for row in finished.rows("group_embeddings.tsv")
        if (row["participant_id"], row["ses"], row["normalisation"]) == ("sub-03", "2", "voxel")
    ]
    for name in ("e0000", "e0015"):
        assert np.float32(row[name]) == np.float32(means["voxel"][name])
    assert row["split_half"] == "0.9500"


def test_every_column_is_described(finished):
    tables = ("runs", "bold", "outliers", "identity")
    for name in (*(f"group_{table}" for table in tables), "phenotype/neurostorm_madeage"):
        columns = set(finished.rows(f"{name}.tsv")[0])
        described = json.loads((finished.out / f"{name}.json").read_text())
        assert columns <= set(described), name
        assert [column for column, entry in described.items() if column in columns and not entry] == [], name
    sidecar = json.loads((finished.out / "phenotype/neurostorm_madeage.json").read_text())
    assert sidecar["value"]["Units"] == "years"
    assert "not a medical device" in sidecar["MeasurementToolMetadata"]["Description"]


def test_the_number_of_a_run_is_not_described_as_its_name(make_group):
    group = make_group(participants=2, sessions=1)
    for file in [*group.out.rglob("*_task-rest*"), *group.raw.rglob("*_task-rest*")]:
        file.rename(file.with_name(file.name.replace("_task-rest", "_task-rest_run-1")))
    group.write_tables()
    for name in ("group_bold", "group_embeddings", "phenotype/neurostorm_madeage"):
        assert {row["run"] for row in group.rows(f"{name}.tsv")} == {"1"}
        described = json.loads((group.out / f"{name}.json").read_text())
        assert described["run"]["Description"] == "Number of the run"
    described = json.loads((group.out / "group_runs.json").read_text())
    assert described["run"]["Description"] == "Name of the run, without suffix"


def test_predictions_have_verdict_and_interval(finished):
    for row in finished.rows("phenotype/neurostorm_madeage.tsv"):
        assert row["verdict"] in ("pass", "warn")
        assert float(row["lower"]) < float(row["value"]) < float(row["upper"])
        assert row["effective_clips"] == "2.5"


def test_rows_are_in_natural_order(make_group):
    group = make_group(participants=3, sessions=1)
    (group.out / "sub-01").rename(group.out / "sub-10")
    (group.out / "sub-02").rename(group.out / "sub-9")
    for path in (group.out / "sub-10", group.out / "sub-9"):
        for file in (path / "func").iterdir():
            file.rename(file.with_name(file.name.replace("sub-01", "sub-10").replace("sub-02", "sub-9")))
    group.raw.rename(group.raw.with_name("away"))
    group.write_tables()
    rows = group.rows("group_bold.tsv")
    assert [row["participant_id"] for row in rows] == ["sub-03", "sub-9", "sub-10"]


def test_two_models_with_different_numbers_of_features(make_group):
    group = make_group(participants=2, sessions=1, features=6)
    path = next(group.out.glob("sub-01/func/*_embeddings.tsv"))
    for extension in (".tsv", ".json"):
        source = path.with_suffix(extension)
        target = source.with_name(source.name.replace("desc-made", "desc-small"))
        lines = [line.split("\t") for line in source.read_text().splitlines()]
        text = "\n".join("\t".join(line[:-2]) for line in lines) + "\n" if extension == ".tsv" else source.read_text()
        target.write_text(text)
    group.write_tables()
    rows = group.rows("group_embeddings.tsv")
    assert [row["e0005"] == "n/a" for row in rows] == [row["model"] == "small" for row in rows]
    with h5py.File(group.out / "group_embeddings.h5") as archive:
        assert archive["small/voxel/values"].shape == (1, 4)
        assert archive["made/voxel/values"].shape == (2, 6)


@pytest.fixture
def small_files():
    """Return a function that limits the size of the files that this process can write, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", [_write_embeddings_table, _write_embeddings_archive])
def test_tables_are_complete_or_absent(make_group, small_files, write):
    group = make_group(participants=2, sessions=1)
    runs = group.write_tables().runs
    path = group.out / "new"
    small_files(500)
    with pytest.raises(InputOutputError):
        write(path, runs)
    assert not path.exists()
    assert not list(group.out.glob(".neurostorm-*"))


def test_participants_sessions_and_tasks_can_be_selected(make_group):
    group = make_group(participants=3)
    cohort = group.write_tables(participants=("01", "03"), sessions=("2",))
    assert [run.stem for run in cohort.runs] == ["sub-01_ses-2_task-rest", "sub-03_ses-2_task-rest"]
    assert group.write_tables(tasks=("film",)).runs == []


def test_a_participant_without_outputs_is_reported(make_group, capsys):
    group = make_group(participants=2, sessions=1)
    assert group.run("--participant-label", "01", "77") == 18
    assert "no outputs of sub-77" in capsys.readouterr().err


def test_an_output_folder_without_participants_is_an_error(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert main([str(tmp_path), str(tmp_path / "out"), "group"]) == 66
    assert "no participant outputs" in capsys.readouterr().err


def test_a_check_writes_nothing(make_group, capsys):
    group = make_group(participants=2, sessions=1)
    before = sorted(group.out.rglob("*"))
    assert group.run("--check") == 0
    assert "2 participants" in capsys.readouterr().out
    assert sorted(group.out.rglob("*")) == before
