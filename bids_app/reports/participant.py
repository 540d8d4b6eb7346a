"""Participant report: an HTML page built from the derivatives only, so it can be rebuilt at any time.

Figures are linked, not embedded; everything else is part of the page, which works offline. All text from files
(labels, names, messages, cards) is escaped.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bids_app import __version__
from bids_app.bids.entities import natural_key, split_name
from bids_app.bids.writer import write_text
from bids_app.catalog.cards import card_markdown, plain
from bids_app.errors import NoInputError
from bids_app.outputs.schema import OK, EmbeddingsSidecar, ModelSidecar, PredictionSidecar
from bids_app.reports import markdown
from bids_app.reports.contents import Contents, Measure, Reader, Run, spec
from bids_app.reports.index import METRICS, IndexRow, update_index
from bids_app.reports.pages import page_template, session_page, style_and_script
from bids_app.reports.reading import EXAMPLES_URL, guides, install_examples
from bids_app.reports.run_table import as_script
from bids_app.reports.traces import Compact, compact
from bids_app.reports.viewer import install_viewer, viewer_facts
from bids_app.settings.sections import SESSIONS_PER_REPORT

SECTIONS = (
    ("summary", "Summary"),
    ("viewer", "Viewer"),
    ("anatomy", "Anatomy"),
    ("functional", "Functional"),
    ("connectivity", "Connectivity"),
    ("grid", "Model input"),
    ("predictions", "Predictions"),
    ("attribution", "Regional contributions"),
    ("embeddings", "Embeddings"),
    ("cards", "Model cards"),
    ("methods", "Methods"),
    ("about", "About"),
    ("errors", "Errors"),
)


MAX_REGIONS = 40
"""Maximum rows of a table of regions on the page; the file has all rows."""
MAX_IMAGES = 12
"""Maximum links to images and transforms of the T1w images."""
PERFECT = 0.995
"""Split-half correlations from this on are shown as 1.00, and say nothing about a run."""
MAX_FILES = 5
"""Maximum number of files that are named where outputs of earlier invocations are not shown."""
PAGE_LIMIT = 378_000
"""Maximum size of a page, bytes; the volume-wise series use what is left, at a lower resolution for many runs."""
BYTES_PER_TRACE, BYTES_PER_POINT = 500, 16
"""Size of its HTML element, and of each point: three numbers of up to four digits with sign and comma."""


def build_participant_report(out_dir: Path, participant: str, max_sessions: int = SESSIONS_PER_REPORT) -> Path:
    """Write ``sub-<label>.html`` from the participant's derivatives, and update ``index.html``.

    Parameters
    ----------
    out_dir : pathlib.Path
        Root of the derivatives.
    participant : str
        Label, with or without ``sub-``.
    max_sessions : int
        With more sessions, each has a page of its own, ``sub-<label>_ses-<label>.html``.

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    NoInputError
        The participant has no derivatives.
    """
    participant = participant.removeprefix("sub-")
    if not (out_dir / f"sub-{participant}").is_dir():
        raise NoInputError(
            f"{out_dir}: no derivatives of sub-{participant}.", "Run the participant level for this participant first."
        )
    contents = Reader(out_dir, participant).read()
    install_examples(out_dir)
    scripts = install_viewer(out_dir) if any(run.in_viewer for run in contents.runs) else {}
    pages = split_sessions(contents, max_sessions)
    for name, part in pages.items():
        write_text(out_dir / name, render(part, scripts))
    for path in out_dir.glob(f"sub-{participant}_ses-*.html"):
        if path.name not in pages:
            path.unlink(missing_ok=True)
    rows = [index_row(run) for run in contents.runs] or [IndexRow(f"sub-{participant}")]
    update_index(out_dir, rows, str(contents.dataset.get("Name", "")))
    return out_dir / f"sub-{participant}.html"


def split_sessions(contents: Contents, max_sessions: int) -> dict[str, Contents]:
    """Return the contents of each page of a participant, by file name: one, or one per session and an overview."""
    own = f"sub-{contents.participant}"
    sessions = sorted({run.session for run in contents.runs if run.session}, key=natural_key)
    if len(sessions) <= max_sessions:
        return {f"{own}.html": contents}
    found: dict[str, Contents] = {}
    for session in sessions:
        anatomy = {
            name: figures
            for name, figures in contents.anatomy.items()
            if split_name(f"{name}_T1w")[0].get("ses", session) == session
        }
        runs = [run for run in contents.runs if run.session == session]
        found[session_page(own, session)] = replace(contents, runs=runs, anatomy=anatomy, session=session)
    elsewhere = tuple((quote(session_page(own, run.session)), run) for run in contents.runs if run.session)
    rest = [run for run in contents.runs if not run.session]
    return {f"{own}.html": replace(contents, runs=rest, elsewhere=elsewhere), **found}


def index_row(run: Run) -> IndexRow:
    """Return the row of a run in ``index.html``."""
    numbers = {name: run.quality.get(name) for name in METRICS}
    quality = {name: float(n) for name, n in numbers.items() if isinstance(n, int | float) and not isinstance(n, bool)}
    status = run.outcome.status if run.outcome else OK if run.measures or run.predictions else ""
    return IndexRow(run.stem, status, run.worst_verdict, quality=quality)


def render(contents: Contents, scripts: Mapping[str, str] | None = None) -> str:
    """Render a participant's page as HTML; ``scripts`` are the URLs of those of the viewer, see `install_viewer`."""
    scripts = scripts or {}
    page = _page(contents, {}, scripts)
    traces = [run.trace for run in contents.runs if run.trace]
    available = PAGE_LIMIT - len(page.encode()) - BYTES_PER_TRACE * len(traces)
    if not traces or available < BYTES_PER_POINT * len(traces):
        return page
    max_points = available // (BYTES_PER_POINT * len(traces))
    return _page(contents, {trace.url: compact(trace, max_points) for trace in traces}, scripts)


