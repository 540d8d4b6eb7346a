"""Tables of the group level: status of runs, image quality metrics, predictions, and embeddings as TSV and HDF5.

Files are written atomically. Embeddings are written row by row to limit memory use.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.entities import ENTITY_ORDER, join_name
from bids_app.bids.writer import atomic_path, write_columns, write_json
from bids_app.group.cohort import Cohort
from bids_app.group.reading import Card, RunRecord
from bids_app.outputs.schema import AdapterFacts
from bids_app.reports.contents import quality_columns

Rows = Sequence[Mapping[str, Any]]

DESCRIBED: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Participant"},
    "run": {"Description": "Name of the run, without suffix"},
    "status": {
        "Description": "Status of the run",
        "Levels": {
            "ok": "Completed",
            "failed": "Ended with an error",
            "unreadable": "Completed, but some outputs cannot be read",
            "missing": "Listed in the raw dataset or the log, but without outputs",
        },
    },
    "exit_code": {"Description": "Exit code of the run"},
    "reason": {"Description": "Reason for a status other than ok"},
    "hint": {"Description": "How to fix the problem"},
    "verdict": {
        "Description": "Verdict on the scan and its predictions",
        "Levels": {
            "pass": "All checks passed",
            "warn": "At least one check failed",
            "refuse": "The scan is not suitable for the adapter; predictions are withheld",
        },
    },
    "verdict_reasons": {"Description": "Failed checks"},
    "n_warnings": {"Description": "Number of preprocessing warnings"},
    "configuration": {
        "Description": "Hash of the version and of the options that decide the numbers (ConfigurationHash in the "
        "sidecars); several if the outputs of the run are of several invocations"
    },
    "n_not_used": {
        "Description": "Number of tables and sidecars of the run that its last invocation did not make, and that are "
        "not used here"
    },
    "duration": {"Description": "Total duration of the clips", "Units": "s"},
    "label": {"Description": "Most probable class"},
    "value": {"Description": "Predicted value"},
    "lower": {"Description": "Lower limit of the prediction interval"},
    "upper": {"Description": "Upper limit of the prediction interval"},
    "label_set": {"Description": "Classes in the prediction set; empty: no class is probable enough"},
    "standard_error": {"Description": "Standard error of the mean over clips"},
    "effective_clips": {"Description": "Effective number of independent clips"},
    "agreement": {"Description": "Fraction of clips with the same label as the run"},
    "from_mean_image": {"Description": "Fraction of the prediction that remains without dynamics (mean image)"},
    "other_normalisation": {"Description": "Prediction under the other normalisation"},
    "model": {"Description": "Model, or adapter with vector outputs"},
    "normalisation": {"Description": "Intensity normalisation of the clips"},
    "split_half": {"Description": "Split-half correlation of the embeddings of odd and even clips (Spearman-Brown)"},
    "eNNNN": {"Description": "Feature of the embedding, mean over clips"},
}
"""Column descriptions for the data dictionaries."""
KEYS: dict[str, dict[str, Any]] = {
    "participant_id": DESCRIBED["participant_id"],
    "ses": {"Description": "Session"},
    "task": {"Description": "Task"},
    "acq": {"Description": "Acquisition"},
    "ce": {"Description": "Contrast agent"},
    "rec": {"Description": "Reconstruction"},
    "dir": {"Description": "Direction of phase encoding"},
    "run": {"Description": "Number of the run"},
    "echo": {"Description": "Number of the echo"},
    "part": {"Description": "Part of the complex signal"},
    "bids_name": {"Description": "Name of the run, with suffix"},
}
"""Descriptions of the columns that identify a run in tables with its entities (`run_keys`)."""


def write_tables(out_dir: Path, everything: Cohort, cohort: Cohort | None = None) -> list[Path]:
    """Write all tables that have rows; return the files.

    Parameters
    ----------
    out_dir : pathlib.Path
    everything : Cohort
        For the table of runs.
    cohort : Cohort, optional
        For the other tables; the default is all runs.
    """
    cohort = everything if cohort is None else cohort
    files = _write(out_dir / "group_runs.tsv", run_rows(everything))
    quality = [run for run in cohort.runs if run.quality]
    if quality:
        rows = [run_keys(run) | {"bids_name": join_name(run.entities, "bold")} | run.quality for run in quality]
        columns = describe_keys(quality) | {"bids_name": KEYS["bids_name"]}
        columns |= quality_columns(dict.fromkeys(key for run in quality for key in run.quality))
        files += _write(out_dir / "group_bold.tsv", rows, columns)
    files += write_embeddings(out_dir, cohort.runs)
    for adapter in sorted({name for run in cohort.runs for name in run.predictions}):
        files += write_predictions(out_dir, adapter, cohort)
    return files


def run_rows(cohort: Cohort) -> list[dict[str, Any]]:
    """Return the rows of ``group_runs.tsv``: status of each run."""
    return [
        {
            "participant_id": run.participant,
            "run": run.stem,
            "status": run.status,
            "exit_code": run.exit_code,
            "reason": run.reason,
            "hint": run.hint,
            "verdict": run.worst_verdict or "n/a",
            "n_warnings": run.n_warnings,
            "configuration": " ".join(sorted(run.configurations)) or "n/a",
            "n_not_used": run.n_not_used,
        }
        for run in cohort.runs
    ]


def write_predictions(out_dir: Path, adapter: str, cohort: Cohort) -> list[Path]:
    """Write an adapter's predictions as a phenotype table, with its data dictionary."""
    card = cohort.cards.get(adapter, Card())
    rows = [run_keys(run) | run.predictions[adapter] for run in cohort.runs if adapter in run.predictions]
    described: dict[str, Any] = {
        "MeasurementToolMetadata": {
            "Description": f"Predictions of the NeuroSTORM adapter {adapter}, mean over the clips of each run. "
            "For research use only; not a medical device.",
            **_adapter_facts(card),
        }
    }
    described |= describe_keys(cohort.runs)
    for name in as_columns(rows):
        if name in described:
            continue
        if name.startswith("p_"):
            described[name] = {"Description": f"Probability of {name[2:]}"}
        else:
            described[name] = DESCRIBED.get(name, {"Description": name})
    for name in ("value", "lower", "upper", "standard_error"):
        if card.unit and name in described:
            described[name] = described[name] | {"Units": card.unit}
    return _write(out_dir / "phenotype" / f"neurostorm_{adapter}.tsv", rows, described)


