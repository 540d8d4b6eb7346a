"""Security: input files are never executed or unpickled, and never set paths outside the output folder."""

from __future__ import annotations

import ast
import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bids_app.adapters.file import load_adapter
from bids_app.bids.writer import output_path
from bids_app.cli.neurostorm import main, parse_settings
from bids_app.errors import BadDataError, NeurostormError, UsageError
from bids_app.model.checkpoint import read_checkpoint
from bids_app.settings import default_work_dir

PACKAGE = Path(__file__).parents[2] / "bids_app"
CALLS_THAT_RUN_OR_UNPACK = {
    "eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads", "shelve.open",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "joblib.load", "dill.load", "shutil.unpack_archive",
    "runpy.run_path", "imp.load_source", "pd.read_pickle", "pandas.read_pickle",
}  # fmt: skip
MODULES_THAT_UNPACK = {"tarfile", "zipfile", "marshal", "shelve", "joblib", "dill", "cloudpickle"}
SAFE_ONLY_WITH = {"torch.load": ("weights_only", True, False), "np.load": ("allow_pickle", False, False)}
"""Keyword, required value, and its default."""


def what_is_unsafe(path: Path) -> list[str]:
    """Find calls and imports in a file that execute or unpickle data."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += sorted({alias.name.split(".")[0] for alias in node.names} & MODULES_THAT_UNPACK)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            constants = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            key, safe, default = SAFE_ONLY_WITH.get(name, ("", None, None))
            unsafe = constants.get(key, default) is not safe
            if unsafe or name in CALLS_THAT_RUN_OR_UNPACK or constants.get("shell") is True:
                found.append(name)
    return found


def test_the_package_has_no_code_that_executes_or_unpickles_files() -> None:
    unsafe = {str(path.relative_to(PACKAGE)): what_is_unsafe(path) for path in PACKAGE.rglob("*.py")}
    assert {name: found for name, found in unsafe.items() if found} == {}


def test_the_code_scan_finds_unsafe_calls(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    unsafe = ["import tarfile", "torch.load(x)", "yaml.load(x)", "np.load(x, allow_pickle=True)", "run(x, shell=True)"]
    path.write_text("\n".join([*unsafe, "np.load(x)", "run(x)", "yaml.safe_load(x)"]))
    assert what_is_unsafe(path) == ["tarfile", "torch.load", "yaml.load", "np.load", "run"]


class Bomb:
    """Object that leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("given_by", ["-w", "NEUROSTORM_SCRATCH"])
@pytest.mark.parametrize("folder", ["the scratch folder", "the folder of results"])
def test_a_result_planted_in_scratch_that_others_can_write_is_not_unpickled(
    tiny_dataset, tmp_path: Path, monkeypatch, capsys, given_by: str, folder: str
) -> None:
    monkeypatch.setenv("NEUROSTORM_SCRATCH", str(tmp_path / "scratch"))
    out, mark = tmp_path / "out", tmp_path / "mark"
    work = tmp_path / "work" if given_by == "-w" else default_work_dir(out)
    node = work / "neurostorm" / "sub_01_task_rest_examine"
    node.mkdir(parents=True)
    for name in (f"result_{node.name}.pklz", "_node.pklz", "_inputs.pklz"):
        (node / name).write_bytes(gzip.compress(pickle.dumps(Bomb(mark))))
    (work if folder == "the scratch folder" else node.parent).chmod(0o777)
    options = ["-w", str(work)] if given_by == "-w" else []
    command = [str(tiny_dataset.root), str(out), "participant", "--model", "demo", "--mem", "8GB", *options]
    assert main([*command, "--check"]) == 73
    assert main(command) == 73
    assert str(work) in capsys.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["checkpoint", "adapter"])
