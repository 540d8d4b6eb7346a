"""What a participant's derivatives hold, read for the report; nothing else is looked at.

A file that cannot be read is named in the report, rather than ending it.
"""

from __future__ import annotations

import csv
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from bids_app.bids.entities import join_name, natural_key, split_name
from bids_app.errors import BadDataError
from bids_app.outputs.schema import (
    OK,
    AttributionSidecar,
    EmbeddingsSidecar,
    PredictionSidecar,
    QualitySidecar,
    Record,
    RunOutcome,
    Summary,
)
from bids_app.reports.predictions import Prediction, Verdict, read_prediction, show_verdict
from bids_app.reports.traces import Trace, read_trace

OF_ADAPTERS = ("predictions", "attribution")
"""Sections whose figures are named after an adapter: ``desc-statepredictions``."""
STEM = re.compile(r"sub-[A-Za-z0-9+]+(_[A-Za-z0-9]+-[A-Za-z0-9+]+)*")


R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Figure:
    """A figure of the report; ``url`` is relative to the page."""

    url: str
    title: str
    caption: str
    alt: str
    first: str = ""
    second: str = ""
    """What the two images of a flicker figure are called; empty for other figures."""
    of: str = ""
    """The adapter whose answer it is about; empty for other figures."""


@dataclass(frozen=True)
class RegionTable:
    """What regions contribute to an answer, the largest contribution first."""

    name: str
    """Of the adapter, or of the model for a reconstruction."""
    url: str
    rows: tuple[dict[str, str], ...]
    sidecar: AttributionSidecar = field(default_factory=AttributionSidecar)


@dataclass(frozen=True)
class Measure:
    """A quality figure, ready to be shown."""

    label: str
    value: str
    help: str = ""
    first: bool = False
    limit: str = ""
    """``at least 0.9``; empty where there is none."""
    verdict: str = ""
    """``pass`` or ``warn``; empty where there is no limit, or no value."""


