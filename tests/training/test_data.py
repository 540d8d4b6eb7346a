"""Labels, splits, batches, and stores made from derivatives."""

from __future__ import annotations

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_app.errors import BadDataError, NoMatchError, UsageError
from bids_app.training.data import ClipBatches, Target, prepare, split_participants
from bids_app.training.store import ClipStore


def people(*names: str, sessions: int = 1) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(participant=n, session=f"{s + 1}" if sessions > 1 else "", labels={})
        for n in names
        for s in range(sessions)
    ]


def test_participants_never_straddle_splits():
    scans = people(*"abcdefghij", sessions=3)
    first, second = split_participants(scans, 0.3, seed=1)
    assert sorted(first + second) == list(range(30))
    assert len({scans[i].participant for i in second}) == 3
    assert not {scans[i].participant for i in first} & {scans[i].participant for i in second}
    assert split_participants(scans, 0.3, seed=1) == (first, second)
    assert split_participants(scans, 0.3, seed=2) != (first, second)


def test_splits_keep_the_proportions_of_groups():
    scans = people(*(f"p{k}" for k in range(40)))
    groups = ["F"] * 30 + ["M"] * 10
    _, second = split_participants(scans, 0.2, seed=0, strata=groups)
    assert sum(groups[i] == "F" for i in second) == 6
    assert sum(groups[i] == "M" for i in second) == 2


def test_one_participant_cannot_be_split():
    with pytest.raises(NoMatchError, match="1 participant"):
        split_participants(people("a", sessions=4), 0.5, seed=0)


def test_labels_come_from_tables_by_participant_and_session(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\nsub-a\tF\nsub-b\tn/a\n")
    (tmp_path / "sessions.tsv").write_text("participant_id\tsession_id\tmood\nsub-a\tses-1\tlow\nsub-a\tses-2\thigh\n")
    scans = people("a", "b", sessions=2)
    assert Target.parse("participants.tsv:sex", tmp_path).of(scans) == ["F", "F", None, None]
    assert Target.parse(f"{tmp_path}/sessions.tsv:mood", tmp_path).of(scans) == ["low", "high", None, None]


def test_labels_come_from_the_scans_themselves(tmp_path):
    scans = people("a", "b")
    scans[0].labels["state"] = "rest"
    assert Target.parse("scan:state", tmp_path).of(scans) == ["rest", None]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("sex", UsageError, "TABLE.tsv:COLUMN"),
        ("missing.tsv:sex", UsageError, "missing.tsv"),
        ("participants.tsv:age", BadDataError, "age"),
        ("scan:state", NoMatchError, "No scan"),
    ],
)
def test_targets_that_do_not_exist_are_named(tmp_path, text, error, message):
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\nsub-a\tF\n")
    with pytest.raises(error, match=message):
        Target.parse(text, tmp_path).of(people("a"))


def test_batches_depend_on_seed_and_epoch_alone(make_store):
    scans = tuple(make_store(1, n_vols=44))
    batches = ClipBatches(scans, 2, seed=5)
    first, again, later = (list(batches.epoch(k)) for k in (0, 0, 1))
    assert len(first) == batches.steps == 2
    assert all(torch.equal(a.clips, b.clips) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a.clips, b.clips) for a, b in zip(first, later, strict=True))
    assert sorted(torch.cat([b.scans for b in first]).tolist()) == [0, 0, 1, 1]


def test_evaluation_reads_each_clip_once_in_order(make_store):
    scans = tuple(make_store(1, n_vols=44))
    batches = list(ClipBatches(scans, 3, moving=False).epoch(0))
    assert [b.scans.tolist() for b in batches] == [[0, 0, 1], [1]]
    assert torch.equal(batches[0].clips[1], scans[0].clip(20))


def test_an_error_while_reading_reaches_the_trainer(make_store):
    scans = tuple(make_store(1))
    (scans[1].folder / "values.npy").unlink()
    with pytest.raises(FileNotFoundError):
        list(ClipBatches(scans, 1).epoch(0))


def test_leaving_a_loop_early_stops_the_reader(make_store):
    import threading

    before = threading.active_count()
    for _ in ClipBatches(tuple(make_store(1)), 1).epoch(0):
        break
    assert threading.active_count() == before


def write_derivative(root, label: str, space: str, tr: float = 0.8, n_vols: int = 25) -> None:
    folder = root / f"sub-{label}" / "func"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(label))
    data = rng.normal(500, 10, (20, 24, 20, n_vols)).astype(np.float32)
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = (-76, -110, -68)
    image = nib.Nifti1Image(data, affine)
    image.header.set_zooms((8, 8, 8, 9.9))
    stem = f"sub-{label}_task-rest_space-{space}_res-2"
    nib.save(image, folder / f"{stem}_desc-preproc_bold.nii.gz")
    (folder / f"{stem}_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": tr}))
    mask = np.zeros(data.shape[:3], np.uint8)
    mask[4:16, 4:20, 4:16] = 1
    nib.save(nib.Nifti1Image(mask, affine), folder / f"{stem}_desc-brain_mask.nii.gz")


def test_derivatives_become_a_store_through_their_affines(tmp_path):
    write_derivative(tmp_path / "out", "a", "MNI152NLin6Asym")
    write_derivative(tmp_path / "out", "b", "MNI152NLin2009aSym")
    store = ClipStore(tmp_path / "store", "voxel")
    scans = prepare(tmp_path / "out", store)
    assert [s.name for s in scans] == ["sub-a_task-rest", "sub-b_task-rest"]
    assert [(s.n_vols, s.labels, s.participant) for s in scans] == [(25, {"task": "rest"}, p) for p in "ab"]
    inside = [(s.clip(0)[0, ..., 0] != s.background) for s in scans]
    assert 0.9 < inside[0].sum() * 8 / (12 * 16 * 12 * 512) < 1.1
    moved = (inside[0] != inside[1]).sum() / inside[0].sum()
    assert 0.01 < moved < 0.3  # the other template lies a little elsewhere
    assert prepare(tmp_path / "out", store)[0].folder == scans[0].folder
    assert [p.name for p in (tmp_path / "store").iterdir() if p.name.startswith(".series")] == []


def test_a_space_that_is_not_known_is_refused(tmp_path):
    write_derivative(tmp_path / "out", "a", "fsaverage")
    with pytest.raises(UsageError, match="fsaverage"):
        prepare(tmp_path / "out", ClipStore(tmp_path / "store", "voxel"))


def test_a_dataset_without_series_is_named(tmp_path):
    with pytest.raises(NoMatchError, match="--output-spaces"):
        prepare(tmp_path, ClipStore(tmp_path / "store", "voxel"))
