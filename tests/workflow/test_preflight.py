"""Folders, disk and memory are checked before the start, and the checks write nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_app.errors import BadDataError, CannotCreateError, NoInputError, TemporaryError, UsageError
from bids_app.preprocess.io.images import save_image
from bids_app.settings import PARTICIPANT, ModelSettings, PreprocessSettings, ResourceSettings, Settings
from bids_app.workflow import preflight as checks
from bids_app.workflow.scratch import RESULTS
from tests.helpers.machine import run_on_small_disk, run_without_privileges


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def settings(raw: Path, out: Path, work: Path | None = None, **resources) -> Settings:
    return Settings(raw, out, PARTICIPANT, work or raw.parent / "work", resources=ResourceSettings(**resources))


def test_missing_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="nowhere"):
        checks.check_input(settings(tmp_path / "nowhere", tmp_path / "out"))


@pytest.mark.parametrize("inside", [".", "out", "sub-01/out", "code/../out"])
def test_output_equal_to_or_inside_the_raw_data_is_refused(raw: Path, inside: str) -> None:
    with pytest.raises(UsageError, match=r"raw dataset|dataset itself"):
        checks.check_folders(settings(raw, raw / inside))


def test_output_in_the_derivatives_folder_of_the_dataset_is_accepted(raw: Path) -> None:
    assert checks.check_folders(settings(raw, raw / "derivatives" / "neurostorm"))


def test_output_that_is_a_link_into_the_raw_data_is_refused(raw: Path, tmp_path: Path) -> None:
    (raw / "x").mkdir()
    (tmp_path / "link").symlink_to(raw / "x")
    with pytest.raises(UsageError):
        checks.check_folders(settings(raw, tmp_path / "link"))


def test_raw_data_inside_the_output_is_refused(raw: Path) -> None:
    with pytest.raises(UsageError, match="inside the output"):
        checks.check_folders(settings(raw, raw.parent))


def test_work_dir_inside_the_raw_data_is_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="work folder"):
        checks.check_folders(settings(raw, tmp_path / "out", raw / "work"))


def test_output_below_a_file_cannot_be_created(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreateError, match="file"):
        checks.check_output(settings(raw, tmp_path / "file" / "out"))


CHECK = """
from pathlib import Path
from bids_app.settings import PARTICIPANT, Settings
from bids_app.workflow import preflight
print(preflight.{check}(Settings(Path({raw!r}), Path({out!r}), PARTICIPANT, Path({work!r}))))
"""


def code_of(check: str, raw: Path, out: Path, work: Path) -> str:
    """Return Python code that makes a check in a process of its own."""
    return CHECK.format(check=check, raw=str(raw), out=str(out), work=str(work))


@pytest.mark.parametrize("mode", [0o700, 0o500])
def test_output_without_write_permission_is_refused(raw: Path, tmp_path: Path, mode: int) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)
    done = run_without_privileges(code_of("check_output", raw, place / "out", tmp_path / "work"))
    assert ("CannotCreateError" in done.stderr) == ("no write permission" in done.stderr) == (mode == 0o500)
    assert ("can be created" in done.stdout) == (mode == 0o700)


def test_input_without_read_permission_is_refused(raw: Path, tmp_path: Path) -> None:
    raw.chmod(0o300)
    done = run_without_privileges(code_of("check_input", raw, tmp_path / "out", tmp_path / "work"))
    assert "NoInputError" in done.stderr
    assert "no read permission" in done.stderr


def test_a_small_disk_is_judged_by_the_needs_of_the_runs_only(raw: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    done = run_on_small_disk(code_of("check_scratch", raw, tmp_path / "out", small / "work"), small, megabytes=12)
    assert done.stdout.endswith("can be created, 13 MB free\n"), done.stdout + done.stderr


def test_scratch_that_others_can_write_is_refused_before_the_start(raw: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / RESULTS).mkdir(parents=True)
    (work / RESULTS).chmod(0o777)
    with pytest.raises(CannotCreateError, match="other users can write here"):
        checks.check_scratch(settings(raw, tmp_path / "out", work))


@pytest.mark.parametrize("device", ["gpu", "foo", "cuda:99", "cpu:x"])
def test_a_device_that_does_not_exist_is_refused(raw: Path, tmp_path: Path, device: str) -> None:
    wanted = replace(settings(raw, tmp_path / "out"), model=ModelSettings("demo", device=device))
    with pytest.raises(UsageError, match="--device"):
        checks.check_device(wanted)


def test_the_cpu_and_auto_are_devices(raw: Path, tmp_path: Path) -> None:
    for device in ("cpu", "auto"):
        assert checks.check_device(replace(settings(raw, tmp_path / "out"), model=ModelSettings("demo", device=device)))


def test_a_plugin_that_nipype_does_not_have_is_refused(raw: Path, tmp_path: Path) -> None:
    file = tmp_path / "plugin.yml"
    wanted = replace(settings(raw, tmp_path / "out"), resources=ResourceSettings(plugin=file))
    file.write_text("plugin: SLURM\n")
    assert checks.check_plugin(wanted) == "SLURM"
    file.write_text("plugin: NoSuch\n")
    with pytest.raises(UsageError, match=r"plugin\.yml: nipype has no plugin 'NoSuch'"):
        checks.check_plugin(wanted)


def test_too_little_memory_is_detected_before_the_start(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match=r"memory limit is 0\.5 GB"):
        checks.check_memory(settings(raw, tmp_path / "out", memory_gb=0.5))


def test_checks_write_nothing(raw: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    list(checks.examine(settings(raw, tmp_path / "out")))
    assert sorted(tmp_path.rglob("*")) == before


def test_reconstruction_without_a_decoder_is_refused_before_the_start(raw: Path) -> None:
    asked = replace(settings(raw, raw.parent / "out"), model=ModelSettings("demo", attribution="reconstruction"))
    with pytest.raises(BadDataError, match="no decoder"):
        checks.check_atlas(asked)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({}, "needs a map"),
        ({"attribution": "reconstruction"}, "no labels"),
        ({"attribution": "occlusion"}, "not linear"),
    ],
)
def test_a_control_that_is_not_possible_is_refused_before_the_start(
    wanted: dict[str, str], reason: str, raw: Path
) -> None:
    from bids_app.model.api import load_model
    from tests.helpers.hostile_weights import adapter_bytes, write

    model = load_model("demo")
    n = model.config.n_features
    layers = {"hidden.weight": torch.zeros(4 * n, n), "hidden.bias": torch.zeros(4 * n)}
    layers |= {"head.weight": torch.zeros(1, 4 * n), "head.bias": torch.zeros(1)}
    tensors = {f"head.{name}": value for name, value in layers.items()}
    path = write(raw.parent / "a.safetensors", adapter_bytes(model, tensors))
    asked = ModelSettings("demo", adapters=(str(path),), attribution_control="permuted", **wanted)
    with pytest.raises(UsageError, match=reason):
        checks.check_atlas(replace(settings(raw, raw.parent / "out"), model=asked))


def test_weights_that_do_not_fit_are_refused_before_the_start(raw: Path) -> None:
    from bids_app.model.api import load_model
    from tests.helpers.hostile_weights import adapter_bytes, head, write

    model = load_model("demo")
    wrong = head(torch.zeros(1, model.config.n_features + 1))
    path = write(raw.parent / "a.safetensors", adapter_bytes(model, wrong))
    wanted = replace(
        settings(raw, raw.parent / "out"), check=True, model=ModelSettings(model="demo", adapters=(str(path),))
    )
    with pytest.raises(BadDataError, match=rf"{path}: .* features, but the encoder has") as caught:
        checks.check_weights(wanted)
    assert caught.value.exit_code == 65
    fitting = head(torch.zeros(1, model.config.n_features))
    write(path, adapter_bytes(model, fitting))
    assert str(path) in checks.check_weights(wanted)


def with_spaces(raw: Path, *spaces: str, denoise: str | None = None) -> Settings:
    wanted = PreprocessSettings(output_spaces=spaces, denoise=denoise)
    return replace(settings(raw, raw.parent / "out"), preprocess=wanted)


def test_spaces_with_transforms_in_the_package_and_own_spaces_are_accepted(raw: Path) -> None:
    assert checks.check_template(with_spaces(raw, "MNI152NLin6Asym", "MNI152NLin2009aSym", "T1w", "func"))


def test_an_unknown_space_is_refused_with_those_that_exist(raw: Path) -> None:
    with pytest.raises(UsageError, match="fsLR") as error:
        checks.check_template(with_spaces(raw, "fsLR"))
    assert "MNI152NLin2009cAsym, T1w, func" in error.value.hint


def test_a_space_without_transforms_is_refused_with_what_to_fetch(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templateflow"))
    name = "MNI152NLin2009cAsym"
    with pytest.raises(NoInputError, match=f"tpl-{name}_from-MNI152NLin6Asym_mode-image_xfm.h5") as error:
        checks.check_template(with_spaces(raw, name))
    assert f"tf.get('{name}', suffix='xfm'" in error.value.hint
    for target, source in ((name, "MNI152NLin6Asym"), ("MNI152NLin6Asym", name)):
        path = tmp_path / "templateflow" / f"tpl-{target}" / f"tpl-{target}_from-{source}_mode-image_xfm.h5"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"content")
    assert checks.check_template(with_spaces(raw, name))


def test_denoising_needs_an_output_space(raw: Path) -> None:
    with pytest.raises(UsageError, match="--denoise simple: no space"):
        checks.check_template(with_spaces(raw, denoise="simple"))


def with_atlases(raw: Path, *atlases: Path | str, denoise: str | None = None) -> Settings:
    wanted = PreprocessSettings(timeseries=tuple(map(str, atlases)), denoise=denoise)
    return replace(settings(raw, raw.parent / "out"), preprocess=wanted)


def save_labels(path: Path, start_mm: float = 0.0, labels: np.ndarray | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = start_mm
    return save_image(path, np.ones((4, 4, 4), np.int16) if labels is None else labels, affine)


def test_denoising_is_possible_for_series_of_regions_alone(raw: Path) -> None:
    assert checks.check_template(with_atlases(raw, "aal3", denoise="simple"))


def test_an_atlas_of_series_is_named_with_its_file(raw: Path, tmp_path: Path) -> None:
    path = save_labels(tmp_path / "mine.nii.gz")
    assert checks.check_timeseries(with_atlases(raw, path)) == str(path)
    assert checks.check_timeseries(with_atlases(raw)) == "not needed"


def test_an_atlas_of_series_that_cannot_be_used_is_refused_before_the_start(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown atlas 'nonsense'"):
        checks.check_timeseries(with_atlases(raw, "nonsense"))
    halves = save_labels(tmp_path / "halves.nii.gz", labels=np.full((4, 4, 4), 0.5, np.float32))
    with pytest.raises(BadDataError, match=r"halves\.nii\.gz: not a 3D image of whole numbers"):
        checks.check_timeseries(with_atlases(raw, halves))
    empty = save_labels(tmp_path / "empty.nii.gz", labels=np.zeros((4, 4, 4), np.int16))
    with pytest.raises(BadDataError, match=r"empty\.nii\.gz: no region on the model grid"):
        checks.check_timeseries(with_atlases(raw, empty))


def test_two_atlases_with_the_same_label_are_refused(raw: Path, tmp_path: Path) -> None:
    one, other = save_labels(tmp_path / "a" / "mine.nii.gz"), save_labels(tmp_path / "b" / "mine.nii.gz")
    with pytest.raises(UsageError, match="seg-mine"):
        checks.check_timeseries(with_atlases(raw, one, other))
    with pytest.raises(UsageError, match="given twice"):
        checks.check_timeseries(with_atlases(raw, one, one))


def test_an_atlas_whose_name_makes_no_label_is_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no letter or digit"):
        checks.check_timeseries(with_atlases(raw, save_labels(tmp_path / "_-_.nii.gz")))
