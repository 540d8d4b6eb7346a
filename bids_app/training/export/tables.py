"""The table of an export, and its files for pandas, polars, AnnData and Zarr.

N  runs      C  features
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_app.adapters.file import CLASSIFICATION
from bids_app.bids.writer import atomic_folder, atomic_path
from bids_app.errors import BadDataError, UsageError
from bids_app.group.tables import run_keys
from bids_app.training.export.provenance import sources_of
from bids_app.training.export.runs import EmbeddedRuns
from bids_app.training.export.sets import Sets
from bids_app.training.tasks import Task, is_number

if TYPE_CHECKING:
    import pandas as pd

PROVENANCE = "neurostorm"
"""Key of the provenance: in ``attrs`` of a DataFrame, and in ``uns`` of an AnnData object."""
REPRESENTATION = "X_neurostorm"
"""Key of the embeddings in ``obsm``."""
CODE = re.compile(r"\s*[+-]?(0\d|\d{16})")
"""Start of a code that is no number, such as 007 or an identifier of more digits than a number of 64 bits keeps."""
NOT_IN_ANNDATA = "_index"
"""Name that AnnData keeps for itself."""
QUALITY_PREFIX = "iqm_"
"""Prefix of the columns with image quality metrics."""


def make_table(
    found: EmbeddedRuns, labels: Mapping[str, Sequence[str | None]], sets: Sets | None, task: Task | None = None
) -> pd.DataFrame:
    """Make the table of the runs, without the embeddings.

    Parameters
    ----------
    found : EmbeddedRuns
    labels : mapping
        Values of each label, (N,); a column whose values are all numbers becomes one of numbers. Codes such as ``01``
        are text.
    sets : Sets, optional
    task : Task, optional
        Task of the target, whose classes stay text, and whose numbers become numbers.

    Returns
    -------
    pandas.DataFrame, (N, columns)
        Names, labels, sets, verdicts, image quality metrics, and sources.

    Raises
    ------
    BadDataError
        A label has the name of another column.
    """
    import pandas as pd

    runs = found.runs
    entities = dict.fromkeys(key for run in runs for key in run_keys(run.record))
    columns: dict[str, Sequence[Any]] = {"name": [run.name for run in runs]}
    columns |= {key: [run_keys(run.record).get(key) for run in runs] for key in entities}
    after: dict[str, Sequence[Any]] = {}
    if sets is not None:
        after["split"] = [name or None for name in sets.names]
        after |= {"fold": sets.folds} if sets.folds else {}
    after |= {
        "verdict": [run.record.worst_verdict or None for run in runs],
        "verdict_reasons": [", ".join(run.record.all_reasons) for run in runs],
        "n_warnings": [run.record.n_warnings for run in runs],
        "duration": [run.vector.duration for run in runs],
        "split_half": [_number(run.vector.split_half) for run in runs],
    }
    metrics = dict.fromkeys(key for run in runs for key in run.record.quality)
    after |= {QUALITY_PREFIX + key: [_number(run.record.quality.get(key)) for run in runs] for key in metrics}
    after["configuration"] = [" ".join(sorted(run.record.configurations)) for run in runs]
    after["source"] = [sources_of(run) for run in runs]
    labels = {name: values for name, values in labels.items() if columns.get(name) != list(values)}  # scan:task
    taken = {*columns, *after, *feature_names(found)} & set(labels)
    if taken:
        raise BadDataError(
            f'Column "{min(taken)}" has the name of a column of the export.', "Rename the column in its table."
        )
    columns |= {name: _typed(values, task if task and task.target == name else None) for name, values in labels.items()}
    return pd.DataFrame(columns | after)


def feature_names(found: EmbeddedRuns) -> list[str]:
    """Return the names of the features, as in the tables of the participant level: ``e0000``, ..."""
    return [f"e{i:04d}" for i in range(found.values.shape[1])]


def write_parquet(path: Path, table: pd.DataFrame, found: EmbeddedRuns, about: Mapping[str, Any]) -> None:
    """Write table and embeddings as Parquet; the provenance is in ``attrs`` of the DataFrame that pandas reads."""
    import pandas as pd

    values = pd.DataFrame(found.values, columns=feature_names(found), index=table.index)
    whole = pd.concat([table, values], axis=1)
    whole.attrs[PROVENANCE] = dict(about)
    with atomic_path(path) as temporary:
        whole.to_parquet(temporary, engine="pyarrow", index=False)


def write_anndata(path: Path, table: pd.DataFrame, found: EmbeddedRuns, about: Mapping[str, Any]) -> None:
    """Write an ``.h5ad`` file of AnnData; see `as_anndata`."""
    import anndata
    import h5py

    content = io.BytesIO()  # HDF5 ends the process if the disk is full
    with h5py.File(content, "w") as file:
        anndata.io.write_elem(file, "/", as_anndata(table, found, about))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def write_zarr(path: Path, table: pd.DataFrame, found: EmbeddedRuns, about: Mapping[str, Any]) -> None:
    """Write a Zarr store with the layout of AnnData; see `as_anndata`."""
    import anndata

    made = as_anndata(table, found, about)
    with (
        atomic_folder(path) as temporary,
        anndata.settings.override(zarr_write_format=3),
        warnings.catch_warnings(),
    ):
        for notice in ("zarr v3 autosharding", "Consolidated metadata"):  # on other versions of the libraries
            warnings.filterwarnings("ignore", notice, UserWarning)
        made.write_zarr(temporary)


def as_anndata(table: pd.DataFrame, found: EmbeddedRuns, about: Mapping[str, Any]) -> Any:
    """Return an AnnData object.

    Returns
    -------
    anndata.AnnData
        ``obs``: the table, by names of runs; ``obsm``: the embeddings (N, C) as `REPRESENTATION`; ``uns``: the
        provenance as `PROVENANCE`. There is no ``X``.

    Raises
    ------
    BadDataError
        A column has a name that AnnData cannot store.
    """
    for name in map(str, table):
        if "/" in name or name == NOT_IN_ANNDATA:
            raise BadDataError(
                f'Column "{name}" has a name that AnnData cannot store.',
                "Rename the column in its table, without a slash; or choose --format parquet.",
            )
    import anndata
    import pandas as pd

    obs = table.set_index("name")
    obs.index = obs.index.astype(object)  # text of pandas 3 cannot be read by earlier versions of AnnData
    for name in obs.columns:
        if not _is_numeric(obs[name]):  # missing text is a missing category
            obs[name] = obs[name].astype(object).astype("category")
    lists = {key: np.array(value, dtype=object) if isinstance(value, list) else value for key, value in about.items()}
    var = pd.DataFrame(index=pd.Index([], dtype=object))
    return anndata.AnnData(obs=obs, var=var, obsm={REPRESENTATION: found.values}, uns={PROVENANCE: lists})


def has_provenance(path: Path, name: str) -> bool:
    """Return whether a file in the format ``parquet`` or ``anndata`` is an earlier export."""
    try:
        if name == "parquet":
            from pyarrow import parquet

            attributes = (parquet.read_schema(path).metadata or {}).get(b"PANDAS_ATTRS", b"{}")
            return PROVENANCE in json.loads(attributes)
        import h5py

        with h5py.File(path) as file:
            return f"uns/{PROVENANCE}" in file
    except (OSError, ValueError):  # another format
        return False


def check_packages(name: str) -> None:
    """Check that the packages of a format are installed, before anything is read.

    Raises
    ------
    UsageError
        A package is missing.
    """
    try:
        if name in ("parquet", "brainmarks"):
            import pyarrow  # noqa: F401
        if name in ("anndata", "zarr"):
            import anndata  # noqa: F401
        if name == "zarr":
            import zarr  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--format {name} needs another package ({error}).", 'Install it: pip install "neurostorm[export]".'
        ) from error


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _typed(values: Sequence[str | None], task: Task | None) -> Sequence[Any]:
    """Convert values to numbers by their task; without one, if all that are not missing are numbers and no codes."""
    if task is None:
        are_numbers = all(value is None or (is_number(value) and not CODE.match(value)) for value in values)
    else:
        are_numbers = task.kind != CLASSIFICATION
    return [_number(None if value is None else float(value)) for value in values] if are_numbers else values


def _is_numeric(column: pd.Series) -> bool:
    from pandas.api.types import is_numeric_dtype

    return is_numeric_dtype(column)
