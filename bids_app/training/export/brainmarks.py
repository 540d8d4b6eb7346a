"""A cohort as a dataset of Brainmarks: Arrow files of embeddings, and the modules by which Brainmarks finds them.

    FOLDER/dataset.json                                     provenance
    FOLDER/targets.json                                     class of each run
    FOLDER/NAME.neurostorm_embeddings.arrow/SET/data.arrow  embeddings, verdicts, quality metrics, sources; SET is
                                                            train, validation or test
    FOLDER/brainmarks/datasets/NAME.py                      for PYTHONPATH=FOLDER
    FOLDER/brainmarks/models/neurostorm_embeddings.py
    FOLDER/split.tsv                                        sets, for neurostorm-train adapt --split
    FOLDER/evaluate.split.tsv                               the same with the training set of main_logistic

Brainmarks' ``main_logistic`` trains with the training and the validation set together.

    N  runs      C  features
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_app.adapters.file import CLASSIFICATION
from bids_app.bids.writer import atomic_folder, write_json
from bids_app.errors import BadDataError, UsageError
from bids_app.training.data.splits import TEST, TRAINING, VALIDATION, write_split
from bids_app.training.export.runs import EmbeddedRuns
from bids_app.training.export.sets import SETS, Sets
from bids_app.training.export.tables import PROVENANCE, make_table
from bids_app.training.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

FOLDERS = {TRAINING: "train", VALIDATION: "validation", TEST: "test"}
"""Names of the sets in Brainmarks."""
MODEL = "neurostorm_embeddings"
"""Name of the model, and of the space of its input."""
MARKER = "dataset.json"
"""File by which an export is recognised."""
HERE = Path(__file__).parent


def dataset_name(target: str, name: str | None) -> str:
    """Return the name of a dataset, ``neurostorm_<name>``, by default of the column of the target.

    The prefix keeps the module apart from those of Brainmarks.

    Raises
    ------
    UsageError
        The name has other characters than letters, digits and underscores.
    """
    wanted = name or re.sub(r"\W+", "_", target.rpartition(":")[2], flags=re.ASCII).strip("_").lower()
    if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", wanted):
        raise UsageError(f"Invalid value for --name: {wanted!r}.", "Use 1 to 64 letters, digits and underscores.")
    return f"neurostorm_{wanted}"


def check_sets_and_classes(task: Task, sets: Sets, values: Sequence[str]) -> None:
    """Check that Brainmarks can use the labels and sets.

    Raises
    ------
    UsageError
        The target has numbers; Brainmarks predicts classes.
    BadDataError
        A set is empty or lacks a class.
    """
    if task.kind != CLASSIFICATION:
        raise UsageError(
            f"{task.target} is a {task.kind}; Brainmarks predicts classes.",
            "Give a column of classes (such as age groups), or --task classification if its numbers are classes.",
        )
    for name in SETS:
        present = {value for value, own in zip(values, sets.names, strict=True) if own == name}
        if missing := sorted(set(task.labels) - present):
            raise BadDataError(
                f"The {name} set has no run of class {', '.join(missing)}.",
                "Brainmarks requires a training, a validation and a test set with all classes: at least three "
                "participants (or families) of each.",
            )


def write_brainmarks(
    folder: Path, name: str, found: EmbeddedRuns, values: Sequence[str], sets: Sets, about: Mapping[str, Any]
) -> None:
    """Write the folder of a dataset; runs in no set are left out.

    Parameters
    ----------
    folder : Path
    name : str
        See `dataset_name`.
    found : EmbeddedRuns
    values : sequence of str, (N,)
        Class of each run.
    sets : Sets
    about : mapping
        Provenance.
    """
    with atomic_folder(folder) as temporary:
        table, embeddings = make_table(found, {}, sets), found.values
        for part in SETS:
            own = np.flatnonzero(np.array(sets.names) == part)
            path = temporary / f"{name}.{MODEL}.arrow" / FOLDERS[part] / "data.arrow"
            _write_arrow(path, table.iloc[own], embeddings[own], about)
        pairs = zip(found.runs, values, sets.names, strict=True)
        write_json(temporary / "targets.json", {run.name: value for run, value, part in pairs if part})
        for kind, source, target in (("datasets", "dataset", name), ("models", "model", MODEL)):
            module = temporary / "brainmarks" / kind / f"{target}.py"
            module.parent.mkdir(parents=True)
            shutil.copyfile(HERE / f"brainmarks_{source}.py", module)
        split = sets.split(found.runs)
        write_split(temporary / "split.tsv", split)
        together = {TRAINING: split[TRAINING] + split[VALIDATION], TEST: split[TEST]}
        write_split(temporary / "evaluate.split.tsv", together)
        write_json(temporary / MARKER, {"name": name, **about})


def _write_arrow(path: Path, table: pd.DataFrame, values: np.ndarray, about: Mapping[str, Any]) -> None:
    """Write an Arrow stream with a row for each run; ``bold`` has the shape (1, C), and missing text is empty.

    Parameters
    ----------
    path : Path
    table : pandas.DataFrame, (N, columns)
    values : np.ndarray, (N, C) float32
    about : mapping
        Provenance, for the metadata of the schema.
    """
    import pyarrow as pa
    from pandas.api.types import is_numeric_dtype

    columns = {
        name: pa.array(column.to_numpy() if is_numeric_dtype(column) else column.fillna("").astype(str).tolist())
        for name, column in table.items()
    }
    columns["bold"] = pa.array([[row] for row in values], pa.list_(pa.list_(pa.float32(), values.shape[1]), 1))
    made = pa.table(columns).replace_schema_metadata({PROVENANCE: json.dumps(dict(about))})
    path.parent.mkdir(parents=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, made.schema) as writer:
        writer.write_table(made)
