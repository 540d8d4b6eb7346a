"""An export as a dataset of Brainmarks, which scores it as ``evaluate`` does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bids_app.cli.train import main
from bids_app.errors import BadDataError, UsageError
from bids_app.training.export.brainmarks import check_sets_and_classes, dataset_name
from bids_app.training.export.runs import read_runs
from bids_app.training.export.sets import Sets
from bids_app.training.head import compute_embeddings
from bids_app.training.tasks import Task
from tests.helpers.installed import INSTALLED, needs

ON_A_CPU = ["device=cpu", "amp=false", "num_workers=1", "n_trials=0"]


@pytest.mark.parametrize(
    ("target", "name", "expected"),
    [
        ("participants.tsv:sex", None, "neurostorm_sex"),
        ("t.tsv:Age group (y)", None, "neurostorm_age_group_y"),
        ("participants.tsv:sex", "abide", "neurostorm_abide"),
    ],
)
def test_names_of_datasets_are_modules_and_none_of_brainmarks(target: str, name: str | None, expected: str) -> None:
    assert dataset_name(target, name) == expected


@pytest.mark.parametrize(("target", "name"), [("t.tsv:sex", "../up"), ("t.tsv:sex", "a b"), ("t.tsv:???", None)])
def test_names_that_are_no_modules_are_refused(target: str, name: str | None) -> None:
    with pytest.raises(UsageError, match="--name"):
        dataset_name(target, name)


def test_each_set_must_have_all_classes_and_numbers_are_refused() -> None:
    classes = Task.from_values("sex", ["F", "M"])
    names = ("training", "training", "validation", "validation", "test", "test")
    check_sets_and_classes(classes, Sets(names, (), ""), list("FMFMFM"))
    with pytest.raises(BadDataError, match="test set has no run of class M"):
        check_sets_and_classes(classes, Sets(names, (), ""), list("FMFMFF"))
    with pytest.raises(BadDataError, match="validation set has no run of class F, M"):
        check_sets_and_classes(classes, Sets(("training",) * 4 + ("test",) * 2, (), ""), list("FMFMFM"))
    numbers = Task.from_values("age", [str(i) for i in range(20)])
    with pytest.raises(UsageError, match="age is a regression; Brainmarks predicts classes"):
        check_sets_and_classes(numbers, Sets((), (), ""), [])


def test_labels_are_required(make_outputs, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_outputs(participants=2)
    assert main(["export", str(made.out), "--format", "brainmarks", "--output", str(tmp_path / "new")]) == 64
    assert "--target participants.tsv:COLUMN" in capsys.readouterr().err
    options = ["--target", "t.tsv:a", "--also-target", "t.tsv:b", "--output", str(tmp_path / "new")]
    assert main(["export", str(made.out), "--format", "brainmarks", *options]) == 64
    assert "one target" in capsys.readouterr().err


@pytest.fixture
def export_cohort(make_outputs, make_store, invented_series, tiny_model, tmp_path: Path, run_installed):
    """Return a function that exports the embeddings of a clip store: 60 participants whose sex shows in their scans."""

    def export(*options: object) -> Path:
        made = make_outputs(participants=60, sessions=1, features=tiny_model.config.n_features)
        store = make_store(0)
        rng = np.random.default_rng(0)
        for number, name in enumerate(made.participants):
            amplitude = 20 * (1 if number % 2 else -1) + rng.normal(0, 30)
            series = invented_series(number, 22, abs(amplitude), int(np.sign(amplitude)))
            store.add(f"{name}_task-rest", series, name.removeprefix("sub-"))
        scans = list(store)
        values, _ = compute_embeddings(tiny_model, scans, 8)
        for scan, row in zip(scans, values.numpy(), strict=True):
            write_embedding(made.out / f"sub-{scan.participant}" / "func", row)
        target = ["--target", made.raw / "participants.tsv:sex", "--normalisation", "global"]
        command = ["-m", "bids_app.cli.train", "export", made.out, "--format", "brainmarks", *target]
        run_installed(*command, "--output", tmp_path / "cohort", *options)
        return tmp_path / "cohort"

    return export


def write_embedding(folder: Path, values: np.ndarray) -> None:
    """Replace the embeddings of a run, in all rows of its table."""
    (path,) = folder.glob("*_embeddings.tsv")
    table = pd.read_csv(path, sep="\t", dtype=str)
    names = [name for name in table if name.startswith("e0")]
    table[names] = [[repr(float(value)) for value in values]] * len(table)
    table.to_csv(path, sep="\t", index=False)


def run_logistic(run_installed: Callable[..., str], folder: Path, output: Path, name: str) -> pd.DataFrame:
    """Run Brainmarks' ``main_logistic`` on a CPU, and return its table by set."""
    arguments = ["neurostorm_embeddings", "patch", name, "--overrides", *ON_A_CPU, f"output_root={output}"]
    run_installed("-m", "brainmarks.main_logistic", *arguments, path=folder)
    (table,) = output.rglob("eval_table.csv")
    return pd.read_csv(table).set_index("split")