def _page(contents: Contents, traces: Mapping[str, Compact], scripts: Mapping[str, str]) -> str:
    """Render the page with the volume-wise series, by the URL of their figure, and the scripts of the viewer."""
    from markupsafe import Markup

    runs = contents.runs
    everything = [*runs, *(run for _, run in contents.elsewhere)]
    has = {name: any(run.figures.get(name) for run in runs) for name in ("grid", "embeddings")}
    has["connectivity"] = any(run.region_tables for run in runs)
    has["attribution"] = any(run.regions for run in runs)
    all_halves = list(dict.fromkeys(name for run in runs for name in run.split_half))
    halves = [name for name in all_halves if any(run.split_half.get(name, 1.0) < PERFECT for run in runs)]
    functional = [run for run in runs if run.measures or run.notes or run.figures.get("functional") or run.tables]
    viewer = viewer_facts(contents, scripts) if scripts else {}
    figures = [figure for found in contents.anatomy.values() for figure in found]
    figures += [figure for run in runs for found in run.figures.values() for figure in found]
    first = {figure.kind: figure.url for figure in reversed(figures)}
    values: dict[str, Any] = {
        "c": contents,
        "explained": set(first.values()),
        "guides": guides(),
        "examples": EXAMPLES_URL,
        "viewer": Markup(as_script(viewer)) if viewer else "",
        "version": __version__,
        "max_regions": max(5, min(MAX_REGIONS, 8 * MAX_REGIONS // max(1, sum(len(run.regions) for run in runs)))),
        "max_files": MAX_FILES,
        "max_images": MAX_IMAGES,
        "finished": (contents.log.finished or "").replace("T", " "),
        "everything": everything,
        "linked": [(f"#run-{run.stem}", run) for run in runs]
        + [(f"{url}#run-{run.stem}", run) for url, run in contents.elsewhere],
        "failed": [run for run in everything if run.failed],
        "predicted": [run for run in runs if run.predictions and not run.failed],
        "sessions": len({run.session for run in everything if run.session}),
        "functional": functional,
        "image_folders": list(dict.fromkeys(f"{url.rpartition('/')[0]}/" for run in runs for _, url in run.images)),
        "quality": quality_rows(functional),
        "traces": traces,
        "check_names": spec()["checks"],
        "halves": halves,
        "perfect_halves": [name for name in all_halves if name not in halves],
        "models": {plain(facts): facts for facts in map(_model_facts, runs) if facts},
        "has": has,
        "cards": [(name, Markup(markdown.to_html(text, top_level=3))) for name, text in model_cards(runs)],
        "methods": Markup(markdown.to_html(_without_title(contents.methods), top_level=2)) if contents.methods else "",
        "command": _command(contents),
        "versions": contents.log.versions or {},
        "crashes": _crash_files(contents),
        **style_and_script(("style", "runs", "viewer"), ("script", "open_viewer")),
    }
    shown = {
        "viewer": viewer,
        "anatomy": contents.anatomy,
        "functional": functional,
        "connectivity": has["connectivity"],
        "grid": has["grid"],
        "predictions": values["predicted"],
        "attribution": has["attribution"],
        "embeddings": has["embeddings"] or all_halves,
        "cards": values["cards"],
        "methods": values["methods"],
    }
    values["sections"] = [(anchor, name) for anchor, name in SECTIONS if shown.get(anchor, True)]
    return page_template("participant").render(values)


def quality_rows(runs: Sequence[Run]) -> list[tuple[Measure, list[Measure | None]]]:
    """Arrange the image quality metrics as rows: label, help and limit, then the value of each run or None."""
    examples = {measure.label: measure for run in runs for measure in run.measures}
    own = [{measure.label: measure for measure in run.measures} for run in runs]
    return [(example, [run.get(label) for run in own]) for label, example in examples.items()]


def model_cards(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return title and Markdown body of each model and adapter card, without duplicates."""
    facts = [facts for run in runs if (facts := (run.model.model_card or {}) | _hashes(run.model))]
    facts += [_named(p.sidecar, p.adapter).to_json() for run in runs for p in run.predictions]
    cards = dict.fromkeys(card_markdown(sidecar) for sidecar in facts)
    return [(card.partition("\n")[0].removeprefix("# "), _without_title(card)) for card in cards]


def _hashes(found: EmbeddingsSidecar) -> dict[str, Any]:
    """Return the model facts that the sidecar of the embeddings holds outside the model card."""
    own = ModelSidecar(
        model=found.model,
        weights_sha256=found.weights_sha256,
        demonstration=found.demonstration,
        untrained=found.untrained,
    )
    return own.to_json()


def _named(found: PredictionSidecar, adapter: str) -> PredictionSidecar:
    """Add the adapter's name to a sidecar; early versions did not write it."""
    return replace(found, adapter=replace(found.adapter, name=adapter))


def _model_facts(run: Run) -> dict[str, Any]:
    """Return the facts about a run's model for the About section, by label."""
    facts = {name: getattr(run.model, field) for field, name in spec()["model"].items()}
    return {name: value for name, value in facts.items() if value is not None}


def _without_title(text: str) -> str:
    """Remove the first heading, which repeats the section title."""
    first, _, rest = text.partition("\n")
    return rest if first.startswith("# ") else text


def _command(contents: Contents) -> str:
    if contents.log.command is not None:
        return shlex.join(contents.log.command)
    invocation = contents.invocation.get("invocation")
    return str(invocation.get("command", "")) if isinstance(invocation, dict) else ""


def _crash_files(contents: Contents) -> dict[str, list[tuple[str, str]]]:
    """Return names and URLs of the crash files in the most recent log, by run."""
    folder = contents.log_dir
    if folder is None:
        return {}
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(folder.glob("crash-*.txt")):
        url = quote(f"sub-{contents.participant}/log/{folder.name}/{path.name}")
        for run in contents.runs:
            if path.name.startswith(f"crash-{run.stem}-"):
                found.setdefault(run.stem, []).append((path.name, url))
    return found
