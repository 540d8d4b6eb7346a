"""How to read the figures: one source for the fold-outs of the report and for ``docs/reading-reports.md``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bids_app.bids.writer import copy_file
from bids_app.reports.contents import spec
from bids_app.reports.viewer import ASSETS

FOLDER = Path(__file__).parent
EXAMPLES = "examples"
"""Folder of the example pictures in this package."""
EXAMPLES_URL = f"{ASSETS}/{EXAMPLES}"
"""URL of the example pictures from the reports."""
PARTS = {"shown": "Shown", "good": "Good", "bad": "Bad", "do": "What to do"}


@dataclass(frozen=True)
class Guide:
    """How to read a kind of figure.

    Attributes
    ----------
    kind : str
        Section and ``desc-`` label, such as ``functional-coreg``.
    title : str
    parts : dict of str to str
        Sentences by their headings.
    examples : dict of str to str
        Captions of example pictures by their names without extension.
    """

    kind: str
    title: str
    parts: dict[str, str]
    examples: dict[str, str]


@cache
def guides() -> dict[str, Guide]:
    """Read ``reading.yml``, in the order of the figures in the report."""
    import yaml

    content: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "reading.yml").read_text(encoding="utf-8"))
    titles = {f"{section}-{e['desc']}": e["title"] for section, entries in spec()["figures"].items() for e in entries}
    return {
        kind: Guide(
            kind, title, {PARTS[name]: content[kind][name] for name in PARTS}, content[kind].get("examples", {})
        )
        for kind, title in titles.items()
    }


def install_examples(out_dir: Path) -> None:
    """Copy the example pictures to the output folder, where they are missing."""
    for guide in guides().values():
        for name in guide.examples:
            copy_file(FOLDER / EXAMPLES / f"{name}.webp", out_dir / EXAMPLES_URL / f"{name}.webp")


def guide_markdown(folder: str) -> str:
    """Return the text of ``docs/reading-reports.md``; ``folder`` is the path of the example pictures from there."""
    lines = [
        "# How to read the figures of a report",
        "",
        "Written by `python scripts/reading_guide.py` from `bids_app/reports/reading.yml`; the report has the same "
        "texts below its figures. The pictures are small parts of figures of simulated scans.",
    ]
    section = ""
    names = {"anatomy": "Anatomy", "functional": "Functional", "connectivity": "Connectivity",
             "grid": "Model input", "predictions": "Predictions",
             "attribution": "Regional contributions", "embeddings": "Embeddings"}  # fmt: skip
    for guide in guides().values():
        if guide.kind.partition("-")[0] != section:
            section = guide.kind.partition("-")[0]
            lines += ["", f"## {names[section]}"]
        lines += ["", f"### {guide.title}", ""]
        lines += [f"- **{heading}:** {text}" for heading, text in guide.parts.items()]
        if guide.examples:
            pictures = [f"![{caption}]({folder}/{name}.webp)" for name, caption in guide.examples.items()]
            lines += ["", f"| {' | '.join(guide.examples.values())} |", f"|{' --- |' * len(pictures)}"]
            lines += [f"| {' | '.join(pictures)} |"]
    return "\n".join(lines) + "\n"