@needs("brainmarks")
@needs("pyarrow")
@needs("datasets")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_main_logistic_agrees_with_the_linear_evaluation_on_the_same_split(
    export_cohort, run_installed, tmp_path: Path
) -> None:
    folder = export_cohort("--seed", "0")
    theirs = run_logistic(run_installed, folder, tmp_path / "theirs", "neurostorm_sex")
    evaluation = [
        "evaluate", tmp_path / "store", "--model", tmp_path / "tiny.safetensors", "--normalisation", "global",
        "--target", tmp_path / "raw" / "participants.tsv:sex", "--split", folder / "evaluate.split.tsv",
        "--baselines", "--permutations", "0", "--output", tmp_path / "ours",
    ]  # fmt: skip
    assert main([str(word) for word in evaluation]) == 0
    scores = pd.read_csv(tmp_path / "ours" / "scores.tsv", sep="\t").set_index(["method", "score"])["value"]
    answers = pd.read_csv(tmp_path / "ours" / "answers.tsv", sep="\t")
    split = pd.read_csv(folder / "split.tsv", sep="\t").set_index("split")["participant_id"]
    assert set(answers["participant_id"]) == set(split["test"])
    assert len(split["test"]) == 12
    ours, found = scores["encoder", "balanced_accuracy"], theirs.loc["test", "bacc"]
    assert abs(ours - found) < 1.5 / 12  # at most one participant of the test set
    assert min(ours, found) > 0.75


READ = """
import json, sys
import pyarrow
from brainmarks.datasets.registry import create_dataset, list_datasets
found = create_dataset(sys.argv[1], space="neurostorm_embeddings")
assert sys.argv[1] in list_datasets()
rows = {}
for name, dataset in found.items():
    for i in range(len(dataset)):
        sample = dataset[i]
        label, values = str(dataset.labels[sample["target"]]), sample["bold"]
        quality = [sample["verdict"], float(sample["iqm_fd_mean"]), sample["source"]]
        rows[sample["name"]] = [name, label, values.shape, values.tolist(), quality]
for file in sys.argv[2:]:
    with pyarrow.ipc.open_stream(file) as stream:
        assert json.loads(stream.schema.metadata[b"neurostorm"])["weights_sha256"] == "0" * 64
try:
    create_dataset(sys.argv[1], space="mni")
except ValueError as error:
    print(json.dumps([rows, str(error)]))
"""


@needs("brainmarks")
@needs("pyarrow")
@needs("datasets")
@pytest.mark.slow
def test_brainmarks_reads_embeddings_classes_and_sets_wherever_the_folder_is(
    make_outputs, run_installed, tmp_path: Path
) -> None:
    made, folder = make_outputs(participants=12), tmp_path / "cohort"
    options = ["--target", "participants.tsv:sex", "--normalisation", "voxel", "--name", "own", "--output", folder]
    export = ["-m", "bids_app.cli.train", "export", made.out, "--format", "brainmarks", *options]
    run_installed(*export)
    (folder / "old").touch()
    run_installed(*export, "--overwrite")
    assert not (folder / "old").exists()
    moved = folder.rename(tmp_path / "elsewhere")
    files = sorted(moved.rglob("*.arrow/*/data.arrow"))
    assert [path.parent.name for path in files] == ["test", "train", "validation"]
    rows, refused = json.loads(run_installed("-c", READ, "neurostorm_own", *files, path=moved))
    assert "not series of the space mni" in refused
    table = pd.read_csv(made.raw / "participants.tsv", sep="\t").set_index("participant_id")["sex"]
    split = pd.read_csv(moved / "split.tsv", sep="\t").set_index("participant_id")["split"]
    assert len(rows) == 24
    records = {run.name: run.record for run in read_runs(made.out, normalisation="voxel").runs}
    for name, (part, label, shape, values, quality) in rows.items():
        participant = name.partition("_")[0]
        assert label == table[participant]
        assert part == split[participant].replace("training", "train")
        record = records[name]
        assert quality[0] == record.worst_verdict
        assert quality[1] == pytest.approx(record.quality["fd_mean"])
        assert quality[2] == f"bids:raw:{participant}/func/x_bold.nii.gz"
        (path,) = made.out.glob(f"{participant}/**/{name}_desc-made_embeddings.tsv")
        own = pd.read_csv(path, sep="\t", dtype={"clip": str}).query("clip == 'mean' and normalisation == 'voxel'")
        assert shape == [1, 16]
        np.testing.assert_array_equal(np.float32(values[0]), own.filter(regex=r"^e\d+$").to_numpy(np.float32)[0])
    about = json.loads((moved / "dataset.json").read_text())
    assert (about["name"], about["model"], about["classes"]) == ("neurostorm_own", "made", ["F", "M"])
    texts = [path.read_text() for path in moved.rglob("*") if path.suffix in (".json", ".py", ".tsv")]
    assert not any(re.search(re.escape(str(tmp_path)), text) for text in texts)


@needs("brainmarks")
@pytest.mark.slow
def test_no_file_of_brainmarks_has_the_name_of_a_module_of_an_export() -> None:
    assert (INSTALLED / "brainmarks" / "datasets" / "registry.py").is_file()
    names = {path.name for kind in ("datasets", "models") for path in (INSTALLED / "brainmarks" / kind).iterdir()}
    assert not {name for name in names if name.startswith("neurostorm_")}
