"""Contents of a participant's report, read from the derivatives.

Files that cannot be read are listed in the report and do not stop it.
"""

from __future__ import annotations

import csv
import json
import math
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from bids_app.bids.entities import join_name, natural_key, split_name
from bids_app.errors import BadDataError
from bids_app.files import read_output, read_output_table
from bids_app.outputs.schema import (
    IMAGES,
    LEVELS,
    OK,
    AttributionSidecar,
    CoverageSidecar,
    EmbeddingsSidecar,
    PredictionSidecar,
    QualitySidecar,
    Record,
    RunFiles,
    RunOutcome,
    Summary,
    may_be_gone,
    read_run_files,
)
from bids_app.reports.invocations import Configuration, describe_earlier, find_configurations
from bids_app.reports.predictions import ReportedPrediction, ReportedVerdict, format_verdict, read_prediction
from bids_app.reports.traces import Trace, read_trace

ADAPTER_SECTIONS = ("predictions", "attribution")
"""Sections with one figure per adapter, such as ``desc-statepredictions``."""
ATLAS_SECTIONS = ("connectivity",)
"""Sections with one figure per atlas, such as ``desc-aal3connectivity``."""
DERIVED_ENTITIES = ("desc", "space", "res", "from", "to", "mode", "label", "seg", "stat")
"""Entities of outputs that raw images do not have."""
VIEWER_DATA = "viewer"
"""``desc-`` label of the data of a run or T1w image for the viewer; after an adapter's name, of its contributions."""
SIGNIFICANT = 0.05
"""Significance level of the contributions of regions."""
VIEW = re.compile(rb'viewBox="0 0 ([0-9.]{1,9}) ([0-9.]{1,9})"')
HEAD_BYTES = 2000
"""Beginning of an SVG file with its size."""
STEM = re.compile(r"sub-[A-Za-z0-9+]+(_[A-Za-z0-9]+-[A-Za-z0-9+]+)*")


R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Figure:
    """Figure of the report; ``url`` is relative to the page."""

    url: str
    title: str
    caption: str
    alt: str
    first: str = ""
    second: str = ""
    """Labels of the two images of a flicker figure; empty for other figures."""
    adapter: str = ""
    """Adapter whose prediction is shown; empty for other figures."""
    kind: str = ""
    """Section and ``desc-`` label without adapter, such as ``functional-coreg``."""
    size: tuple[float, float] | None = None
    """Width and height, so that the page does not move when the figure is loaded; None if unknown."""

    @property
    def name(self) -> str:
        """Name of the file without extension."""
        return Path(unquote(self.url)).stem


