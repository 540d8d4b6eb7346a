"""The table of an export; each file is read back by the library that it is for."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bids_app.errors import BadDataError, UsageError
from bids_app.training.export.runs import EmbeddedRuns, read_runs, read_values
from bids_app.training.export.sets import sets_from_folds
from bids_app.training.export.tables import as_anndata, check_packages, feature_names, make_table
from bids_app.training.tasks import Task
from tests.helpers.installed import needs
from tests.helpers.paths import ROOT

MADE_OF = ("x", "y")


@pytest.fixture
def found(make_outputs) -> EmbeddedRuns:
    """Return the runs of 9 participants in two sessions."""
    return read_runs(make_outputs(participants=9).out, normalisation="global")


def test_the_table_has_names_labels_sets_verdicts_quality_and_sources(found: EmbeddedRuns) -> None:
    values = ["F", "M"] * 9
    task = Task.from_values("sex", values)
    sets = sets_from_folds(task, found.runs, ["F" if i % 4 < 2 else "M" for i in range(18)], {}, 3, 0)
    table = make_table(found, {"sex": values, "age": [*map(str, range(17)), None]}, sets)
    assert table.columns[:8].tolist() == ["name", "participant_id", "ses", "task", "sex", "age", "split", "fold"]
    row = table.iloc[3]
    run = found.runs[3].record
    assert (row["name"], row["participant_id"], row["ses"], row["sex"]) == (run.stem, "sub-02", "2", "M")
    assert (row["verdict"], row["iqm_fd_mean"]) == (run.worst_verdict, run.quality["fd_mean"])
    assert row["source"] == "bids:raw:sub-02/func/x_bold.nii.gz"
    assert table["age"].dtype == float
    assert np.isnan(table["age"].iloc[-1])
    assert table["split"].tolist() == list(sets.names)
    assert set(table["fold"]) == {1, 2, 3}


def test_each_verdict_has_its_reasons(found: EmbeddedRuns) -> None:
    record = found.runs[0].record
    record.verdict, record.reasons = "pass", ()
    record.predictions["sex"] = {"verdict": "refuse", "verdict_reasons": "duration, tr"}
    row = make_table(found, {}, None).iloc[0]
    assert (row["verdict"], row["verdict_reasons"]) == ("refuse", "duration, tr")


@pytest.mark.parametrize("column", ["split", "verdict", "e0003", "iqm_fd_mean"])
def test_a_label_with_the_name_of_another_column_is_refused(found: EmbeddedRuns, column: str) -> None:
    sets = sets_from_folds(Task.from_values("a", MADE_OF), found.runs, list(MADE_OF) * 9, {}, 2, 0)
    with pytest.raises(BadDataError, match=f'"{column}" has the name of a column'):
        make_table(found, {column: ["F", "M"] * 9}, sets)


def test_numbers_become_numbers_but_classes_and_codes_stay_text(found: EmbeddedRuns) -> None:
    codes, numbers = ["01", "02"] * 9, ["0.5", "2"] * 9
    groups = ["1", "2"] * 9
    task = Task.from_values("group", groups)
    table = make_table(found, {"group": groups, "code": codes, "score": numbers}, None, task)
    assert table["group"].tolist() == ["1", "2"] * 9
    assert table["code"].tolist() == codes
    assert table["score"].tolist() == [0.5, 2.0] * 9


def test_long_identifiers_stay_as_they_are(found: EmbeddedRuns) -> None:
    long, underscored = [f"1234567890123456{i}" for i in range(18)], [f"1_0{i}" for i in range(18)]
    table = make_table(found, {"long": long, "underscored": underscored}, None)
    assert (table["long"].tolist(), table["underscored"].tolist()) == (long, underscored)


def test_the_target_of_a_regression_has_numbers(found: EmbeddedRuns) -> None:
    ages = [f"{i:02d}" for i in range(18)]
    table = make_table(found, {"age": ages, "code": ages}, None, Task.from_values("age", ages))
    assert table["age"].tolist() == list(range(18))
    assert table["code"].tolist() == ages


@pytest.mark.parametrize("column", ["height/cm", "_index"])
def test_columns_that_anndata_cannot_store_are_refused(found: EmbeddedRuns, column: str) -> None:
    table = make_table(found, {column: ["1", "2"] * 9}, None)
    with pytest.raises(BadDataError, match=f'"{column}" has a name that AnnData cannot store'):
        as_anndata(table, found, {})


def test_a_label_that_is_an_entity_is_one_column(found: EmbeddedRuns) -> None:
    table = make_table(found, {"task": ["rest"] * 18}, None)
    assert table.columns.tolist().count("task") == 1
    with pytest.raises(BadDataError, match='"task" has the name'):
        make_table(found, {"task": ["rest"] * 17 + ["other"]}, None)


@pytest.mark.parametrize(
    ("name", "package"), [("parquet", "pyarrow"), ("brainmarks", "pyarrow"), ("anndata", "anndata"), ("zarr", "zarr")]
)
def test_a_missing_package_is_named_with_what_to_install(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("anndata", "pyarrow", "zarr"):
        monkeypatch.setitem(sys.modules, other, None if other == package else json)
    with pytest.raises(UsageError, match=rf"--format {name} .*{package}.*pip install .neurostorm\[export\]"):
        check_packages(name)


READERS = {
    "parquet": """