def test_weights_with_code_are_refused_and_not_executed(tmp_path: Path, suffix: str, kind: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / f"weights{suffix}"
    torch.save({"state_dict": {"model.x": torch.zeros(1)}, "hyper_parameters": Bomb(mark)}, path)
    with pytest.raises(BadDataError, match="weights"):
        (read_checkpoint if kind == "checkpoint" else load_adapter)(path)
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(BadDataError, match="weights"):
        (read_checkpoint if kind == "checkpoint" else load_adapter)(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # it would have


CARD = {
    "name": "a", "task": "classification", "target": "state", "encoder_sha256": "0" * 64, "normalisation": "voxel",
    "labels": ["a", "b"],
}  # fmt: skip
BAD_CARDS = {
    "a name that is a path": {"name": "../../etc/passwd"},
    "a name that is markup": {"name": "<script>"},
    "no name": {"name": ""},
    "a name that is a list": {"name": ["a"]},
    "an unknown key": {"run": "os.system('true')"},
    "an unknown task": {"task": "surgery"},
    "labels that are numbers": {"labels": [1, 2]},
    "the same label twice": {"labels": ["a", "a"]},
    "labels that are text": {"labels": "ab"},
    "a scale that is no number": {"task": "regression", "labels": [], "value_std": float("nan")},
    "a mean that is no number": {"task": "regression", "labels": [], "value_mean": float("inf")},
    "a length that is text": {"prompt_len": "3"},
    "a length below 0": {"prompt_len": -1},
    "metrics that are a list": {"metrics": []},
    "a demonstration that is text": {"demonstration": "yes"},
    "a hash that is none": {"encoder_sha256": "x" * 64},
}


def write_adapter(path: Path, card: str, **metadata: str) -> Path:
    fields = {"format": "neurostorm-adapter", "version": "1", "card": card} | metadata
    save_file({"head.weight": torch.zeros(1, 8), "head.bias": torch.zeros(1)}, path, fields)
    return path


@pytest.mark.parametrize("change", BAD_CARDS.values(), ids=BAD_CARDS)
def test_an_adapter_with_an_invalid_card_is_refused(tmp_path: Path, change: dict) -> None:
    path = write_adapter(tmp_path / "adapter.safetensors", json.dumps(CARD | change))
    with pytest.raises(BadDataError, match="adapter") as caught:
        load_adapter(path)
    assert str(path) in caught.value.message


def test_the_unmodified_card_is_accepted(tmp_path: Path) -> None:
    assert load_adapter(write_adapter(tmp_path / "adapter.safetensors", json.dumps(CARD))).card.name == "a"


@pytest.mark.parametrize("card", ["", "[]", "null", "{", "3", "[" * 100_000, '{"labels": 3}'])
def test_a_card_that_is_not_an_object_is_refused(tmp_path: Path, card: str) -> None:
    with pytest.raises(BadDataError, match="adapter"):
        load_adapter(write_adapter(tmp_path / "adapter.safetensors", card))


@pytest.mark.parametrize("label", ["../../x", "..", "a\0b", "*", ""])
def test_labels_that_are_paths_match_nothing(tiny_dataset, tmp_path: Path, capsys, label: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    for option in ("--participant-label", "--session-label", "--task-id"):
        command = [str(tiny_dataset.root), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]
        assert main([*command, "--model", "demo", "--mem", "8GB", option, label]) == 18
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "raw", "", "a b", "<b>"])
def test_names_of_derivatives_cannot_be_paths_or_markup(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid name"):
        parse_settings(["a", "b", "participant", "-d", f"{name}={tmp_path}"])


FILTERS = {
    "a path": {"bold": {"task": "../../etc"}},
    "an expression": {"bold": {"task": ".*", "regex_search": True}},
    "a broken expression": {"bold": {"task": "(", "regex_search": True}},
    "another folder": {"bold": {"scope": "derivatives"}},
    "an unknown entity": {"bold": {"owner": "root"}},
    "lists in lists": {"bold": {"task": [["rest"]]}},
    "an object": {"bold": {"task": {"a": 1}}},
    "a return type": {"bold": {"return_type": "id"}},
    "a target": {"bold": {"return_type": "dir", "target": "subject"}},
    "markup": {"t1w": {"acquisition": "<script>"}},
}


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_filters_select_dataset_files_or_are_refused(tiny_dataset, tmp_path: Path, capsys, filters: dict) -> None:
    path = tmp_path / "filters.json"
    path.write_text(json.dumps(filters))
    out = tmp_path / "out"
    command = [str(tiny_dataset.root), str(out), "participant", "--check", "--model", "demo", "--mem", "8GB"]
    code = main([*command, "--bids-filter-file", str(path)])
    assert code in (0, 18, 64), capsys.readouterr()
    assert "Traceback" not in "".join(capsys.readouterr())
    assert not out.exists()


def test_a_linked_image_is_read_and_its_folder_is_not_written(tiny_dataset, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    bold = tiny_dataset.write_bold(data=np.full((12, 12, 8, 30), 7, np.int16))
    kept = bold.rename(outside / "bold.nii.gz")
    tiny_dataset.bold_path().symlink_to(kept)
    before = kept.stat().st_mtime_ns
    command = [str(tiny_dataset.root), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]
    assert main([*command, "--model", "demo", "--mem", "8GB", "--nprocs", "1"]) == 65  # read, and empty
    assert list(outside.iterdir()) == [kept]
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("label", ["../x", "a/b", "..", "<b>", ""])
def test_outputs_are_named_by_valid_labels_only(tmp_path: Path, label: str) -> None:
    for entities in ({"sub": label}, {"sub": "01", "ses": label}, {"sub": "01", "task": label}):
        with pytest.raises(ValueError, match="label"):
            output_path(tmp_path, entities, "bold", ".nii.gz")
    with pytest.raises(ValueError, match="label"):
        output_path(tmp_path, {"sub": "01"}, "bold", ".nii.gz", desc=label)


def test_an_array_file_with_objects_is_refused(tmp_path: Path) -> None:
    from bids_app.clips import GridSeries

    folder = tmp_path / "grid"
    folder.mkdir()
    (folder / "meta.json").write_text('{"tr": 2.0, "start": 0.0}')
    np.save(folder / "values.npy", np.array([Bomb(tmp_path / "mark")], dtype=object), allow_pickle=True)
    np.save(folder / "mask.npy", np.zeros((96, 96, 96), bool))
    with pytest.raises(NeurostormError):
        GridSeries.open(folder)
    assert not (tmp_path / "mark").exists()