@dataclass(frozen=True)
class Run:
    """A BOLD run in the report."""

    stem: str
    outcome: RunOutcome | None = None
    """As the newest log that names it has it; None: no log does."""
    route: str = ""
    """How it was aligned, in words."""
    model: EmbeddingsSidecar = field(default_factory=EmbeddingsSidecar)
    """The sidecar of its embeddings."""
    measures: tuple[Measure, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    regions: tuple[RegionTable, ...] = ()
    figures: dict[str, list[Figure]] = field(default_factory=dict)
    trace: Trace | None = None
    verdict: Verdict | None = None
    """Whether it is a scan that the model may answer for, whatever the adapter."""
    split_half: dict[str, float] = field(default_factory=dict)
    """Per normalisation, how alike the embeddings of odd and even clips are."""
    tables: tuple[tuple[str, str], ...] = ()
    """Names and URLs of its tables."""

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.outcome is not None and self.outcome.status != OK

    @property
    def title(self) -> str:
        """``ses-a, task-rest, run-1``."""
        return self.stem.partition("_")[2].replace("_", ", ") or self.stem


@dataclass(frozen=True)
class Contents:
    """All that a report shows."""

    participant: str
    dataset: dict[str, Any]
    runs: list[Run]
    anatomy: dict[str, list[Figure]]
    """Figures of each T1w image, by its name."""
    log: Summary
    """The newest one; empty where there is none."""
    log_dir: Path | None
    """Its folder."""
    invocation: dict[str, Any]
    """The newest ``neurostorm.toml``."""
    methods: str
    """Markdown."""
    unreadable: list[str]
    """What could not be read, and why."""

    @property
    def demonstration(self) -> bool:
        """Whether any answer, or the encoder, is a demonstration's."""
        answers = (prediction.demonstration for run in self.runs for prediction in run.predictions)
        return any(answers) or any(run.model.demonstration for run in self.runs)


@cache
def spec() -> dict[str, Any]:
    """The report's specification, ``spec.yml``."""
    import yaml

    return yaml.safe_load(files("bids_app.reports").joinpath("spec.yml").read_text(encoding="utf-8"))


class Reader:
    """Reads one participant's derivatives.

    Parameters
    ----------
    out_dir : pathlib.Path
        Root of the derivatives.
    participant : str
        Label without ``sub-``.
    """

    def __init__(self, out_dir: Path, participant: str) -> None:
        self.out_dir, self.participant = out_dir, participant
        self.folder = out_dir / f"sub-{participant}"
        self.unreadable: list[str] = []

    def read(self) -> Contents:
        """Read everything."""
        logs = {path.parent: self._record(path, Summary) for path in sorted(self.folder.glob("log/*/summary.json"))}
        entries = [run for log in logs.values() for run in log.runs or ()]
        outcomes = {run.stem: run for run in entries if STEM.fullmatch(run.stem)}
        log_dir = next(reversed(logs), None)
        stems = set(outcomes)
        for pattern in ("*_desc-quality_metrics.json", "*_embeddings.tsv", "*_predictions.tsv", "*_vectors.tsv"):
            stems.update(stem_of(path) for path in self._outputs(pattern))
        figures = self._figures()
        return Contents(
            participant=self.participant,
            dataset=self._json(self.out_dir / "dataset_description.json"),
            runs=[self._run(stem, outcomes.get(stem), figures) for stem in sorted(stems, key=natural_key)],
            anatomy={
                stem: self._chosen(stem, by_desc, "anatomy")["anatomy"]
                for (stem, suffix), by_desc in sorted(figures.items())
                if suffix == "T1w"
            },
            log=logs[log_dir] if log_dir else Summary(),
            log_dir=log_dir,
            invocation=self._toml(log_dir / "neurostorm.toml") if log_dir else {},
            methods=self._text(self.out_dir / "logs" / "CITATION.md"),
            unreadable=self.unreadable,
        )

    def _run(self, stem: str, outcome: RunOutcome | None, figures: Mapping[Any, dict[str, str]]) -> Run:
        path = next(iter(self._outputs(f"{stem}_desc-quality_metrics.json")), None)
        metrics = self._record(path, QualitySidecar) if path else QualitySidecar()
        quality = metrics.quality or {}
        answers = [*self._own(stem, "predictions.tsv"), *self._own(stem, "vectors.tsv")]
        embeddings = self._own(stem, "embeddings.tsv")
        tables = [*answers, *embeddings, *self._outputs(f"{stem}_desc-confounds_timeseries.tsv")]
        predictions = {split_name(path.name)[0].get("desc", ""): self._prediction(path) for path in answers}
        hidden = {adapter for adapter, found in predictions.items() if found is None or found.withheld}
        drawn = self._chosen(stem, figures.get((stem, "bold"), {}), *(s for s in spec()["figures"] if s != "anatomy"))
        regions = filter(None, map(self._regions, self._own(stem, "attribution.tsv")))
        model = EmbeddingsSidecar()
        if embeddings:
            model = self._record(embeddings[0].with_suffix(".json"), EmbeddingsSidecar)
        split_half = {name: half.spearman_brown for name, half in (model.split_half or {}).items() if half}
        route, template = metrics.route or "", metrics.template or ""
        return Run(
            stem=stem,
            outcome=outcome,
            route=f"{spec()['routes'].get(route, route)} {template_note(template)}".strip(),
            model=model,
            measures=tuple(measures(quality)),
            warnings=metrics.warnings or (),
            notes=metrics.notes or (),
            predictions=tuple(filter(None, predictions.values())),
            regions=tuple(table for table in regions if table.name not in hidden),
            figures={section: [f for f in found if f.of not in hidden] for section, found in drawn.items()},
            trace=self._trace(stem, _seconds(quality.get("spacing_tr"))),
            verdict=show_verdict(model.verdict),
            split_half={name: value for name, value in split_half.items() if value is not None},
            tables=tuple((path.name, self._url(path)) for path in tables),
        )

    def _prediction(self, path: Path) -> Prediction | None:
        """An adapter's answer; None where it cannot be read, or not be known whether it is withheld."""
        try:
            sidecar = PredictionSidecar.read(path.with_suffix(".json"))
        except (OSError, BadDataError) as error:
            self._cannot_read(path.with_suffix(".json"), error)
            return None
        try:
            return read_prediction(path, self._url(path), sidecar)
        except (OSError, ValueError, KeyError, TypeError, StopIteration, csv.Error) as error:
            self.unreadable.append(f"{self._url(path)}: {type(error).__name__} {error}")
            return None

    def _trace(self, stem: str, tr: float | None) -> Trace | None:
        """What belongs to the picture of a run's motion; None without table or picture."""
        table = next(iter(self._outputs(f"{stem}_desc-confounds_timeseries.tsv")), None)
        picture = self.folder / "figures" / f"{stem}_desc-carpet_bold.svg"
        if table is None or not picture.is_file():
            return None
        try:
            return read_trace(table, picture, self._url(picture), tr)
        except (OSError, ValueError, csv.Error) as error:
            self.unreadable.append(f"{self._url(table)}: {type(error).__name__} {error}")
            return None

    def _regions(self, path: Path) -> RegionTable | None:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = tuple(csv.DictReader(file, delimiter="\t"))
            for row in rows:
                float(row["attribution"]), float(row["std"]), row["name"], row["voxels"], row["tokens"]
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            self.unreadable.append(f"{self._url(path)}: {type(error).__name__} {error}")
            return None
        return RegionTable(
            split_name(path.name)[0].get("desc", ""),
            self._url(path),
            rows,
            self._record(path.with_suffix(".json"), AttributionSidecar),
        )

    def _figures(self) -> dict[tuple[str, str], dict[str, str]]:
        """URLs of the figures by image (name and suffix), then by their ``desc-`` label."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        folder = self.folder / "figures"
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.suffix in (".svg", ".png", ".jpg") and not path.name.startswith("."):
                entities, suffix, _ = split_name(path.name)
                desc = entities.get("desc", "")
                found.setdefault((stem_of(path), suffix), {})[desc] = self._url(path)
        return found

    def _chosen(self, name: str, by_desc: Mapping[str, str], *sections: str) -> dict[str, list[Figure]]:
        """Figures of an image for sections of the report; ``desc-statepredictions`` counts as ``predictions``."""
        chosen: dict[str, list[Figure]] = {}
        for section in sections:
            chosen[section] = [
                Figure(
                    url=url,
                    title=entry["title"],
                    caption=entry["caption"],
                    alt=entry["alt"].format(name=name),
                    first=entry.get("first", "") if url.endswith(".svg") else "",
                    second=entry.get("second", "") if url.endswith(".svg") else "",
                    of=desc.removesuffix(entry["desc"]) if section in OF_ADAPTERS else "",
                )
                for entry in spec()["figures"][section]
                for desc, url in by_desc.items()
                if desc == entry["desc"] or (section in OF_ADAPTERS and desc.endswith(entry["desc"]))
            ]
        return chosen

    def _own(self, stem: str, ending: str) -> list[Path]:
        """A run's tables of a kind, and not those of runs whose names begin with its own."""
        return [path for path in self._outputs(f"{stem}_*_{ending}") if stem_of(path) == stem]

    def _outputs(self, pattern: str) -> list[Path]:
        """Files of the participant's func folders, of all sessions."""
        return sorted([*self.folder.glob(f"func/{pattern}"), *self.folder.glob(f"ses-*/func/{pattern}")])

    def _url(self, path: Path) -> str:
        return quote(path.relative_to(self.out_dir).as_posix())

    def _record(self, path: Path, kind: type[R]) -> R:
        """A sidecar or log; empty where it cannot be read, which is noted."""
        try:
            return kind.read(path)
        except (OSError, BadDataError) as error:
            self._cannot_read(path, error)
            return kind()

    def _cannot_read(self, path: Path, error: Exception) -> None:
        reason = getattr(error, "message", "") or getattr(error, "strerror", "") or str(error)
        self.unreadable.append(f"{path.relative_to(self.out_dir)}: {reason}")

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(self._text(path) or "{}")
            if isinstance(content, dict):
                return content
            raise ValueError("not an object")
        except ValueError as error:
            self.unreadable.append(f"{path.relative_to(self.out_dir)}: not readable as JSON ({error})")
            return {}

    def _toml(self, path: Path) -> dict[str, Any]:
        try:
            return tomllib.loads(self._text(path))
        except ValueError as error:
            self.unreadable.append(f"{path.relative_to(self.out_dir)}: not readable as TOML ({error})")
            return {}

    def _text(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.unreadable.append(f"{path.relative_to(self.out_dir)}: {getattr(error, 'strerror', '') or error}")
            return ""


def stem_of(path: Path) -> str:
    """Name of the raw image that an output was made from, without suffix."""
    entities = split_name(path.name)[0]
    raw = {k: v for k, v in entities.items() if k not in ("desc", "space", "res", "from", "to", "mode", "label", "seg")}
    return join_name(raw, "").removesuffix("_")


def measures(quality: Mapping[str, Any]) -> list[Measure]:
    """Quality figures as they are shown: those of the specification first, in its order."""
    known = spec()["quality"]
    order = [*(key for key in known if key in quality), *(key for key in quality if key not in known)]
    found = []
    for key in order:
        entry, value = known.get(key, {}), quality[key]
        text, verdict = "n/a", ""
        if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
            text, verdict = _in_units(value, entry, entry.get("digits")), judge(key, value)
        elif value is not None and not isinstance(value, float):
            text = str(value)
        label = entry.get("label", key.replace("_", " "))
        found.append(Measure(label, text, entry.get("help", ""), entry.get("first", False), limit_of(key), verdict))
    return found


def judge(key: str, value: float) -> str:
    """``pass`` or ``warn`` for a quality figure by the limits of the specification; empty where it has none."""
    entry = spec()["quality"].get(key, {})
    if not {"least", "most"} & entry.keys():
        return ""
    return "pass" if entry.get("least", -math.inf) <= value <= entry.get("most", math.inf) else "warn"


def limit_of(key: str) -> str:
    """The limits of a quality figure in words; empty where it has none."""
    entry = spec()["quality"].get(key, {})
    return " and ".join(f"at {word} {_in_units(entry[word], entry)}" for word in ("least", "most") if word in entry)


def _in_units(value: float, entry: Mapping[str, Any], digits: int | None = None) -> str:
    shown = value * entry.get("factor", 1)
    return f"{shown:{'.4g' if digits is None else f'.{digits}f'}} {entry.get('unit', '')}".rstrip()


def quality_columns(quality: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the columns of a table of quality figures are, for its sidecar."""
    found = {}
    for key in quality:
        entry = spec()["quality"].get(key, {})
        described = {"LongName": entry.get("label"), "Description": entry.get("help"), "Units": entry.get("unit")}
        if entry.get("unit") == "%" and entry.get("factor") == 100:
            described["Units"] = "1"  # a share in the table, shown in percent
        limits = {"Minimum": entry.get("least"), "Maximum": entry.get("most")}
        found[key] = {name: text for name, text in (described | limits).items() if text is not None}
    return found


def template_note(name: str) -> str:
    """What is to be said of a template that is not the model's own; empty when there is nothing."""
    from bids_app.catalog.templates import catalog

    accuracy = catalog().get(name, {}).get("accuracy", "exact")
    return "" if accuracy == "exact" else spec()["template"].format(name=name, accuracy=accuracy)


def _seconds(value: Any) -> float | None:
    """A repetition time among the figures of quality; None where it is no number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
