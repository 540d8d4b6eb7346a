"""The output folder holds what the last invocation made of each run: the rest is removed, or known as earlier."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.bids import writer
from bids_app.errors import InputOutputError
from bids_app.outputs.publish import Publication, publish, remove_earlier, write_manifest
from bids_app.outputs.schema import MODEL, PREPROCESSING, FileStamp, Manifest, manifest_path, read_run_files

REST, MOTOR = "sub-01_task-rest", "sub-01_task-motor"
FIRST = Publication(REST, "first", "aaaa1111", {"dummy_scans": "none"}, source="1")
SECOND = Publication(REST, "second", "bbbb2222", {"dummy_scans": "6"}, source="2")
T1W = "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"


def names(*endings: str, stem: str = REST) -> list[str]:
    """Return paths of outputs of a run."""
    return [f"sub-01/func/{stem}_{ending}" for ending in endings]


PREPROCESSED = names("desc-confounds_timeseries.tsv", "desc-quality_metrics.json")
SERIES = names("space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz")
PREDICTED = names("desc-demo_embeddings.tsv", "desc-state_predictions.tsv", "desc-state_predictions.json")


def publish_files(out: Path, part: str, publication: Publication, files: list[str]) -> tuple[str, ...]:
    """Publish files whose content is the invocation."""
    tree = out.parent / f"tree-{publication.run_id}-{publication.stem}-{part}"
    for name in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"run_id": publication.run_id}) if name.endswith(".json") else publication.run_id
        (tree / name).write_text(content)
    return publish(out, part, publication, tree, tree=tree)


def outputs(out: Path) -> list[str]:
    files = (path for path in out.rglob("*") if path.is_file() and "log" not in path.relative_to(out).parts)
    return sorted(path.relative_to(out).as_posix() for path in files)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Output folder after a first invocation that also wrote the series and predictions."""
    out = tmp_path / "out"
    publish_files(out, PREPROCESSING, FIRST, [*PREPROCESSED, *SERIES, T1W])
    publish_files(out, MODEL, FIRST, PREDICTED)
    assert remove_earlier(out, REST) == ()
    return out


def test_files_that_the_next_invocation_does_not_make_are_removed(out: Path) -> None:
    publish_files(out, PREPROCESSING, SECOND, [*PREPROCESSED, T1W])
    publish_files(out, MODEL, SECOND, PREDICTED[:1])
    assert sorted(remove_earlier(out, REST)) == sorted([*SERIES, *PREDICTED[1:]])
    assert outputs(out) == sorted([*PREPROCESSED, T1W, PREDICTED[0]])
    assert read_run_files(out / "sub-01")[REST].problem == ""


def test_earlier_files_are_no_outputs_before_they_are_removed(out: Path) -> None:
    publish_files(out, PREPROCESSING, SECOND, [*PREPROCESSED, T1W])
    known = read_run_files(out / "sub-01")[REST]
    assert "another preprocessing" in known.problem
    assert [name for name in outputs(out) if known.includes(name)] == sorted([*PREPROCESSED, T1W])


def test_a_file_that_the_user_changed_is_kept_and_is_no_output(out: Path) -> None:
    (out / PREDICTED[1]).write_text("edited")
    publish_files(out, PREPROCESSING, SECOND, PREPROCESSED)
    publish_files(out, MODEL, SECOND, PREDICTED[:1])
    assert PREDICTED[1] not in remove_earlier(out, REST)
    assert (out / PREDICTED[1]).read_text() == "edited"
    known = read_run_files(out / "sub-01")[REST]
    assert list(known.parts[MODEL].earlier) == [PREDICTED[1]]
    assert not known.includes(PREDICTED[1])


def test_files_that_the_app_did_not_write_are_never_removed(out: Path) -> None:
    own = out / "sub-01" / "func" / f"{REST}_desc-mine_predictions.tsv"
    own.write_text("mine")
    publish_files(out, PREPROCESSING, SECOND, PREPROCESSED)
    publish_files(out, MODEL, SECOND, PREDICTED[:1])
    remove_earlier(out, REST)
    assert own.read_text() == "mine"


def test_files_of_the_anatomy_are_kept_until_the_last_run_that_uses_them(out: Path) -> None:
    motor = replace(FIRST, stem=MOTOR)
    publish_files(out, PREPROCESSING, motor, [*names("desc-confounds_timeseries.tsv", stem=MOTOR), T1W])
    publish_files(out, PREPROCESSING, SECOND, PREPROCESSED)
    remove_earlier(out, REST)
    assert T1W in outputs(out)
    publish_files(out, PREPROCESSING, replace(SECOND, stem=MOTOR), names("desc-confounds_timeseries.tsv", stem=MOTOR))
    assert remove_earlier(out, MOTOR) == (T1W,)


