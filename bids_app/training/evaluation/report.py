"""The report of an evaluation: Markdown, HTML and tables, made from its numbers alone."""

from __future__ import annotations

from html import escape
from pathlib import Path

from bids_app.bids.writer import write_text, write_tsv
from bids_app.training.evaluation.comparison import ENCODER
from bids_app.training.evaluation.evaluate import Evaluation

NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "r": "Pearson r",
    "mse": "MSE",
    "mae": "MAE",
    "rank1": "Rank-1",
    "map": "mAP",
    "top1": "top-1",
}
HOW_TO_READ = (
    "Intervals are of 95 %, from drawing participants with replacement; differences are between the encoder and a "
    "baseline for the same participants. Baselines are fitted in the same folds, their penalties chosen within the "
    "training part. A result about a group, not a statement about a person."
)
STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem}table{border-collapse:collapse;display:block;overflow-x:auto}th,td{padding:.35rem .7rem;"
    "border-bottom:1px solid #8886;text-align:left}"
)


def write_report(found: Evaluation, folder: Path) -> list[Path]:
    """Write ``report.md``, ``report.html``, ``scores.tsv`` and ``answers.tsv`` into a folder."""
    title = f"How well {found.question.target} is told"
    header, rows = _score_rows(found)
    facts = [(name, str(value)) for name, value in found.facts.items() if value not in (0, "")]
    verdict = found.verdict().splitlines()
    markdown = [f"# {title}", "", *(f"- {line}" for line in verdict), "", *_markdown_table(header, rows), ""]
    markdown += [HOW_TO_READ, "", "## What was evaluated", "", *_markdown_table(["", ""], facts)]
    html = [f"<h1>{escape(title)}</h1>", "<ul>", *(f"<li>{escape(line)}</li>" for line in verdict), "</ul>"]
    html += [_html_table(header, rows), f"<p>{escape(HOW_TO_READ)}</p>", "<h2>What was evaluated</h2>"]
    html += [_html_table(["", ""], facts)]
    if found.notes:
        markdown += ["", *(f"- {note}" for note in found.notes)]
        html += ["<ul>", *(f"<li>{escape(note)}</li>" for note in found.notes), "</ul>"]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    page = (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{"".join(html)}</body></html>'
    )
    return [
        write_text(folder / "report.md", "\n".join(markdown) + "\n"),
        write_text(folder / "report.html", page),
        write_tsv(folder / "scores.tsv", _score_table(found)),
        write_tsv(folder / "answers.tsv", found.table),
    ]


def _score_rows(found: Evaluation) -> tuple[list[str], list[list[str]]]:
    keys = list(found.methods[ENCODER].scores)
    rows = []
    for name, method in found.methods.items():
        cells = [f"{method.scores[k]:.3f} ({method.intervals[k][0]:.3f} to {method.intervals[k][1]:.3f})" for k in keys]
        lead = "" if method.lead is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(*method.lead)
        rows.append([method.title, *cells, lead if name != ENCODER else ""])
    return ["method", *(NAMES[k] for k in keys), f"encoder ahead in {NAMES[found.main]}"], rows


def _score_table(found: Evaluation) -> dict[str, list[object]]:
    table: dict[str, list[object]] = {key: [] for key in ("method", "score", "value", "low", "high")}
    for name, method in found.methods.items():
        for key, value in method.scores.items():
            for column, cell in zip(table, (name, key, value, *method.intervals[key]), strict=True):
                table[column].append(cell)
    return table


def _markdown_table(header: list[str], rows: list[list[str]] | list[tuple[str, str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *map(list, rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _html_table(header: list[str], rows: list[list[str]] | list[tuple[str, str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if any(header) else ''}<tbody>{body}</tbody></table>"
