"""Evaluation report as Markdown, HTML and TSV tables."""

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
AFTER_REMOVAL = "Encoder after removal of the variables with a red flag"
HOW_TO_READ = (
    "Scores are means over the folds of repeated cross-validation. Intervals (95 %) count the variance of training, "
    "as the training sets of folds overlap (corrected resampled t). The encoder is called better than a baseline only "
    "if it exceeds chance, and if the difference remains after correction for the number of baselines (Holm). All "
    "methods are fitted in the same folds, with penalties selected within the training set. "
    "These are results about a group; they say nothing about an individual."
)
HOW_TO_READ_EXTERNAL = (
    "The adapter was applied as it is; nothing was trained. Intervals are percentiles of bootstrap samples of the "
    "participants. How simple baselines perform on these scans is shown by an evaluation without --adapter. These are "
    "results about a group; they say nothing about an individual."
)
STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem}table{border-collapse:collapse;display:block;overflow-x:auto}th,td{padding:.35rem .7rem;"
    "border-bottom:1px solid #8886;text-align:left}"
)


def write_report(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write ``report.md``, ``report.html``, ``scores.tsv`` and ``answers.tsv`` into a folder."""
    title = f"Prediction of {evaluation.task.target}"
    header, rows = _metric_rows(evaluation)
    facts = [(name, str(value)) for name, value in evaluation.facts.items() if value not in (0, "")]
    summary = evaluation.summary().splitlines()
    markdown = [f"# {title}", "", *(f"- {line}" for line in summary), "", *markdown_table(header, rows), ""]
    markdown += [HOW_TO_READ, "", "## Evaluation setup", "", *markdown_table(["", ""], facts)]
    html = [f"<h1>{escape(title)}</h1>", "<ul>", *(f"<li>{escape(line)}</li>" for line in summary), "</ul>"]
    html += [_html_table(header, rows), f"<p>{escape(HOW_TO_READ)}</p>", "<h2>Evaluation setup</h2>"]
    html += [_html_table(["", ""], facts)]
    if evaluation.notes:
        markdown += ["", *(f"- {note}" for note in evaluation.notes)]
        html += ["<ul>", *(f"<li>{escape(note)}</li>" for note in evaluation.notes), "</ul>"]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    page = (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{"".join(html)}</body></html>'
    )
    return [
        write_text(folder / "report.md", "\n".join(markdown) + "\n"),
        write_text(folder / "report.html", page),
        write_tsv(folder / "scores.tsv", _metric_table(evaluation)),
        write_tsv(folder / "answers.tsv", evaluation.table),
    ]


def _metric_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    keys = list(evaluation.methods[ENCODER].metrics)
    rows = []
    for name, method in evaluation.methods.items():
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(method.metrics[k], *method.intervals[k]) for k in keys]
        difference = "" if method.difference is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(*method.difference)
        rows.append([method.title, *cells, difference if name != ENCODER else ""])
    if evaluation.conditional is not None:
        found = evaluation.conditional
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(found.metrics[k], *found.intervals[k]) for k in keys]
        rows.append([AFTER_REMOVAL, *cells, ""])
    return ["method", *(NAMES[k] for k in keys), f"encoder minus baseline ({NAMES[evaluation.main_metric]})"], rows


def _metric_table(evaluation: Evaluation) -> dict[str, list[object]]:
    table: dict[str, list[object]] = {key: [] for key in ("method", "score", "value", "low", "high")}
    conditional = {"encoder_conditional": evaluation.conditional} if evaluation.conditional else {}
    for name, method in (evaluation.methods | conditional).items():
        for key, value in method.metrics.items():
            for column, cell in zip(table, (name, key, value, *method.intervals[key]), strict=True):
                table[column].append(cell)
    return table


def markdown_table(header: list[str], rows: list[list[str]] | list[tuple[str, str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [header, ["---"] * len(header), *map(list, rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _html_table(header: list[str], rows: list[list[str]] | list[tuple[str, str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if any(header) else ''}<tbody>{body}</tbody></table>"