def test_shared_files_are_kept_if_the_manifest_of_another_run_is_damaged(out: Path) -> None:
    manifest_path(out, MOTOR, PREPROCESSING).write_text("{")
    publish_files(out, PREPROCESSING, SECOND, PREPROCESSED)
    assert sorted(remove_earlier(out, REST)) == sorted([*SERIES, *PREDICTED])
    assert T1W in outputs(out)


def test_predictions_are_removed_if_the_model_fails_after_another_preprocessing(out: Path) -> None:
    publish_files(out, PREPROCESSING, SECOND, [*PREPROCESSED, T1W])
    assert sorted(remove_earlier(out, REST)) == sorted([*SERIES, *PREDICTED])
    assert outputs(out) == sorted([*PREPROCESSED, T1W])
    assert read_run_files(out / "sub-01")[REST].problem == ""


def test_predictions_stay_if_the_model_fails_after_the_same_preprocessing(out: Path) -> None:
    publish_files(out, PREPROCESSING, replace(FIRST, run_id="again"), [*PREPROCESSED, *SERIES, T1W])
    assert remove_earlier(out, REST) == ()
    assert set(PREDICTED) < set(outputs(out))


@pytest.mark.parametrize("n_written", range(11))
def test_a_publication_that_is_killed_leaves_no_unknown_file(out: Path, monkeypatch, n_written: int) -> None:
    """The second invocation ends after some files, counting manifests; the third has the options of neither."""
    real, left = writer.atomic_path, iter(range(n_written))

    def killed(path: Path):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(writer, "atomic_path", killed)
    only_second = names("space-MNI152NLin2009aSym_res-2_desc-preproc_bold.nii.gz")

    def publish_both() -> None:
        publish_files(out, PREPROCESSING, SECOND, [*PREPROCESSED, T1W, *only_second])
        publish_files(out, MODEL, SECOND, PREDICTED)

    with pytest.raises(KeyboardInterrupt):
        publish_both()
    monkeypatch.undo()
    known = read_run_files(out / "sub-01")[REST]
    assert known.problem or n_written == 0
    third = replace(SECOND, run_id="third", source="3")
    publish_files(out, PREPROCESSING, third, PREPROCESSED)
    publish_files(out, MODEL, third, PREDICTED[:1])
    remove_earlier(out, REST)
    assert outputs(out) == sorted([*PREPROCESSED, PREDICTED[0]])
    assert all((out / name).read_text().count("third") for name in outputs(out))


def test_an_interrupted_removal_is_completed_the_next_time(out: Path, monkeypatch) -> None:
    publish_files(out, PREPROCESSING, SECOND, PREPROCESSED)
    publish_files(out, MODEL, SECOND, PREDICTED[:1])
    with monkeypatch.context() as patch:
        patch.setattr(writer, "atomic_path", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            remove_earlier(out, REST)
    remove_earlier(out, REST)
    assert outputs(out) == sorted([*PREPROCESSED, PREDICTED[0]])
    assert not any(manifest.earlier for manifest in read_run_files(out / "sub-01")[REST].parts.values())


@pytest.mark.parametrize("name", ["../precious.txt", "/etc/hostname", "sub-01/../../precious.txt", "sub-02/func/x.tsv"])
def test_a_manifest_cannot_name_files_outside_its_participant(out: Path, name: str) -> None:
    for path in (out.parent / "precious.txt", out / "sub-02" / "func" / "x.tsv"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    stamp = FileStamp(size=1, sha256="2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
    write_manifest(out, REST, MODEL, Manifest(complete=True, source="1", earlier={name: stamp}))
    assert remove_earlier(out, REST) == ()
    assert (out.parent / "precious.txt").exists()
    assert (out / "sub-02" / "func" / "x.tsv").exists()


def test_sidecars_have_the_hash_of_the_configuration(out: Path) -> None:
    sidecars = [json.loads((out / name).read_text()) for name in outputs(out) if name.endswith(".json")]
    assert [sidecar["ConfigurationHash"] for sidecar in sidecars] == ["aaaa1111"] * 2
    for manifest in read_run_files(out / "sub-01")[REST].parts.values():
        assert {name: (out / name).stat().st_size for name in manifest.files} == {
            name: stamp.size for name, stamp in manifest.files.items()
        }


def test_a_full_disk_leaves_complete_files_and_says_so(out: Path, monkeypatch) -> None:
    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"par")
        raise OSError(28, "No space left on device", str(target))

    before = {name: (out / name).read_text() for name in outputs(out)}
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(InputOutputError, match="no space left"):
        publish_files(out, PREPROCESSING, SECOND, PREPROCESSED)
    assert {name: (out / name).read_text() for name in outputs(out)} == before
    assert "interrupted" in read_run_files(out / "sub-01")[REST].problem
