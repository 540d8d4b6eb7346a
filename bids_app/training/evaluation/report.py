"""Evaluation report as Markdown, HTML and TSV tables."""

from __future__ import annotations

from html import escape
from pathlib import Path

from bids_app.bids.writer import write_text, write_tsv
from bids_app.training.evaluation.comparison import ENCODER, Method
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
    "Scores are means over the folds of repeated cross-validation. Intervals (95 %) count the variance of training: "
    "for a frozen encoder, the variance is that between disjoint halves of the participants (Nadeau and Bengio 2003); "
    "otherwise, the overlap of the training sets of folds is counted (corrected resampled t). The encoder is called "
    "better than a baseline only if it exceeds chance, and if the difference remains after correction for the number "
    "of baselines (Holm). All methods are fitted in the same folds, with penalties selected within the training set. "
    "These are results about a group; they say nothing about an individual."
)
HOW_TO_READ_EXTERNAL = (
    "The adapter was applied as it is; nothing was trained. Intervals are percentiles of bootstrap samples of the "
    "participants. How simple baselines perform on these scans is shown by an evaluation without --adapter. These are "
    "results about a group; they say nothing about an individual."
)
HOW_TO_READ_ONE_SPLIT = (
    "Scores are of the test set of one split. Intervals (95 %) are over its participants (bootstrap) and do not count "
    "the variance of training. The encoder is called better than a baseline only if it exceeds chance, and if the "
    "difference remains after correction for the number of baselines (Holm). These are results about a group; they say "
    "nothing about an individual."
)
STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem}table{border-collapse:collapse;display:block;overflow-x:auto}th,td{padding:.35rem .7rem;"
    "border-bottom:1px solid #8886;text-align:left}img{max-width:100%}"
)


DATA_EFFICIENCY = (
    "Training sets are reduced to shares of their participants, sampled at random and nested: smaller samples are part "
    "of larger ones. Test sets are the same. The intervals count the overlap of whole training sets, which is larger "
    "than that of samples."
)
FIGURE = "data_efficiency.svg"


def write_report(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the report into a folder.

    Files are ``report.md``, ``report.html``, ``scores.tsv``, ``answers.tsv``, ``setup.tsv`` and, with shares of the
    training participants, ``data_efficiency.tsv`` and ``data_efficiency.svg``.
    """
    title = f"Prediction of {evaluation.task.target}"
    header, rows = _metric_rows(evaluation)
    facts = [(name, str(value)) for name, value in evaluation.facts.items() if value not in (0, "")]
    summary = evaluation.summary().splitlines()
    written = _write_shares(evaluation, folder) if evaluation.shares else []
    markdown = [f"# {title}", "", *(f"- {line}" for line in summary), "", *markdown_table(header, rows), ""]
    how_to_read = HOW_TO_READ_ONE_SPLIT if evaluation.has_one_split else HOW_TO_READ
    markdown += [how_to_read, ""]
    html = html_table(header, rows) + f"<p>{escape(how_to_read)}</p>"
    if evaluation.shares:
        shares = _share_rows(evaluation)
        markdown += ["## Data efficiency", "", *markdown_table(*shares), "", f"![Data efficiency]({FIGURE})", ""]
        markdown += [DATA_EFFICIENCY, ""]
        html += f"<h2>Data efficiency</h2>{html_table(*shares)}"
        html += f'<img src="{FIGURE}" alt="Data efficiency: the table above as a figure"><p>{DATA_EFFICIENCY}</p>'
    markdown += ["## Evaluation setup", "", *markdown_table(["", ""], facts)]
    html += "<h2>Evaluation setup</h2>" + html_table(["", ""], facts)
    if evaluation.notes:
        markdown += ["", *(f"- {note}" for note in evaluation.notes)]
        html += f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in evaluation.notes)}</ul>"
    return [
        write_text(folder / "report.md", "\n".join(markdown) + "\n"),
        write_text(folder / "report.html", html_page(title, summary, html)),
        write_tsv(folder / "scores.tsv", metric_table(evaluation)),
        write_tsv(folder / "answers.tsv", evaluation.table),
        write_tsv(folder / "setup.tsv", {"name": [name for name, _ in facts], "value": [value for _, value in facts]}),
        *written,
    ]


def html_page(title: str, points: list[str], body: str) -> str:
    """Return a page with a title, a list of points as text, and a body of HTML."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    listed = f"<ul>{''.join(f'<li>{escape(point)}</li>' for point in points)}</ul>" if points else ""
    return (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{listed}{body}</body></html>"
    )


def format_score(method: Method, key: str) -> str:
    """Format a metric with its interval."""
    return "{:.3f} ({:.3f} to {:.3f})".format(method.metrics[key], *method.intervals[key])


def _write_shares(evaluation: Evaluation, folder: Path) -> list[Path]:
    from bids_app.training.evaluation.shares_figure import plot_shares

    main = evaluation.main_metric
    table: dict[str, list[object]] = {
        key: [] for key in ("share", "participants", "method", "score", "value", "low", "high")
    }
    for share in evaluation.shares:
        for name, method in share.methods.items():
            for key, value in method.metrics.items():
                cells = (share.share, share.participants, name, key, value, *method.intervals[key])
                for column, cell in zip(table, cells, strict=True):
                    table[column].append(cell)
    return [
        write_tsv(folder / "data_efficiency.tsv", table),
        plot_shares(folder / FIGURE, evaluation.shares, main, NAMES[main], evaluation.task.target),
    ]


def _share_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of data efficiency: one row per share, one column per method."""
    main, methods = evaluation.main_metric, evaluation.methods
    header = ["share", "participants", *(f"{method.title} ({NAMES[main]})" for method in methods.values())]
    rows = [
        [
            f"{share.share:g}",
            f"{share.participants:.0f}",
            *(format_score(share.methods[name], main) for name in methods),
        ]
        for share in evaluation.shares
    ]
    return header, rows


def _metric_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    keys = list(evaluation.methods[ENCODER].metrics)
    rows = []
    for name, method in evaluation.methods.items():
        cells = [format_score(method, k) for k in keys]
        difference = "" if method.difference is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(*method.difference)
        rows.append([method.title, *cells, difference if name != ENCODER else ""])
    if evaluation.conditional is not None:
        cells = [format_score(evaluation.conditional, k) for k in keys]
        rows.append([AFTER_REMOVAL, *cells, ""])
    return ["method", *(NAMES[k] for k in keys), f"encoder minus baseline ({NAMES[evaluation.main_metric]})"], rows


def metric_table(evaluation: Evaluation) -> dict[str, list[object]]:
    """Return the columns of the table of all metrics."""
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


def html_table(header: list[str], rows: list[list[str]] | list[tuple[str, str]]) -> str:
    """Return a table as HTML."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if any(header) else ''}<tbody>{body}</tbody></table>"