def _adapter_facts(card: Card) -> dict[str, Any]:
    """Return the facts about an adapter for the data dictionary, under the keys of the sidecars."""
    facts = AdapterFacts(
        task=card.task or None,
        target=card.target or None,
        demonstration=card.demonstration or None,
        research_only=card.research_only or None,
    )
    return facts.to_json()


def write_embeddings(out_dir: Path, runs: Sequence[RunRecord]) -> list[Path]:
    """Write the mean embeddings of all runs: ``group_embeddings.tsv`` with dictionary, and ``group_embeddings.h5``."""
    encoded = [run for run in runs if run.vectors]
    if not encoded:
        return []
    table, archive = out_dir / "group_embeddings.tsv", out_dir / "group_embeddings.h5"
    _write_embeddings_table(table, encoded)
    names = ("model", "normalisation", "duration", "split_half", "eNNNN")
    described = describe_keys(encoded) | {name: DESCRIBED[name] for name in names}
    write_json(table.with_suffix(".json"), described)
    _write_embeddings_archive(archive, encoded)
    return [table, table.with_suffix(".json"), archive]


def _write_embeddings_table(path: Path, runs: Sequence[RunRecord]) -> None:
    width = max(len(vector.values) for run in runs for vector in run.vectors.values())
    entities = _entity_columns(runs)
    halves = ["split_half"] if any(v.split_half is not None for run in runs for v in run.vectors.values()) else []
    features = [f"e{i:04d}" for i in range(width)]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        head = ["participant_id", *entities, "model", "normalisation", "duration", *halves, *features]
        file.write("\t".join(head) + "\n")
        for run in runs:
            keys = run_keys(run)
            own = [keys["participant_id"], *(keys.get(name, "n/a") for name in entities)]
            for (model, normalisation), vector in run.vectors.items():
                cells = [*own, model, normalisation or "n/a", f"{vector.duration:g}"]
                if halves:
                    cells.append("n/a" if vector.split_half is None else f"{vector.split_half:.4f}")
                # nine significant digits preserve a float32
                cells.append("\t".join(["%.9g"] * len(vector.values)) % tuple(vector.values.tolist()))
                cells += ["n/a"] * (width - len(vector.values))
                file.write("\t".join(cells) + "\n")


