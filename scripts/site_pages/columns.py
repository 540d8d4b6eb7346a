"""Columns of the tables that the app writes, from the data dictionaries of the modules that write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from site_pages.markdown import code, escape, table

LEVELS, UNITS = "Levels", "Units"
EXAMPLE_VOLUMES, EXAMPLE_VOXELS, EXAMPLE_TR = 100, 600, 2.0
"""A series of noise, from which the names of the confounds are taken."""
HEADINGS = {
    "confounds": "`*_desc-confounds_timeseries.tsv`",
    "quality": "`*_desc-quality_metrics.tsv`",
    "embeddings": "`*_desc-<model>_embeddings.tsv`",
    "predictions": "`*_desc-<adapter>_predictions.tsv` and `*_desc-<adapter>_vectors.tsv`",
    "attribution": "`*_seg-<atlas>_desc-<adapter>_attribution.tsv`",
    "ratings": "`ratings/rater-<label>_ratings.tsv`",
    "group_runs": "`group_runs.tsv`",
    "group_bold": "`group_bold.tsv`",
    "group_embeddings": "`group_embeddings.tsv`",
    "phenotype": "`phenotype/neurostorm_<adapter>.tsv`",
    "group_ratings": "`group_ratings.tsv` and `ratings/include.tsv`",
    "group_outliers": "`group_outliers.tsv`",
    "group_identity": "`group_identity.tsv`",
}
"""Tables, in the order of the page."""


def describe_tables() -> str:
    """Describe the columns of all tables."""
    tables = all_tables()
    parts: list[str] = []
    for name, heading in HEADINGS.items():
        parts += [
            f"### {heading}",
            table(["column", "meaning", "unit"], (_row(*item) for item in tables[name].items())),
        ]
    return "\n\n".join(parts)


def all_tables() -> dict[str, dict[str, Mapping[str, Any]]]:
    """Collect the data dictionaries by table; ``XX`` and ``NNNN`` in a name stand for digits."""
    from bids_app.group import ratings as group_ratings
    from bids_app.group.quality import OUTLIER_COLUMNS
    from bids_app.group.similarity import IDENTITY_COLUMNS
    from bids_app.group.tables import DESCRIBED, KEYS
    from bids_app.outputs.predictions import EMBEDDINGS_COLUMNS
    from bids_app.outputs.ratings import DESCRIBED as RATINGS

    quality = dict(_quality())
    runs = ("participant_id", "run", "status", "exit_code", "reason", "hint", "verdict", "verdict_reasons")
    vectors = ("participant_id", "model", "normalisation", "duration", "split_half", "eNNNN")
    rest = [name for name in DESCRIBED if name not in {*runs, *vectors}]
    later = ("n_warnings", "configuration", "n_not_used")
    keys = {name: entry for name, entry in KEYS.items() if name != "bids_name"}
    keys |= {
        "ses": {"Description": f"{KEYS['ses']['Description']}; this and other entities only if the runs have them"}
    }
    return {
        "confounds": dict(_confounds()),
        "quality": {"bids_name": KEYS["bids_name"], **quality},
        "embeddings": EMBEDDINGS_COLUMNS,
        "predictions": dict(_predictions(EMBEDDINGS_COLUMNS)),
        "attribution": _attribution(),
        "ratings": RATINGS,
        "group_runs": {name: DESCRIBED[name] for name in (*runs, *later)},
        "group_bold": keys | {"bids_name": KEYS["bids_name"]} | quality,
        "group_embeddings": keys | {name: DESCRIBED[name] for name in vectors[1:]},
        "phenotype": {
            **keys,
            **{name: DESCRIBED[name] for name in ("duration", "verdict", "verdict_reasons")},
            **{name: DESCRIBED[name] for name in rest if name not in later},
            "p_<label>": {"Description": "Probability of the label"},
        },
        "group_ratings": group_ratings.DESCRIBED
        | {f"{kind}_<name>": group_ratings._describe(f"{kind}_<name>") for kind in ("rater", "verdict")},
        "group_outliers": OUTLIER_COLUMNS,
        "group_identity": IDENTITY_COLUMNS,
    }


def _row(name: str, entry: Mapping[str, Any]) -> list[str]:
    text = escape(str(entry.get("LongName") or entry.get("Description") or ""))
    if "LongName" in entry and entry.get("Description"):
        text = f"{text}. {escape(str(entry['Description']))}"
    levels = entry.get(LEVELS) or {}
    text += "".join(f"<br>{code(level)}: {escape(about)}" for level, about in levels.items())
    for kind, sign in (("Minimum", "≥"), ("Maximum", "≤")):
        text += f"<br>Limit: {sign} {entry[kind]:g}" if kind in entry else ""
    return [code(name), text, escape(str(entry.get(UNITS, "")))]


def _quality() -> Iterator[tuple[str, Mapping[str, Any]]]:
    from bids_app.reports.contents import quality_columns, spec

    yield from quality_columns(spec()["quality"] | spec()["grid"]).items()


def _confounds() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the columns of the confounds of a series of noise with one non-steady-state volume and one movement."""
    from bids_app.preprocess.confounds import HeadMotion, confounds_table

    rng = np.random.default_rng(0)
    values = rng.normal(1000, 10, (EXAMPLE_VOLUMES, EXAMPLE_VOXELS)).astype(np.float32)
    motion = np.zeros((EXAMPLE_VOLUMES, 6))
    motion[EXAMPLE_VOLUMES // 2 :, 0] = 5.0
    tissues = {"csf": np.arange(EXAMPLE_VOXELS) < 20, "white_matter": np.arange(EXAMPLE_VOXELS) >= 580}
    found = HeadMotion(motion, np.zeros(EXAMPLE_VOLUMES))
    _, described = confounds_table(values, found, tissues, EXAMPLE_TR, n_dummy=1)
    seen = set()
    for name, entry in described.items():
        stem = name.rstrip("0123456789")
        many = stem != name and not name.endswith(("derivative1", "power2"))
        shown = f"{stem}XX" if many else name
        if shown not in seen:
            seen.add(shown)
            text = str(entry["Description"]).replace("Component 0", "Component")
            threshold = f" Threshold: {entry['Threshold']}." if "Threshold" in entry else ""
            yield shown, {**entry, "Description": text + threshold}


def _predictions(embeddings: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from bids_app.outputs.predictions import VERDICT_COLUMN

    yield from ((name, embeddings[name]) for name in ("clip", "onset", "duration"))
    yield "label", {"Description": "Most probable class (classification)"}
    yield "p_<label>", {"Description": "Probability of the class (classification)"}
    yield "value", {"Description": "Predicted value, in the unit of the sidecar (regression)"}
    yield "eNNNN", {"Description": "Embedding of the adapter (retrieval)"}
    for name in ("lower", "upper"):
        yield name, {"Description": f"{name.capitalize()} limit of the prediction interval; only the row of the run"}
    yield "verdict", VERDICT_COLUMN


def _attribution() -> dict[str, Mapping[str, Any]]:
    from bids_app.outputs.attribution import CONTROL_COLUMNS, TABLE_COLUMNS

    return {
        "index": {"Description": "Number of the region in the atlas"},
        "name": {"Description": "Name of the region"},
        **TABLE_COLUMNS,
        **CONTROL_COLUMNS,
    }
