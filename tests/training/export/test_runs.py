"""Which runs are exported, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bids_app.errors import BadDataError, NeurostormError, NoInputError, NoMatchError, UsageError
from bids_app.group.reading import read_participant
from bids_app.outputs.ratings import Rating, store_rating
from bids_app.training.export.runs import read_runs, read_values


def test_embeddings_of_one_model_and_normalisation_are_read(make_outputs) -> None:
    made = make_outputs(participants=3)
    found = read_runs(made.out, normalisation="voxel")
    assert (found.model, found.normalisation, found.demonstration) == ("made", "voxel", True)
    assert [run.name for run in found.runs[:2]] == ["sub-01_ses-1_task-rest", "sub-01_ses-2_task-rest"]
    record = read_participant(made.out / "sub-02").runs[1]
    assert np.array_equal(found.values[3], record.vectors["made", "voxel"].values)
    assert not np.allclose(found.values[3], record.vectors["made", "global"].values)
    assert found.weights_sha256 == "0" * 64


def test_several_normalisations_are_refused_unless_one_is_chosen(make_outputs) -> None:
    made = make_outputs(participants=2)
    with pytest.raises(UsageError, match=r"made, global: 4 runs; made, voxel: 4 runs.*--normalisation"):
        read_runs(made.out)
    with pytest.raises(NoMatchError, match="no embeddings of other, voxel"):
        read_runs(made.out, "other", "voxel")


def test_several_models_are_refused_unless_one_is_chosen(make_outputs) -> None:
    made = make_outputs(participants=2)
    for path in made.out.rglob("*_desc-made_embeddings.*"):
        shutil.copy(path, path.with_name(path.name.replace("desc-made", "desc-other")))
    with pytest.raises(UsageError, match=r"other, voxel: 4 runs.*--model"):
        read_runs(made.out, normalisation="voxel")
    assert read_runs(made.out, "other", "voxel").model == "other"


def test_embeddings_of_other_weights_of_the_same_name_are_refused(make_outputs) -> None:
    made = make_outputs(participants=3)
    made.change_sidecar("sub-02", WeightsSHA256="f" * 64)
    with pytest.raises(BadDataError, match=r"made have different weights .*sub-02_ses-1_task-rest: ffff"):
        read_runs(made.out, normalisation="global")


def test_encoders_without_weights_differ_by_their_options(make_outputs) -> None:
    made = make_outputs(participants=3)
    for name in made.participants:
        made.change_sidecar(name, WeightsSHA256=None, ModelCard={"Source": "maker of Brainmarks 0.1.1"})
    read_runs(made.out, normalisation="global")
    made.change_sidecar("sub-02", ModelCard={"Source": "maker of Brainmarks 0.1.1, options width=4"})
    with pytest.raises(BadDataError, match=r"made have different options .*sub-02_ses-1_task-rest: .* options width=4"):
        read_runs(made.out, normalisation="global")


def test_runs_of_several_configurations_are_named(make_outputs) -> None:
    made = make_outputs(participants=3)
    said: list[str] = []
    for name in made.participants:
        made.change_sidecar(name, ConfigurationHash="aaaa")
    read_runs(made.out, normalisation="global", report=said.append)
    assert not said
    made.change_sidecar("sub-02", ConfigurationHash="bbbb")
    read_runs(made.out, normalisation="global", report=said.append)
    assert "2 configurations or versions" in said[0]


def test_a_model_is_chosen_by_its_name_at_the_participant_level(make_outputs) -> None:
    made = make_outputs(participants=2)
    for name in made.participants:
        made.change_sidecar(name, Model="brainmarks:made_1")
    for path in made.out.rglob("*_desc-made_embeddings.*"):
        path.rename(path.with_name(path.name.replace("desc-made", "desc-brainmarksmade1")))
    for name in ("brainmarks:made_1", "brainmarksmade1"):
        found = read_runs(made.out, name, "global")
        assert (found.model, found.title) == ("brainmarksmade1", "brainmarks:made_1")


def test_embeddings_of_another_width_are_refused(make_outputs) -> None:
    made = make_outputs(participants=2)
    for path in (made.out / "sub-02").rglob("*_embeddings.tsv"):
        rows = [line.rpartition("\t")[0] for line in path.read_text().splitlines()]
        path.write_text("\n".join(rows) + "\n")
    with pytest.raises(BadDataError, match=r"different numbers of features .*: 16; sub-02_ses-1_task-rest: 15"):
        read_runs(made.out, normalisation="global")


def test_a_folder_without_embeddings_is_refused(make_outputs, tmp_path: Path) -> None:
    made = make_outputs(participants=2)
    for path in made.out.rglob("*_embeddings.*"):
        path.unlink()
    with pytest.raises(NoMatchError, match="no embeddings of 4 runs"):
        read_runs(made.out)
    with pytest.raises(NoInputError, match="no such folder"):
        read_runs(tmp_path / "none")


def test_unreadable_runs_are_named_and_left_out(make_outputs) -> None:
    made = make_outputs(participants=2)
    table = next((made.out / "sub-01" / "ses-1").rglob("*_embeddings.tsv"))
    table.write_text(table.read_text()[:-40])
    said: list[str] = []
    found = read_runs(made.out, normalisation="global", report=said.append)
    assert len(found.runs) == 3
    assert said[0].startswith("Left out: sub-01_ses-1_task-rest (unreadable: ")


def test_of_many_unreadable_runs_the_first_are_named(make_outputs) -> None:
    made = make_outputs(participants=5)
    for table in sorted(made.out.rglob("*_embeddings.tsv"))[:8]:
        table.write_text(table.read_text()[:-40])
    said: list[str] = []
    assert len(read_runs(made.out, normalisation="global", report=said.append).runs) == 2
    assert len(said) == 6
    assert said[-1] == "Left out: 3 more runs; the group level lists all with reasons"


def test_runs_rated_as_failed_are_left_out_on_request(make_outputs) -> None:
    made = make_outputs(participants=2)
    with pytest.raises(NeurostormError, match="ratings"):
        read_runs(made.out, normalisation="global", exclude_failed=True)
    store_rating(made.out, "AB", Rating("sub-01_ses-1_task-rest_desc-carpet_bold", "fail"))
    said: list[str] = []
    found = read_runs(made.out, normalisation="global", exclude_failed=True, report=said.append)
    assert "sub-01_ses-1_task-rest" not in {run.name for run in found.runs}
    assert said == ["Left out as rated as failed: 1 of 4 runs"]


def test_participants_with_the_same_embedding_are_named(make_outputs) -> None:
    made = make_outputs(participants=3)
    for path in (made.out / "sub-01").rglob("*_embeddings.tsv"):
        name = path.relative_to(made.out / "sub-01").as_posix().replace("sub-01", "sub-03")
        shutil.copy(path, made.out / "sub-03" / name)
    said: list[str] = []
    read_runs(made.out, normalisation="global", report=said.append)
    assert "sub-01 = sub-03" in said[0]


def test_labels_are_read_by_participant_and_session(make_outputs, tmp_path: Path) -> None:
    made = make_outputs(participants=2)
    runs = read_runs(made.out, normalisation="global").runs
    assert read_values("participants.tsv:sex", runs, made.out) == ["F", "F", "M", "M"]
    table = tmp_path / "mood.tsv"
    table.write_text("participant_id\tsession_id\tmood\nsub-01\tses-1\tlow\nsub-01\tses-2\thigh\nsub-02\tses-1\tn/a\n")
    assert read_values(f"{table}:mood", runs, made.out) == ["low", "high", None, None]
    assert read_values("scan:task", runs, made.out) == ["rest"] * 4


def test_a_participant_with_two_values_and_labels_of_clips_are_refused(make_outputs, tmp_path: Path) -> None:
    made = make_outputs(participants=2)
    runs = read_runs(made.out, normalisation="global").runs
    table = tmp_path / "twice.tsv"
    table.write_text("participant_id\tsex\nsub-01\tF\nsub-01\tM\n")
    with pytest.raises(BadDataError, match="sub-01 has two values of sex: F and M"):
        read_values(f"{table}:sex", runs, made.out)
    with pytest.raises(UsageError, match="labels clips"):
        read_values("events.tsv:trial_type", runs, made.out)