import json, sys
import pandas as pd
import polars
frame, other = pd.read_parquet(sys.argv[1]), polars.read_parquet(sys.argv[1])
assert other["name"].to_list() == frame["name"].tolist()
assert other.schema["e0000"] == polars.Float32
assert (other.select("^e[0-9]+$").to_numpy() == frame.filter(regex="^e[0-9]+$").to_numpy()).all()
assert other["split"].to_list() == frame["split"].tolist()
about = json.loads(polars.read_parquet_metadata(sys.argv[1])["PANDAS_ATTRS"])
assert about == frame.attrs
frame.set_index("name").filter(regex="^e[0-9]+$").to_csv(sys.argv[2])
frame[["name", "sex", "split", "fold", "verdict", "iqm_fd_mean", "source"]].to_csv(sys.argv[3], index=False)
print(json.dumps(about["neurostorm"]))
""",
    "anndata": """
import json, sys
import anndata
import pandas as pd
found = {"h5ad": anndata.read_h5ad, "zarr": anndata.read_zarr}[sys.argv[1].rpartition(".")[2]](sys.argv[1])
values = found.obsm["X_neurostorm"]
assert values.dtype == "float32"
columns = [f"e{i:04d}" for i in range(values.shape[1])]
pd.DataFrame(values, found.obs_names, columns).rename_axis("name").to_csv(sys.argv[2])
obs = found.obs.rename_axis("name").reset_index()
obs[["name", "sex", "split", "fold", "verdict", "iqm_fd_mean", "source"]].to_csv(sys.argv[3], index=False)
print(json.dumps({key: value.tolist() if hasattr(value, "tolist") else value
                  for key, value in found.uns["neurostorm"].items()}))
""",
    "zarr": """
import json, sys
import numpy as np
import pandas as pd
import zarr
found = zarr.open_group(sys.argv[1], mode="r")
assert found.metadata.zarr_format == 3
values = found["obsm/X_neurostorm"][:]
names = [str(name) for name in found["obs/name"][:]]
pd.DataFrame(values, names, [f"e{i:04d}" for i in range(values.shape[1])]).rename_axis("name").to_csv(sys.argv[2])
obs = {"name": names}
for key in ("sex", "split", "verdict", "source"):
    codes, texts = found[f"obs/{key}/codes"][:], found[f"obs/{key}/categories"][:]
    obs[key] = [str(texts[code]) for code in codes]
for key in ("fold", "iqm_fd_mean"):
    obs[key] = found[f"obs/{key}"][:]
