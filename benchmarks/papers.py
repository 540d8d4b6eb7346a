"""Rows of the published tables: our number beside the published one, or what is needed to measure it.

    python benchmarks/papers.py                               # published figures, data and command of every row
    python benchmarks/papers.py RESULTS                       # ours beside them, from RESULTS/ROW of each command
    python benchmarks/papers.py RESULTS --rows abide adhd200  # some rows
    python benchmarks/papers.py --labels abide Phenotypic_V1_0b.csv --output labels/participants.tsv

A row is the file ``papers/ROW.args``, read by ``neurostorm-train evaluate @papers/ROW.args``, and its entry in
``papers/published.yml``. Published figures that could not be read are "not stated". The last column says whether the
results were made with the settings of the file. ``--labels`` writes the table of labels that the rows expect from the
tables of a dataset. docs/reproduce.md is the guide.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bids_app.bids.writer import write_tsv
from bids_app.cli.outcome import exit_code_of
from bids_app.cli.train import parser as train_parser
from bids_app.cli.train import with_option_files
from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.files import read_rows
from bids_app.settings import DEFAULT_MODEL
from bids_app.training.arguments import complete_from_recipe, describe_recipe
from bids_app.training.evaluation.comparison import ENCODER

FOLDER = Path(__file__).with_name("papers")
NOT_STATED = "not stated"
RESAMPLES = 2000
"""Resamples of participants for the interval of a difference."""
TRAINED = "trained"
NOT_LISTED = {"Head": TRAINED}
"""Settings that the report of an evaluation lists only if they are others."""
MISSING = ("", "n/a", "nan", "pending", "-999")
"""Cells of label tables without a value; -999 in ABIDE, pending in ADHD-200."""


@dataclass(frozen=True)
class Row:
    """One row of a published table.

    Attributes
    ----------
    name : str
        Name of its option file, without the extension.
    task, source : str
    dataset : str
        Key of the dataset.
    figures : dict of str to float or None
        Published value of each metric; None: not stated.
    others : dict of str to float
        Published value of the first metric for other methods, by the name of the baseline.
    participants : int, optional
        Published number of participants.
    before : str
        Option file of the pre-training that comes first.
    needs : str
        Options that the user adds.
    """

    name: str
    task: str
    source: str
    dataset: str
    figures: dict[str, float | None]
    participants: int | None = None
    others: dict[str, float] | None = None
    before: str = ""
    needs: str = ""

    @property
    def options(self) -> Path:
        """Option file of the evaluation."""
        return FOLDER / f"{self.name}.args"


@dataclass(frozen=True)
class Difference:
    """A figure that was published as the difference of two rows: first minus second."""

    name: str
    first: str
    second: str
    metric: str
    value: float | None


@dataclass(frozen=True)
class Published:
    """Content of ``published.yml``."""

    rows: dict[str, Row]
    differences: tuple[Difference, ...]
    datasets: dict[str, dict[str, Any]]
    sources: dict[str, str]


@dataclass(frozen=True)
class Result:
    """Results of a row: value and interval by method and metric, and the settings."""

    folder: Path
    scores: dict[tuple[str, str], tuple[float, float, float]]
    setup: dict[str, str]


def read_published(path: Path = FOLDER / "published.yml") -> Published:
    """Read the published figures."""
    content = yaml.safe_load(path.read_text())
    rows = {name: Row(name, **entry) for name, entry in content["rows"].items()}
    differences = tuple(Difference(name, **entry) for name, entry in content["differences"].items())
    return Published(rows, differences, content["datasets"], content["sources"])


def find_results(names: Iterable[str], folders: Sequence[Path]) -> dict[str, Result]:
    """Find the results of rows: folders of the name of a row, or such folders within.

    Raises
    ------
    NoInputError
        A folder does not exist.
    UsageError
        A folder has no results of a row, or a row has two results.
    """
    known, found = set(names), dict[str, Result]()
    for folder in folders:
        if not folder.is_dir():
            raise NoInputError(f"{folder}: no such folder.", "Give the folders that --output of evaluate names.")
        own = [path for path in (folder, *sorted(folder.iterdir())) if (path / "scores.tsv").is_file()]
        rows = [path for path in own if path.resolve().name in known]
        if not rows:
            raise UsageError(
                f"{folder}: no results of a row.",
                f"Results are in folders of the name of a row, with scores.tsv; rows: {', '.join(sorted(known))}.",
            )
        for path in rows:
            name = path.resolve().name
            if name in found and found[name].folder.resolve() != path.resolve():
                raise UsageError(
                    f"Two results of {name}: {found[name].folder} and {path}.", "Give one folder for each row."
                )
            found[name] = read_result(path)
    return found


def read_result(folder: Path) -> Result:
    """Read the results of an evaluation."""
    rows = read_rows(folder / "scores.tsv")
    if not rows or "target" in rows[0]:
        raise BadDataError(
            f"{folder / 'scores.tsv'}: not the scores of one target.", "Run the command of the row into this folder."
        )
    scores = {
        (row["method"], row["score"]): tuple(_number(row[key]) for key in ("value", "low", "high")) for row in rows
    }
    setup = folder / "setup.tsv"
    settings = {row["name"]: row["value"] for row in read_rows(setup)} if setup.is_file() else {}
    return Result(folder, scores, settings)  # type: ignore[arg-type]


def _number(cell: str) -> float:
    return float("nan") if cell in MISSING else float(cell)


def expected_setup(row: Row) -> dict[str, str]:
    """Return the settings that the report of this row's option file lists."""
    arguments = read_options("evaluate", row.name)
    complete_from_recipe(arguments, arguments.strategy)
    found = {
        "Target": arguments.target.rpartition(":")[2],
        "Task": arguments.task,
        "Strategy": arguments.strategy,
        "Normalisation": arguments.normalisation,
        "Recipe": describe_recipe(arguments, arguments.strategy),
    }
    found |= {"Gallery": f"{arguments.gallery} participants"} if arguments.gallery else {}
    if arguments.across_sessions:
        found["Compared with"] = f"scans of other sessions (by {arguments.across_sessions})"
    found |= {"Folds": f"{arguments.folds}, by participant", "Head": TRAINED}
    model = read_options("pretrain", row.before).name if row.before else arguments.model or DEFAULT_MODEL
    return found | {"Encoder": model}


