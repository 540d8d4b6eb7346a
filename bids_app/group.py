"""The group level: tables over all runs, read from the participants' derivatives alone; no encoder is loaded.

``group_bold.tsv`` has the quality figures, ``group_embeddings.tsv`` each run's mean embedding, and
``phenotype``'s tables what each adapter predicts. Runs that failed are in ``group_runs.tsv`` with the reason.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bids_app.bids.derivatives import write_json, write_tsv
from bids_app.bids.names import join_name, split_name
from bids_app.checks import check_output
from bids_app.errors import EXIT_OK, BadDataError, NoInputError
from bids_app.settings import Settings

LOGGER = logging.getLogger(__name__)
MEAN = "mean"


def run_group(settings: Settings) -> int:
    """Gather the participants' derivatives into tables.

    Raises
    ------
    NoInputError
        The output folder holds no participants.
    """
    out_dir, wanted = settings.out_dir, settings.query.participants
    folders = sorted(p for p in out_dir.glob("sub-*") if p.is_dir())
    folders = [p for p in folders if not wanted or p.name.removeprefix("sub-") in wanted]
    if not folders:
        raise NoInputError(f"{out_dir}: no participants' outputs.", "Run the participant level into this folder first.")
    tables = gather(folders)
    if settings.check:
        print(f"{out_dir}: {len(folders)} participants, {len(tables['runs'])} runs; nothing was written")
        return EXIT_OK
    check_output(settings)
    for name, rows in tables.items():
        if rows and not name.startswith("predictions_"):
            write_tsv(out_dir / f"group_{name}.tsv", as_columns(rows))
    for name in (n for n in tables if n.startswith("predictions_")):
        write_predictions(out_dir, name.removeprefix("predictions_"), tables[name])
    LOGGER.info("%d runs of %d participants: %s", len(tables["runs"]), len(folders), ", ".join(sorted(tables)))
    return EXIT_OK


def gather(folders: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """Rows of each table, in the order of the runs' names.

    Returns
    -------
    dict
        ``runs`` (how each ended), ``bold`` (quality), ``embeddings``, and ``predictions_<adapter>``.
    """
    tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for folder in folders:
        tables["runs"] += last_outcomes(folder)
        for path in sorted(folder.rglob("func/*_desc-quality_metrics.json")):
            metrics = {k: v for k, v in read_json_file(path).get("quality", {}).items() if isinstance(v, int | float)}
            tables["bold"].append(key_columns(path) | {"bids_name": bids_name(path)} | metrics)
        for path in sorted(folder.rglob("func/*_embeddings.tsv")):
            model = split_name(path.name)[0]["desc"]
            tables["embeddings"] += [
                key_columns(path) | {"model": model} | {k: v for k, v in row.items() if k not in ("clip", "onset")}
                for row in mean_rows(path)
            ]
        for path in sorted(folder.rglob("func/*_predictions.tsv")):
            adapter = split_name(path.name)[0]["desc"]
            tables[f"predictions_{adapter}"] += [
                key_columns(path) | {k: v for k, v in row.items() if k not in ("clip", "onset")}
                for row in mean_rows(path)
            ]
    return tables


def key_columns(path: Path) -> dict[str, str]:
    """The columns that say which run a row is about."""
    entities = {k: v for k, v in split_name(path.name)[0].items() if k != "desc"}
    return {"participant_id": f"sub-{entities.pop('sub')}"} | entities


def bids_name(path: Path) -> str:
    """A run's name with its suffix, as MRIQC's tables have it."""
    entities = {k: v for k, v in split_name(path.name)[0].items() if k != "desc"}
    return join_name(entities, "bold")


def last_outcomes(folder: Path) -> list[dict[str, Any]]:
    """How each run of a participant ended when it was last worked on."""
    last: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("log/*/summary.json")):  # folders sort by time
        for run in read_json_file(path).get("runs", []):
            last[run["stem"]] = {
                "participant_id": folder.name,
                "run": run["stem"],
                "status": run["status"],
                "exit_code": run["exit_code"],
                "reason": run["reason"],
                "hint": run["hint"],
            }
    return [last[stem] for stem in sorted(last)]


def mean_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table that are means over clips."""
    import csv

    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file, delimiter="\t") if row["clip"] == MEAN]


def read_json_file(path: Path) -> dict[str, Any]:
    """A JSON file that this app wrote."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadDataError(f"{path}: cannot be read ({error}).", "Run this participant again.") from error


def write_predictions(out_dir: Path, adapter: str, rows: list[dict[str, Any]]) -> None:
    """Write an adapter's predictions as a phenotype table, with its data dictionary."""
    write_tsv(out_dir / "phenotype" / f"neurostorm_{adapter}.tsv", as_columns(rows))
    described = {
        "participant_id": "Participant",
        "duration": "Time that the clips cover, s",
        "label": "The most probable class",
        "value": "Predicted value",
    }
    columns = {
        name: {"Description": described.get(name, f"Probability of {name[2:]}" if name.startswith("p_") else name)}
        for name in as_columns(rows)
    }
    head = {"Description": f"Predictions of the NeuroSTORM adapter {adapter}: the mean over each run's clips."}
    write_json(out_dir / "phenotype" / f"neurostorm_{adapter}.json", {"MeasurementToolMetadata": head} | columns)


def as_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows to columns; a cell that a row does not have is ``n/a``."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, "n/a") for row in rows] for name in names}