columns = ["name", "sex", "split", "fold", "verdict", "iqm_fd_mean", "source"]
pd.DataFrame(obs)[columns].to_csv(sys.argv[3], index=False)
print(json.dumps({key: np.asarray(value[()]).tolist() for key, value in found["uns/neurostorm"].arrays()}))
""",
}
"""Programs that read an export, and write its embeddings and some columns as CSV."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "name", "reader"),
    [
        pytest.param(".parquet", "parquet", "parquet", marks=[needs("pyarrow"), needs("polars")]),
        pytest.param(".h5ad", "anndata", "anndata", marks=needs("anndata")),
        pytest.param(".zarr", "zarr", "anndata", marks=[needs("anndata"), needs("zarr")]),
        pytest.param(".zarr", "zarr", "zarr", marks=[needs("anndata"), needs("zarr")]),
    ],
)
def test_an_export_is_read_back_by_its_library(
    make_outputs, run_installed, tmp_path: Path, suffix: str, name: str, reader: str
) -> None:
    made = make_outputs(participants=10)
    path, values, columns = tmp_path / f"cohort{suffix}", tmp_path / "values.csv", tmp_path / "columns.csv"
    options = ["--target", "participants.tsv:sex", "--normalisation", "global", "--output", path]
    run_installed("-m", "bids_app.cli.train", "export", made.out, "--format", name, *options)
    about = json.loads(run_installed("-c", READERS[reader], path, values, columns))
    expected = read_runs(made.out, normalisation="global")
    labels = read_values("participants.tsv:sex", expected.runs, made.out)
    sets = sets_from_folds(Task.from_values("sex", labels), expected.runs, labels, {}, 5, 0)
    read = pd.read_csv(values, index_col="name")
    assert read.index.tolist() == [run.name for run in expected.runs]
    assert read.columns.tolist() == feature_names(expected)
    np.testing.assert_array_equal(read.to_numpy(np.float32), expected.values)
    table = pd.read_csv(columns)
    assert (table["sex"].tolist(), table["split"].tolist()) == (labels, list(sets.names))
    assert table["fold"].tolist() == list(sets.folds)
    assert table["verdict"].tolist() == [run.record.worst_verdict for run in expected.runs]
    np.testing.assert_allclose(table["iqm_fd_mean"], [run.record.quality["fd_mean"] for run in expected.runs])
    assert (about["model"], about["normalisation"], about["weights_sha256"]) == ("made", "global", "0" * 64)
    assert about["dataset"] == "NeuroSTORM outputs of Simulated"
    assert not re.search(re.escape(str(tmp_path)), json.dumps(about) + columns.read_text())


@needs("pyarrow")
@pytest.mark.slow
def test_the_lines_of_the_readme_give_the_embeddings_in_pandas(make_outputs, run_installed, tmp_path: Path) -> None:
    made = make_outputs(participants=3)
    text = (ROOT / "README.md").read_text()
    (options,) = re.findall(r"after `neurostorm-train export /data/out (.*?)`:", text)
    _, lines, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    run_installed("-m", "bids_app.cli.train", "export", made.out, *options.split())
    run_installed("-c", f"import pandas\n{lines}\nembeddings.to_csv('read.csv', index=False)")
    read = pd.read_csv(tmp_path / "read.csv").to_numpy(np.float32)
    np.testing.assert_array_equal(read, read_runs(made.out, normalisation="global").values)


OTHERS = {
    "parquet": "import pandas, sys; pandas.DataFrame({'name': [1]}).to_parquet(sys.argv[1])",
    "anndata": "import h5py, sys; h5py.File(sys.argv[1], 'w').create_group('uns')",
}
"""Programs that write a file that is no export."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "name"),
    [
        pytest.param("x.parquet", "parquet", marks=needs("pyarrow")),
        pytest.param("x.h5ad", "anndata", marks=needs("anndata")),
    ],
)
def test_only_exports_are_overwritten(make_outputs, run_installed, tmp_path: Path, output: str, name: str) -> None:
    made, path = make_outputs(participants=2), tmp_path / output
    run_installed("-c", OTHERS[name], path)
    before = path.read_bytes()
    export = ["export", made.out, "--format", name, "--output", path, "--normalisation", "global", "--overwrite"]
    code = "import sys; from bids_app.cli.train import main; print(main(sys.argv[1:]))"
    assert run_installed("-c", code, *export).strip() == "73"
    assert path.read_bytes() == before
    path.unlink()
    for _ in range(2):
        run_installed("-m", "bids_app.cli.train", *export)


FULL_DISK = """
import resource, sys
from bids_app.cli.train import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
print(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "name"),
    [
        pytest.param("x.parquet", "parquet", marks=needs("pyarrow")),
        pytest.param("x.h5ad", "anndata", marks=needs("anndata")),
        pytest.param("x.zarr", "zarr", marks=[needs("anndata"), needs("zarr")]),
        pytest.param("x", "brainmarks", marks=needs("pyarrow")),
    ],
)
def test_a_full_disk_is_named_and_leaves_the_earlier_export(
    make_outputs, run_installed, tmp_path: Path, output: str, name: str
) -> None:
    made, folder = make_outputs(participants=20), tmp_path / "exports"
    path = folder / output
    export = ["export", made.out, "--format", name, "--output", path, "--target", "participants.tsv:sex"]
    run_installed("-m", "bids_app.cli.train", *export, "--normalisation", "global")
    before = {each.relative_to(folder): each.stat().st_mtime_ns for each in folder.rglob("*")}
    assert run_installed("-c", FULL_DISK, *export, "--normalisation", "global", "--overwrite").strip() == "74"
    assert {each.relative_to(folder): each.stat().st_mtime_ns for each in folder.rglob("*")} == before