@dataclass(frozen=True)
class RegionTable:
    """Contributions of regions to a prediction."""

    name: str
    """Name of the adapter, or of the model for a reconstruction."""
    url: str
    rows: tuple[dict[str, str], ...]
    sidecar: AttributionSidecar = field(default_factory=AttributionSidecar)

    def largest(self, count: int) -> tuple[dict[str, str], ...]:
        """Return the rows with the largest positive contributions, then the largest negative ones.

        Of ``count`` rows, half are of each sign, or more if there are fewer of the other.
        """
        by_size = sorted(self.rows, key=lambda row: -abs(float(row["attribution"])))
        positive = [row for row in by_size if float(row["attribution"]) > 0]
        negative = [row for row in by_size if float(row["attribution"]) < 0]
        n_positive = max(count - len(negative), min(len(positive), -(-count // 2)))
        positive = positive[:n_positive]
        return (*positive, *negative[: count - len(positive)])

    @property
    def has_negative(self) -> bool:
        """True if a contribution is negative."""
        return any(float(row["attribution"]) < 0 for row in self.rows)

    @property
    def has_control(self) -> bool:
        """True if the table has a control."""
        return bool(self.rows) and all(_is_number(row.get("control")) for row in self.rows)

    @property
    def has_p_values(self) -> bool:
        """True if the table has z and p values."""
        return bool(self.rows) and all(_is_number(row.get(name)) for row in self.rows for name in ("z", "p"))

    @property
    def significant(self) -> int:
        """Number of regions with a corrected p value of at most `SIGNIFICANT`."""
        return (
            sum(row["p"] != "n/a" and float(row["p"]) <= SIGNIFICANT for row in self.rows) if self.has_p_values else 0
        )


def _is_number(cell: str | None) -> bool:
    try:
        float(cell or "")
    except ValueError:
        return cell == "n/a"
    return True


@dataclass(frozen=True)
class Measure:
    """Image quality metric (IQM), formatted for the report."""

    label: str
    value: str
    help: str = ""
    first: bool = False
    limit: str = ""
    """``≥ 0.9``; empty without a limit."""
    verdict: str = ""
    """``pass`` or ``warn``; empty without a limit or a value."""


@dataclass(frozen=True)
class Run:
    """BOLD run in the report."""

    stem: str
    outcome: RunOutcome | None = None
    """From the most recent log that lists the run; None if there is none."""
    route: str = ""
    """Sentence on the registration of the run."""
    model: EmbeddingsSidecar = field(default_factory=EmbeddingsSidecar)
    """Sidecar of its embeddings."""
    quality: Mapping[str, Any] = field(default_factory=dict)
    """Image quality metrics, as in their file."""
    measures: tuple[Measure, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    predictions: tuple[ReportedPrediction, ...] = ()
    regions: tuple[RegionTable, ...] = ()
    region_tables: tuple[tuple[str, str], ...] = ()
    """Names and URLs of its tables by region of the atlases of ``--timeseries``."""
    figures: dict[str, list[Figure]] = field(default_factory=dict)
    in_viewer: bool = False
    """True if it has data for the viewer."""
    overlays: tuple[str, ...] = ()
    """Adapters with contributions for the viewer, or the model of a reconstruction."""
    trace: Trace | None = None
    verdict: ReportedVerdict | None = None
    """Verdict on the scan itself, independent of any adapter."""
    split_half: dict[str, float] = field(default_factory=dict)
    """Split-half reliability of the embeddings (odd and even clips), by normalisation."""
    tables: tuple[tuple[str, str], ...] = ()
    """Names and URLs of its tables."""
    images: tuple[tuple[str, str], ...] = ()
    """Names and URLs of its images and transforms."""
    problem: str = ""
    """Sentence on outputs that do not belong together."""
    earlier: str = ""
    """Sentence on outputs of an invocation before the last one; empty if all are of the last one."""
    not_shown: tuple[str, ...] = ()
    """Files with the name of the run that are no outputs of it."""

    @property
    def failed(self) -> bool:
        """True if the run ended with an error."""
        return self.outcome is not None and self.outcome.status != OK

    @property
    def session(self) -> str:
        """Label of its session; empty without one."""
        return split_name(f"{self.stem}_bold")[0].get("ses", "")

    @property
    def worst_verdict(self) -> str:
        """Worst verdict on the scan and its predictions; empty without verdicts."""
        found = {each.verdict.level for each in self.predictions if each.verdict}
        found |= {self.verdict.level} if self.verdict else set()
        return next((level for level in reversed(LEVELS) if level in found), "")

    @property
    def title(self) -> str:
        """Entities of the run, such as ``ses-a, task-rest, run-1``."""
        return self.stem.partition("_")[2].replace("_", ", ") or self.stem


@dataclass(frozen=True)
class Contents:
    """Contents of a participant's report."""

    participant: str
    dataset: dict[str, Any]
    runs: list[Run]
    anatomy: dict[str, list[Figure]]
    """Figures of each T1w image, by image name."""
    anatomy_images: tuple[tuple[str, str], ...]
    """Names and URLs of the images and transforms of the T1w images."""
    log: Summary
    """Most recent log; empty if there is none."""
    log_dir: Path | None
    """Folder of the log."""
    invocation: dict[str, Any]
    """Most recent ``neurostorm.toml``."""
    methods: str
    """Markdown."""
    unreadable: list[str]
    """Files that could not be read, with the reason."""
    session: str = ""
    """Label of the session, if the page is of one session only."""
    elsewhere: tuple[tuple[str, Run], ...] = ()
    """Runs with a page of their session: URL of the page, and the run."""
    configurations: tuple[Configuration, ...] = ()
    """Configurations of the outputs; more than one if invocations with other options or versions wrote them."""

    @property
    def demonstration(self) -> bool:
        """True if the encoder or any prediction comes from a demonstration model."""
        flags = (prediction.demonstration for run in self.runs for prediction in run.predictions)
        return any(flags) or any(run.model.demonstration for run in self.runs)

    @property
    def untrained(self) -> bool:
        """True if an encoder has random weights."""
        return any(run.model.untrained for run in self.runs)


@cache
def spec() -> dict[str, Any]:
    """Return the specification of the reports, ``spec.yml``."""
    import yaml

    return yaml.safe_load(files("bids_app.reports").joinpath("spec.yml").read_text(encoding="utf-8"))


def in_order(summaries: Iterable[Path]) -> list[Path]:
    """Sort summaries of invocations by the second in the names of their folders, then by the time of writing."""
    return sorted(summaries, key=lambda path: (path.parent.name.partition("_")[0], path.lstat().st_mtime_ns))


class Reader:
    """Reader of the derivatives of one participant.

    Parameters
    ----------
    out_dir : pathlib.Path
        Root of the derivatives.
    participant : str
        Label, without ``sub-``.
    """

    def __init__(self, out_dir: Path, participant: str) -> None:
        self.out_dir, self.participant = out_dir, participant
        self.folder = out_dir / f"sub-{participant}"
        self.unreadable: list[str] = []
        self._known: dict[str, RunFiles] = {}
        self._outcomes: dict[str, RunOutcome] = {}
        self._finished: dict[str, str] = {}
        self._sized = False

    def read(self) -> Contents:
        """Read the contents of the report."""
        self._sized = True
        logs = {path.parent: self._record(path, Summary) for path in in_order(self.folder.glob("log/*/summary.json"))}
        for log in logs.values():
            for run in log.runs or ():
                if STEM.fullmatch(run.stem):
                    self._outcomes[run.stem], self._finished[run.stem] = run, log.finished or ""
        self._known = read_run_files(self.folder)
        log_dir = next(reversed(logs), None)
        stems = {*self._outcomes, *self._known}
        for pattern in ("*_desc-quality_metrics.json", "*_embeddings.tsv", "*_predictions.tsv", "*_vectors.tsv"):
            stems.update(stem_of(path) for path in self._outputs(pattern))
        figures = self._figures()
        runs = [self._run(stem, self._outcomes.get(stem), figures) for stem in sorted(stems, key=natural_key)]
        return Contents(
            participant=self.participant,
            dataset=self._json(self.out_dir / "dataset_description.json"),
            runs=runs,
            anatomy={
                stem: self._select_figures(stem, by_desc, "anatomy")["anatomy"]
                for (stem, suffix), by_desc in sorted(figures.items())
                if suffix == "T1w"
            },
            anatomy_images=tuple((path.name, self._url(path)) for path in self._anatomy_images()),
            log=logs[log_dir] if log_dir else Summary(),
            log_dir=log_dir,
            invocation=self._toml(log_dir / "neurostorm.toml") if log_dir else {},
            methods=self._text(self.out_dir / "logs" / "CITATION.md"),
            unreadable=self.unreadable,
            configurations=find_configurations({run.stem: run.title for run in runs}, self._known),
        )

    def figures(self, *sections: str) -> dict[tuple[str, str], list[Figure]]:
        """Return the figures of each image (name and suffix) in sections of the specification, in its order."""
        self._known = read_run_files(self.folder)
        found = {}
        for (stem, suffix), by_desc in self._figures().items():
            wanted = [name for name in sections if (name == "anatomy") == (suffix == "T1w")]
            selected = self._select_figures(stem, by_desc, *wanted)
            found[stem, suffix] = [figure for figures in selected.values() for figure in figures]
        return found

    def _run(self, stem: str, outcome: RunOutcome | None, figures: Mapping[Any, dict[str, str]]) -> Run:
        path = next(iter(self._outputs(f"{stem}_desc-quality_metrics.json")), None)
        metrics = self._record(path, QualitySidecar) if path else QualitySidecar()
        quality = metrics.quality or {}
        prediction_tables = [*self._own(stem, "predictions.tsv"), *self._own(stem, "vectors.tsv")]
        embeddings = self._own(stem, "embeddings.tsv")
        tables = [*prediction_tables, *embeddings, *self._outputs(f"{stem}_desc-confounds_timeseries.tsv")]
        predictions = {split_name(path.name)[0].get("desc", ""): self._prediction(path) for path in prediction_tables}
        hidden = {adapter for adapter, found in predictions.items() if found is None or found.withheld}
        sections = [section for section in spec()["figures"] if section != "anatomy"]
        selected = self._select_figures(stem, figures.get((stem, "bold"), {}), *sections)
        regions = filter(None, map(self._regions, self._own(stem, "attribution.tsv")))
        by_region = self._region_tables(stem)
        warnings = [*(metrics.warnings or ()), *self._region_warnings(by_region)]
        model = EmbeddingsSidecar()
        if embeddings:
            model = self._record(embeddings[0].with_suffix(".json"), EmbeddingsSidecar)
        split_half = {name: half.spearman_brown for name, half in (model.split_half or {}).items() if half}
        viewer = self._viewer_data(stem)
        route, template = metrics.route or "", metrics.template or ""
        folders = [self.folder / "figures", *self.folder.glob("func"), *self.folder.glob("ses-*/func")]
        files = (path for folder in folders for path in sorted(folder.glob(f"{stem}_*")) if stem_of(path) == stem)
        own = {path.relative_to(self.out_dir).as_posix(): self._is_output(path) for path in files}
        shown = [name for name, is_output in own.items() if is_output]
        self._name_lost(self._known.get(stem, RunFiles()), outcome)
        return Run(
            stem=stem,
            outcome=outcome,
            route=f"{spec()['routes'].get(route, route)} {template_note(template)}".strip(),
            model=model,
            quality=quality,
            measures=tuple(format_metrics(quality)),
            warnings=tuple(warnings),
            notes=metrics.notes or (),
            predictions=tuple(filter(None, predictions.values())),
            regions=tuple(table for table in regions if table.name not in hidden),
            region_tables=tuple((path.name, self._url(path)) for path in by_region),
            figures={section: [f for f in found if f.adapter not in hidden] for section, found in selected.items()},
            in_viewer="" in viewer,
            overlays=tuple(name for name in viewer if name and name not in hidden),
            trace=self._trace(stem, _seconds(quality.get("spacing_tr"))),
            verdict=format_verdict(model.verdict),
            split_half={name: value for name, value in split_half.items() if value is not None},
            tables=tuple((path.name, self._url(path)) for path in tables),
            images=tuple((Path(name).name, quote(name)) for name in shown if name.endswith(IMAGES)),
            problem=self._known.get(stem, RunFiles()).problem,
            earlier=describe_earlier(shown, self._known.get(stem), outcome, self._finished.get(stem, "")),
            not_shown=tuple(name for name in own if name not in shown) if stem in self._known else (),
        )

    def _prediction(self, path: Path) -> ReportedPrediction | None:
        """Read an adapter's prediction; None if the table or the verdict cannot be read."""
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
        """Read the volume-wise series of the carpet plot; None without the confounds or the figure."""
        table = next(iter(self._outputs(f"{stem}_desc-confounds_timeseries.tsv")), None)
        figure = self.folder / "figures" / f"{stem}_desc-carpet_bold.svg"
        if table is None or not figure.is_file():
            return None
        try:
            return read_trace(table, figure, self._url(figure), tr)
        except (OSError, ValueError, csv.Error) as error:
            self.unreadable.append(f"{self._url(table)}: {type(error).__name__} {error}")
            return None

    def _viewer_data(self, stem: str) -> list[str]:
        """Return the adapters that a run has data for in the viewer; empty text: data of the run itself."""
        found = sorted((self.folder / "figures").glob(f"{stem}_desc-*{VIEWER_DATA}_bold.js"))
        own = [path for path in found if stem_of(path) == stem and self._is_output(path)]
        return [split_name(path.name)[0]["desc"].removesuffix(VIEWER_DATA) for path in own]

    def _regions(self, path: Path) -> RegionTable | None:
        try:
            rows = tuple(row for row in read_output_table(path) if row["attribution"] != "n/a")
            for row in rows:
                (
                    float(row["attribution"]),
                    float(row["std"].replace("n/a", "nan")),
                    row["name"],
                    row["voxels"],
                    row["tokens"],
                )
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            self.unreadable.append(f"{self._url(path)}: {type(error).__name__} {error}")
            return None
        return RegionTable(
            split_name(path.name)[0].get("desc", ""),
            self._url(path),
            rows,
            self._record(path.with_suffix(".json"), AttributionSidecar),
        )

    def _region_tables(self, stem: str) -> list[Path]:
        """Return the tables by region of the atlases of ``--timeseries``: coverage, series and correlations."""
        return [
            path
            for ending in ("stat-coverage_bold.tsv", "stat-mean_timeseries.tsv", "stat-*_relmat.tsv")
            for path in self._own(stem, ending)
        ]

    def _region_warnings(self, tables: Iterable[Path]) -> list[str]:
        """Return why regions have no series, each reason once."""
        sidecars = [path.with_suffix(".json") for path in tables if path.name.endswith("_stat-coverage_bold.tsv")]
        return list(dict.fromkeys(w for path in sidecars for w in self._record(path, CoverageSidecar).warnings or ()))

    def _figures(self) -> dict[tuple[str, str], dict[str, str]]:
        """Return the URLs of the figures, by image (name and suffix) and ``desc-`` label."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        folder = self.folder / "figures"
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.suffix in (".svg", ".png", ".jpg") and self._is_output(path):
                entities, suffix, _ = split_name(path.name)
                desc = entities.get("desc", "")
                found.setdefault((stem_of(path), suffix), {})[desc] = self._url(path)
        return found

    def _select_figures(self, name: str, by_desc: Mapping[str, str], *sections: str) -> dict[str, list[Figure]]:
        """Select an image's figures for each section; ``desc-statepredictions`` belongs to ``predictions``."""
        selected: dict[str, list[Figure]] = {}
        for section in sections:
            selected[section] = [
                Figure(
                    url=url,
                    title=titled(entry, desc) if section in ATLAS_SECTIONS else entry["title"],
                    caption=entry["caption"],
                    alt=entry["alt"].format(name=name),
                    first=entry.get("first", "") if url.endswith(".svg") else "",
                    second=entry.get("second", "") if url.endswith(".svg") else "",
                    adapter=desc.removesuffix(entry["desc"]) if section in ADAPTER_SECTIONS else "",
                    kind=f"{section}-{entry['desc']}",
                    size=read_size(self.out_dir / unquote(url)) if self._sized else None,
                )
                for entry in spec()["figures"][section]
                for desc, url in by_desc.items()
                if desc == entry["desc"]
                or (section in (*ADAPTER_SECTIONS, *ATLAS_SECTIONS) and desc.endswith(entry["desc"]))
            ]
        return selected

    def _own(self, stem: str, ending: str) -> list[Path]:
        """Return the tables of one run, without those of runs whose name has the same prefix."""
        return [path for path in self._outputs(f"{stem}_*_{ending}") if stem_of(path) == stem]

    def _outputs(self, pattern: str) -> list[Path]:
        """Return matching outputs in the func folders of all sessions."""
        found = [*self.folder.glob(f"func/{pattern}"), *self.folder.glob(f"ses-*/func/{pattern}")]
        return sorted(path for path in found if self._is_output(path))

    def _anatomy_images(self) -> list[Path]:
        """Return the images and transforms in the anat folders of all sessions."""
        found = [*self.folder.glob("anat/*"), *self.folder.glob("ses-*/anat/*")]
        return sorted(path for path in found if path.name.endswith(IMAGES) and self._is_output(path))

    def _is_output(self, path: Path) -> bool:
        """Return whether a file is an output of its run, not a leftover of an earlier invocation."""
        known = self._known.get(stem_of(path), RunFiles())
        return not path.name.startswith(".") and known.includes(path.relative_to(self.out_dir).as_posix())

    def _url(self, path: Path) -> str:
        return quote(path.relative_to(self.out_dir).as_posix())

    def _record(self, path: Path, kind: type[R]) -> R:
        """Read a sidecar or log; if it cannot be read, note that and return an empty record."""
        try:
            return kind.read(path)
        except (OSError, BadDataError) as error:
            self._cannot_read(path, error)
            return kind()

    def _name_lost(self, known: RunFiles, outcome: RunOutcome | None) -> None:
        """Note the figures, tables and sidecars that a run wrote and that are gone; see `may_be_gone`."""
        names = (name for name in known.outputs(outcome) if not may_be_gone(name))
        lost = [name for name in names if not (self.out_dir / name).exists()]
        self.unreadable.extend(f"{name}: file not found, although the run wrote it" for name in lost)

    def _cannot_read(self, path: Path, error: Exception) -> None:
        reason = getattr(error, "message", "") or getattr(error, "strerror", "") or str(error)
        self.unreadable.append(f"{path.relative_to(self.out_dir)}: {reason}")

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(self._text(path) or "{}")
            if isinstance(content, dict):
                return content
            raise ValueError("not a JSON object")
        except ValueError as error:
            self.unreadable.append(f"{path.relative_to(self.out_dir)}: invalid JSON ({error})")
            return {}

    def _toml(self, path: Path) -> dict[str, Any]:
        try:
            return tomllib.loads(self._text(path))
        except ValueError as error:
            self.unreadable.append(f"{path.relative_to(self.out_dir)}: invalid TOML ({error})")
            return {}

    def _text(self, path: Path) -> str:
        try:
            return read_output(path).decode()
        except (OSError, UnicodeDecodeError) as error:
            self.unreadable.append(f"{path.relative_to(self.out_dir)}: {getattr(error, 'strerror', '') or error}")
            return ""


def titled(entry: Mapping[str, Any], desc: str) -> str:
    """Return the title of a figure of an atlas, with the label of the atlas from its ``desc-`` label."""
    atlas = desc.removesuffix(entry["desc"])
    return f"{entry['title']} ({atlas})" if atlas else str(entry["title"])


def read_size(path: Path) -> tuple[float, float] | None:
    """Return width and height of an SVG file in its own units; None for other files."""
    try:
        found = VIEW.search(read_output(path)[:HEAD_BYTES])
        return (float(found[1]), float(found[2])) if found else None
    except (OSError, ValueError):
        return None


def stem_of(path: Path) -> str:
    """Return the name of an output's raw image, without the suffix."""
    entities = split_name(path.name)[0]
    raw = {key: label for key, label in entities.items() if key not in DERIVED_ENTITIES}
    return join_name(raw, "").removesuffix("_")


def format_metrics(quality: Mapping[str, Any]) -> list[Measure]:
    """Format image quality metrics for the report, those in the specification first."""
    known = spec()["quality"]
    order = [*(key for key in known if key in quality), *(key for key in quality if key not in known)]
    found = []
    for key in order:
        entry, value = known.get(key, {}), quality[key]
        text, verdict = "n/a", ""
        if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
            text, verdict = _in_units(value, entry, entry.get("digits")), rate_metric(key, value)
        elif value is not None and not isinstance(value, float):
            text = str(value)
        label = entry.get("label", key.replace("_", " "))
        found.append(Measure(label, text, entry.get("help", ""), entry.get("first", False), format_limit(key), verdict))
    return found


def rate_metric(key: str, value: float) -> str:
    """Compare an image quality metric with its limits: ``pass``, ``warn``, or empty without limits."""
    entry = spec()["quality"].get(key, {})
    if not {"minimum", "maximum"} & entry.keys():
        return ""
    return "pass" if entry.get("minimum", -math.inf) <= value <= entry.get("maximum", math.inf) else "warn"


def beyond_limits(quality: Mapping[str, Any], skip: Collection[str] = ()) -> list[str]:
    """Return the image quality metrics outside their limits, as ``Volumes with FD above 0.5 mm 24.0 % (≤ 20 %)``."""
    found = []
    for key, entry in spec()["quality"].items():
        value = quality.get(key)
        if key in skip or isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            continue
        if rate_metric(key, value) == "warn":
            found.append(f"{entry['label']} {_in_units(value, entry, entry.get('digits'))} ({format_limit(key)})")
    return found


def format_limit(key: str) -> str:
    """Format the limits of an image quality metric; empty if it has none."""
    entry = spec()["quality"].get(key, {})
    signs = {"minimum": "≥", "maximum": "≤"}
    return " and ".join(f"{sign} {_in_units(entry[name], entry)}" for name, sign in signs.items() if name in entry)


def _in_units(value: float, entry: Mapping[str, Any], digits: int | None = None) -> str:
    shown = value * entry.get("factor", 1)
    return f"{shown:{'.4g' if digits is None else f'.{digits}f'}} {entry.get('unit', '')}".rstrip()


def quality_columns(quality: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Describe the columns of a table of image quality metrics, for its sidecar."""
    found = {}
    known = spec()["quality"] | spec()["grid"]
    for key in quality:
        entry = known.get(key, {})
        described = {"LongName": entry.get("label"), "Description": entry.get("help"), "Units": entry.get("unit")}
        if entry.get("unit") == "%" and entry.get("factor") == 100:
            described["Units"] = "1"  # a fraction in the table, a percentage in the report
        limits = {"Minimum": entry.get("minimum"), "Maximum": entry.get("maximum")}
        found[key] = {name: text for name, text in (described | limits).items() if text is not None}
    return found


def template_note(name: str) -> str:
    """Return a sentence on an inexact mapping from the template to the model's space, or an empty string."""
    from bids_app.catalog.templates import catalog

    accuracy = catalog().get(name, {}).get("accuracy", "exact")
    return "" if accuracy == "exact" else spec()["template"].format(name=name, accuracy=accuracy)


def _seconds(value: Any) -> float | None:
    """Return the repetition time as a float; None if it is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