def _write_embeddings_archive(path: Path, runs: Sequence[RunRecord]) -> None:
    """Write one HDF5 group per model and normalisation: ``values`` (N, C) float32, and the names of the runs."""
    import h5py

    kinds = list(dict.fromkeys(kind for run in runs for kind in run.vectors))
    content = io.BytesIO()  # HDF5 reports a full disk as an internal error
    with h5py.File(content, "w") as archive:
        archive.attrs["Description"] = "Mean embedding of each run; rows of values correspond to rows of run."
        for model, normalisation in kinds:
            for n_features, having in _by_width(runs, (model, normalisation)).items():
                name = f"{model}/{normalisation or 'none'}"
                name += f"_{n_features}" if name in archive else ""
                group = archive.create_group(name)
                values = np.stack([run.vectors[model, normalisation].values for run in having])
                group.create_dataset("values", data=values, compression="gzip", compression_opts=1, shuffle=True)
                text = h5py.string_dtype()
                group.create_dataset("run", data=[run.stem for run in having], dtype=text)
                group.create_dataset("participant_id", data=[run.participant for run in having], dtype=text)
                group.create_dataset("session", data=[run.entities.get("ses", "") for run in having], dtype=text)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _by_width(runs: Iterable[RunRecord], kind: tuple[str, str]) -> dict[int, list[RunRecord]]:
    """Group runs by vector length, in case two models have the same name."""
    found: dict[int, list[RunRecord]] = {}
    for run in runs:
        if kind in run.vectors:
            found.setdefault(len(run.vectors[kind].values), []).append(run)
    return found


def run_keys(run: RunRecord) -> dict[str, str]:
    """Return the columns that identify a run."""
    return {"participant_id": run.participant} | {k: v for k, v in run.entities.items() if k != "sub"}


def describe_keys(runs: Iterable[RunRecord]) -> dict[str, dict[str, Any]]:
    """Describe the columns of `run_keys`, for a data dictionary."""
    names = ["participant_id", *_entity_columns(runs)]
    return {name: KEYS.get(name, {"Description": f"Label of the entity {name}"}) for name in names}


def _entity_columns(runs: Iterable[RunRecord]) -> list[str]:
    found = {key for run in runs for key in run.entities} - {"sub"}
    return sorted(found, key=lambda key: (ENTITY_ORDER.index(key) if key in ENTITY_ORDER else len(ENTITY_ORDER), key))


def as_columns(rows: Rows) -> dict[str, list[Any]]:
    """Convert rows to columns; missing and empty cells become ``n/a``."""
    names = dict.fromkeys(name for row in rows for name in row)
    cells = {name: [row.get(name) for row in rows] for name in names}
    return {name: ["n/a" if value in (None, "") else value for value in column] for name, column in cells.items()}


def _write(path: Path, rows: Rows, described: Mapping[str, Any] | None = None) -> list[Path]:
    columns = as_columns(rows)
    if described is None:
        described = {name: DESCRIBED[name] for name in columns if name in DESCRIBED}
    return [write_columns(path, columns), write_json(path.with_suffix(".json"), described)]