def read_options(command: str, name: str) -> argparse.Namespace:
    """Parse an option file of `FOLDER` as the command does."""
    return train_parser().parse_args(with_option_files([command, "DATA", f"@{FOLDER / name}.args"]))


def describe_protocol(row: Row, result: Result) -> str:
    """Say whether results were made with the settings of the option file."""
    if not result.setup:
        return "unknown: no setup.tsv"
    changed = []
    for name, value in expected_setup(row).items():
        own = result.setup.get(name, NOT_LISTED.get(name, "none"))
        own = re.sub(r" \(sha256.*|, (samples )?repeated .*", "", own)  # name of the encoder, kind of the folds
        changed += [f"{name} {own} instead of {value}"] if own != value else []
    return "; ".join(changed) or "as in the file"


def compare(row: Row, data: str, result: Result | None) -> list[list[str]]:
    """Return the lines of a row: each metric of the encoder, then the first metric of other published methods."""
    main = next(iter(row.figures))
    figures = [(ENCODER, metric, value) for metric, value in row.figures.items()]
    figures += [(method, main, value) for method, value in (row.others or {}).items()]
    lines = []
    for method, metric, value in figures:
        name = row.name if method == ENCODER else f"{row.name}, {method}"
        published = NOT_STATED if value is None else f"{value:.3f}"
        ours = within = participants = protocol = ""
        if result is not None:
            score = result.scores.get((method, metric))
            ours = "not measured" if score is None else format_interval(*score)
            within = describe_position(value, score)
            participants = result.setup.get("Participants", "unknown")
            protocol = describe_protocol(row, result)
        people = f"{row.participants or NOT_STATED} / {participants or '-'}"
        lines.append([name, data, row.task, metric, published, ours or "no results", within, people, protocol])
    return lines


