"""One table for several targets that are evaluated on the same scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bids_app.bids.writer import write_text, write_tsv
from bids_app.errors import UsageError
from bids_app.training.evaluation.comparison import ALPHA, ENCODER, holm
from bids_app.training.evaluation.evaluate import Evaluation
from bids_app.training.evaluation.report import NAMES, format_score, html_page, html_table, markdown_table, metric_table

TITLE = "Predictions of several targets"
NOTE = (
    "Main metric of each target, with 95 % intervals; each target has a report in the folder of its name. p is "
    "one-sided against chance, corrected for the number of targets (Holm); "
    f"below {ALPHA / 2:g}, the encoder exceeds chance."
)


def name_folders(targets: Sequence[str]) -> dict[str, str]:
    """Return the folder of each target, named by its column.

    Raises
    ------
    UsageError
        Two targets have the same column.
    """
    folders = {target: "".join(c if c.isalnum() else "_" for c in target.rpartition(":")[2]) for target in targets}
    if len(folders) < len(targets) or len(set(folders.values())) < len(folders):
        raise UsageError(
            f"Targets with the same column: {', '.join(targets)}.", "Give each column once, or use two commands."
        )
    return folders


def write_summary(evaluations: Mapping[str, Evaluation], folders: Mapping[str, str], output: Path) -> list[Path]:
    """Write ``report.md``, ``report.html`` and ``scores.tsv`` on all targets into a folder.

    Parameters
    ----------
    evaluations : mapping of str to Evaluation
        By target.
    folders : mapping of str to str
        See `name_folders`.
    output : Path
    """
    titles: dict[str, str] = {}
    for evaluation in evaluations.values():
        titles |= {name: method.title for name, method in evaluation.methods.items()}
    adjusted = corrected_p_values(evaluations)
    header = ["target", "participants", "metric", *titles.values(), "p"]
    rows = []
    for target, evaluation in evaluations.items():
        main, methods = evaluation.main_metric, evaluation.methods
        cells = [format_score(methods[name], main) if name in methods else "" for name in titles]
        participants = str(evaluation.facts["Participants"])
        rows.append([target, participants, NAMES[main], *cells, f"{adjusted[target]:.4f}"])
    scores: dict[str, list[object]] = {}
    for target, evaluation in evaluations.items():
        table = metric_table(evaluation)
        scores.setdefault("target", []).extend([target] * len(table["method"]))
        for key, column in table.items():
            scores.setdefault(key, []).extend(column)
    flags = [
        f"{target}: {line}"
        for target, evaluation in evaluations.items()
        for line in evaluation.summary().splitlines()
        if line.startswith("RED FLAG")
    ]
    markdown = [f"# {TITLE}", "", *(f"- {line}" for line in flags), "", *markdown_table(header, rows), "", NOTE, ""]
    markdown += [f"- {target}: [{folder}/report.md]({folder}/report.md)" for target, folder in folders.items()]
    links = "".join(f'<li><a href="{name}/report.html">{name}</a></li>' for name in folders.values())
    body = f"{html_table(header, rows)}<p>{NOTE}</p><ul>{links}</ul>"
    return [
        write_text(output / "report.md", "\n".join(markdown) + "\n"),
        write_text(output / "report.html", html_page(TITLE, flags, body)),
        write_tsv(output / "scores.tsv", scores),
    ]


def corrected_p_values(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """Return the p values of the encoder against chance, corrected for the number of targets (Holm 1979)."""
    p_values = [evaluation.methods[ENCODER].p_value for evaluation in evaluations.values()]
    adjusted = holm([1.0 if p is None else p for p in p_values])
    return dict(zip(evaluations, adjusted, strict=True))