def format_interval(value: float, low: float, high: float) -> str:
    """Format a value with its interval."""
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def describe_position(published: float | None, ours: tuple[float, float, float] | None) -> str:
    """Say where the published value is: within our interval, above or below it."""
    if published is None or ours is None or np.isnan(ours[1:]).any():
        return ""
    return "above ours" if published > ours[2] else "below ours" if published < ours[1] else "within"


def paired_difference(first: Result, second: Result, seed: int = 0) -> tuple[tuple[float, float, float], int]:
    """Return the difference of accuracies, first minus second, its 95 % interval over participants, and their number.

    Participants are resampled together with both of their results; the interval does not count the variance of
    pre-training and training.

    Raises
    ------
    BadDataError
        The two results are not of the same participants.
    """
    accuracies = [accuracy_by_participant(result.folder / "answers.tsv") for result in (first, second)]
    if accuracies[0].keys() != accuracies[1].keys():
        n = len(accuracies[0].keys() ^ accuracies[1].keys())
        raise BadDataError(
            f"{first.folder} and {second.folder}: {n} participants are in one of them only.",
            "Evaluate both with the same scans.",
        )
    people = sorted(accuracies[0])
    differences = np.array([accuracies[0][p] - accuracies[1][p] for p in people])
    rng = np.random.default_rng(seed)
    means = differences[rng.integers(len(people), size=(RESAMPLES, len(people)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return (float(differences.mean()), float(low), float(high)), len(people)


def accuracy_by_participant(path: Path) -> dict[str, float]:
    """Return the share of right predictions of the encoder for each participant."""
    start, right = f"{ENCODER}_p_", dict[str, list[bool]]()
    rows = read_rows(path)
    labels = [name for name in (rows[0] if rows else {}) if name.startswith(start)]
    if not labels:
        raise BadDataError(f"{path}: no probabilities of the encoder.", "Run the command of the row again.")
    for row in rows:
        predicted = max(labels, key=lambda label: float(row[label])).removeprefix(start)
        right.setdefault(row["participant_id"], []).append(predicted == row["truth"])
    return {participant: float(np.mean(values)) for participant, values in right.items()}


def compare_difference(difference: Difference, results: dict[str, Result]) -> list[str]:
    """Return the line of a difference between two rows."""
    name = f"{difference.first} minus {difference.second}"
    published = NOT_STATED if difference.value is None else f"{difference.value:+.3f}"
    if difference.first not in results or difference.second not in results:
        return [name, "", "difference", difference.metric, published, "no results", "", "", ""]
    found, n = paired_difference(results[difference.first], results[difference.second])
    ours = "{:+.3f} ({:+.3f} to {:+.3f})".format(*found)
    within = describe_position(difference.value, found)
    return [name, "", "difference", difference.metric, published, ours, within, f"- / {n}", "paired by participant"]


def commands_of(row: Row) -> list[str]:
    """Return the commands of a row."""
    relative = Path("benchmarks", "papers")
    pretrain = [f"neurostorm-train pretrain DERIVATIVES @{relative / row.before}.args"] if row.before else []
    needs = f" {row.needs}" if row.needs else ""
    evaluate = f"neurostorm-train evaluate DERIVATIVES --raw LABELS @{relative / row.name}.args{needs}"
    return [*pretrain, f"{evaluate} --output RESULTS/{row.name}"]


HEADER = [
    "row",
    "data",
    "task",
    "metric",
    "published",
    "ours (95 % interval)",
    "published is",
    "participants",
    "protocol",
]
HEADER[-2] += " (published / ours)"


def report(published: Published, names: Sequence[str], results: dict[str, Result]) -> str:
    """Return the table of rows, then what to run for rows without results."""
    rows = [published.rows[name] for name in names]
    lines = [
        line for row in rows for line in compare(row, published.datasets[row.dataset]["title"], results.get(row.name))
    ]
    lines += [compare_difference(d, results) for d in published.differences if d.first in names and d.second in names]
    text = ["| " + " | ".join(line) + " |" for line in (HEADER, ["---"] * len(HEADER), *lines)]
    text += ["", *(f"Source of {key}: {published.sources[key]}" for key in dict.fromkeys(row.source for row in rows))]
    missing = [row for row in rows if row.name not in results]
    if missing:
        text += ["", "To run (DERIVATIVES: preprocessed scans; LABELS: folder of participants.tsv; docs/reproduce.md):"]
    for row in missing:
        dataset = published.datasets[row.dataset]
        text += ["", f"{row.name}: {dataset['title']} ({dataset['apply']})", *(f"  {c}" for c in commands_of(row))]
    return "\n".join(text)


def make_labels(dataset: dict[str, Any], tables: Sequence[Path]) -> dict[str, list[str]]:
    """Return the columns of participants.tsv from the tables of a dataset.

    Parameters
    ----------
    dataset : dict
        Entry of ``published.yml``; its labels name the column of participants, and the source of each column.
    tables : sequence of Path
        Comma- or tab-separated. Participants are joined; columns of no table are left out.

    Raises
    ------
    BadDataError
        The column of participants is missing, no label was found, or a value is not known.
    """
    rules = dataset["labels"]
    people: dict[str, dict[str, str]] = {}
    found: list[str] = []
    for path in tables:
        rows = read_table(path)
        if not rows or rules["id"] not in rows[0]:
            raise BadDataError(
                f"{path}: column {rules['id']!r} is missing.",
                f"Its columns are {', '.join(list(rows[0])[:20]) if rows else 'none'}.",
            )
        columns = {name: source for name, source in rules["columns"].items() if source in rows[0]}
        found += [name for name in columns if name not in found]
        for row in rows:
            label = row[rules["id"]].zfill(rules.get("digits", 0))
            for name, source in columns.items():
                people.setdefault(label, {})[name] = translate(row[source], rules.get("values", {}).get(name), path)
    if not found:
        raise BadDataError(
            f"{', '.join(map(str, tables))}: no column of labels.",
            f"Expected: {', '.join(rules['columns'].values())}.",
        )
    table = {"participant_id": [f"sub-{label}" for label in people]}
    return table | {name: [person.get(name, "n/a") for person in people.values()] for name in found}


def translate(cell: str, values: dict[str, str] | None, path: Path) -> str:
    """Translate a code to a label; ``n/a`` for missing values."""
    if cell.lower() in MISSING:
        return "n/a"
    if values is None:
        return cell
    code = cell.removesuffix(".0")
    if code not in values:
        raise BadDataError(f"{path}: unknown value {cell!r}.", f"Known: {', '.join(values)}.")
    return values[code]


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a comma- or tab-separated table, without spaces around cells."""
    if not path.is_file():
        raise NoInputError(f"{path}: no such file.", "Give the tables of the dataset.")
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        first = file.readline()
        file.seek(0)
        rows = csv.DictReader(file, delimiter="\t" if "\t" in first else ",")
        return [{(k or "").strip(): (v or "").strip() for k, v in row.items() if isinstance(v, str)} for row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or write a table of labels."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("results", nargs="*", type=Path, metavar="RESULTS", help="folders with a folder of each row")
    p.add_argument("--rows", nargs="+", metavar="ROW", help="some rows (default: all)")
    p.add_argument("--labels", nargs="+", metavar=("DATASET", "TABLE"), help="write participants.tsv of a dataset")
    p.add_argument("--output", type=Path, default=Path("participants.tsv"), help="table that --labels writes")
    arguments = p.parse_args(argv)

    def run() -> None:
        published = read_published()
        if arguments.labels:
            name, *tables = arguments.labels
            known = [key for key, dataset in published.datasets.items() if "labels" in dataset]
            if name not in known or not tables:
                raise UsageError(f"--labels {name}: no such dataset, or no table.", f"Datasets: {', '.join(known)}.")
            table = make_labels(published.datasets[name], [Path(path) for path in tables])
            write_tsv(arguments.output, table)
            print(f"Wrote {arguments.output}: {len(table['participant_id'])} participants; {', '.join(table)}")
            return
        names = arguments.rows or list(published.rows)
        if unknown := sorted(set(names) - set(published.rows)):
            raise UsageError(f"--rows: unknown: {', '.join(unknown)}.", f"Rows: {', '.join(published.rows)}.")
        print(report(published, names, find_results(published.rows, arguments.results)))

    return exit_code_of("papers.py", run)


if __name__ == "__main__":
    sys.exit(main())
