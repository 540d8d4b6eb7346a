"""Ratings of figures by people: ``ratings/rater-<label>_ratings.tsv``, one row per figure, and what follows for runs.

A rating is stored at once: the file is read, changed and replaced as a whole while a lock is held, so that several
processes and raters lose nothing. Tables have one line per row: control characters of notes are escaped.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bids_app.bids.entities import natural_key, split_name
from bids_app.bids.writer import atomic_path, wait_for_lock, write_json, write_text, writing_error
from bids_app.errors import BadDataError, CannotCreateError, InputOutputError, NoInputError, TemporaryError, UsageError
from bids_app.files import read_output, read_table_text
from bids_app.reports.contents import stem_of

FOLDER = "ratings"
"""Folder of the ratings, in the output folder."""
RATINGS = PASSED, DOUBTFUL, FAILED = ("pass", "doubtful", "fail")
"""From best to worst."""
TAGS = ("motion", "ghost", "signal loss", "wrong alignment", "artefact", "other")
COLUMNS = ("participant_id", "run", "figure", "rating", "tags", "note", "figure_hash", "rated_at")
MISSING = "n/a"
ANATOMY = "T1w"
"""Suffix of the figures of anatomical images."""

RATER = re.compile(r"[A-Za-z0-9]{1,64}")
FILE_NAME = re.compile(r"rater-(?P<label>[A-Za-z0-9]{1,64})_ratings\.tsv")
FIGURE = re.compile(r"sub-[A-Za-z0-9+]+(_[A-Za-z0-9]+-[A-Za-z0-9+]+)*_[A-Za-z0-9]+")
"""Pattern of the name of a figure: that of its file, without the extension."""
IMAGE_TYPES = (".svg", ".png", ".jpg")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
HASH = re.compile(r"[0-9a-f]{16}")
HASH_LENGTH = 16
"""Hexadecimal digits of the SHA-256 of a figure."""
MAX_NOTE = 2000
"""Maximum length of a note, characters."""
WAIT_SECONDS = 10.0
"""Maximum time to wait for another process that writes the same file."""

DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Characters that reverse the text after them, which may be that of another rater."""
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\\\\\u2028\u2029]")
SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
ESCAPED = re.compile(r"\\(u[0-9a-f]{4}|[\\tnr])")

DESCRIBED: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Participant"},
    "run": {"Description": "Name of the image that the figure shows, without suffix"},
    "figure": {"Description": "Name of the figure in sub-<label>/figures, without extension"},
    "rating": {
        "Description": "Rating of the figure; n/a: not rated, but with tags or a note",
        "Levels": {"pass": "Good", "doubtful": "Between good and bad", "fail": "Not usable"},
    },
    "tags": {
        "Description": "What is wrong, separated by commas",
        "Levels": {
            "motion": "Head motion",
            "ghost": "Ghost of the head (N/2)",
            "signal loss": "Loss of signal or distortion near air",
            "wrong alignment": "Wrong alignment of two images, or of an outline",
            "artefact": "Another artefact of the scan",
            "other": "Something else",
        },
    },
    "note": {
        "Description": r"Note of the rater. Line feeds are written as \n, tabs as \t, backslashes as \\, and other "
        r"control characters as \uXXXX"
    },
    "figure_hash": {"Description": "First 16 hexadecimal digits of the SHA-256 of the figure that was rated"},
    "rated_at": {"Description": "Date and time of the rating, UTC"},
}
"""Data dictionary of the table."""


@dataclass(frozen=True)
class Rating:
    """Rating of one figure by one rater."""

    figure: str
    """Name of the file of the figure, without extension."""
    rating: str = ""
    """One of `RATINGS`; empty if there are only tags or a note."""
    tags: tuple[str, ...] = ()
    note: str = ""
    figure_hash: str = ""
    """Empty if unknown."""
    rated_at: str = ""
    """Date and time, UTC, ISO 8601."""

    @property
    def run(self) -> str:
        """Name of the image that the figure shows, without suffix."""
        return stem_of(Path(f"{self.figure}.svg"))

    @property
    def participant(self) -> str:
        """Participant, such as ``sub-01``."""
        return self.figure.partition("_")[0]

    @property
    def is_anatomical(self) -> bool:
        """True for figures of the T1w image, which concern several runs."""
        return self.figure.endswith(f"_{ANATOMY}")

    @property
    def is_empty(self) -> bool:
        """True without rating, tags and note."""
        return not (self.rating or self.tags or self.note)


class RatedMeanwhileError(Exception):
    """The figure was rated by another process since the rating to replace was read.

    Attributes
    ----------
    current : Rating or None
    """

    def __init__(self, current: Rating | None) -> None:
        super().__init__(current)
        self.current = current


def check_rater(label: str) -> str:
    """Return the label of a rater, without ``rater-``.

    Raises
    ------
    UsageError
        The label does not consist of 1 to 64 letters and digits.
    """
    label = label.removeprefix("rater-")
    if not RATER.fullmatch(label):
        raise UsageError(f"Invalid value for --rater: {label!r}.", "Use 1 to 64 letters (a to z, A to Z) and digits.")
    return label


def ratings_path(out_dir: Path, rater: str) -> Path:
    """Return the path of a rater's table."""
    return out_dir / FOLDER / f"rater-{rater}_ratings.tsv"


def read_ratings(path: Path) -> dict[str, Rating]:
    """Read a rater's table, by figure.

    Raises
    ------
    NoInputError
        The file does not exist or cannot be read.
    BadDataError
        It is damaged: not UTF-8, other columns, a row with missing cells or invalid values, or a figure with two rows.
    """
    reader = csv.reader(io.StringIO(read_table_text(path), newline=""), delimiter="\t", strict=True)
    try:
        header, *rows = [*reader] or [[]]
    except csv.Error as error:
        raise _damaged(path, f"line {reader.line_num}: {error}") from None
    if tuple(header) != COLUMNS:
        raise _damaged(path, f"the columns are not {', '.join(COLUMNS)}")
    found: dict[str, Rating] = {}
    for number, row in enumerate(rows, 2):
        try:
            rating = _read_row(row)
        except ValueError as error:
            raise _damaged(path, f"line {number}: {error}") from None
        if rating.figure in found:
            raise _damaged(path, f"line {number}: {rating.figure} has two rows")
        found[rating.figure] = rating
    return found


def read_all_ratings(out_dir: Path, required: bool = False) -> dict[str, dict[str, Rating]]:
    """Read the tables of all raters of an output folder, by rater in natural order; see `read_ratings` for errors.

    Raises
    ------
    NoInputError
        There are no ratings, but ``--exclude-failed`` requires them.
    """
    try:
        names = os.listdir(out_dir / FOLDER)
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise NoInputError(f"{out_dir / FOLDER}: cannot be read ({error.strerror}).", "Check this folder.") from None
    raters = sorted((match["label"] for name in names if (match := FILE_NAME.fullmatch(name))), key=natural_key)
    found = {rater: read_ratings(ratings_path(out_dir, rater)) for rater in raters}
    if required and not any(found.values()):
        raise NoInputError(
            f"{out_dir / FOLDER}: no ratings, which --exclude-failed requires.",
            "Rate the figures with neurostorm-review, or omit --exclude-failed.",
        )
    return found


def format_ratings(ratings: Iterable[Rating]) -> str:
    """Format a rater's table, sorted by figure."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in sorted(ratings, key=lambda each: natural_key(each.figure)):
        cells = [each.participant, each.run, each.figure, each.rating, ",".join(each.tags)]
        cells += [escape_note(each.note), each.figure_hash, each.rated_at]
        writer.writerow([cell or MISSING for cell in cells])
    return text.getvalue()


def store_rating(out_dir: Path, rater: str, new: Rating, replaces: str | None = None) -> Rating | None:
    """Store one rating, or remove it if it is empty; other ratings of the file are kept.

    Parameters
    ----------
    out_dir : pathlib.Path
        Root of the derivatives.
    rater : str
    new : Rating
        Its time is set here.
    replaces : str, optional
        Time of the rating that it replaces, empty for none; None: whatever there is.

    Returns
    -------
    Rating or None
        As stored; None if it was removed.

    Raises
    ------
    RatedMeanwhileError
        The file has another rating of the figure than the one to replace.
    BadDataError
        The file is damaged; it is not changed.
    CannotCreateError, InputOutputError, TemporaryError
        It cannot be written, the disk is full, or another process holds its lock.
    """
    path = ratings_path(out_dir, rater)
    make_folder(out_dir)
    with _locked(path):
        ratings = read_ratings(path) if os.path.lexists(path) else {}
        current = ratings.pop(new.figure, None)
        if replaces is not None and replaces != (current.rated_at if current else ""):
            raise RatedMeanwhileError(current)
        new = replace(new, note=clean_note(new.note), rated_at=_now(current))
        if not new.is_empty:
            ratings[new.figure] = new
        write_dictionary(path)
        with atomic_path(path) as temporary:
            temporary.write_text(format_ratings(ratings.values()), encoding="utf-8", newline="")
    return None if new.is_empty else new


def make_folder(out_dir: Path) -> Path:
    """Create the folder of the ratings, and have BIDS validators ignore it if the output folder can be written.

    Raises
    ------
    CannotCreateError
        It cannot be created, or files cannot be created in it.
    """
    folder, ignore = out_dir / FOLDER, out_dir / ".bidsignore"
    hint = "Check the permissions, or have the owner create this folder so that you can write in it."
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be written ({error.strerror}).", hint) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CannotCreateError(f"{folder}: cannot be written (no write permission).", hint)
    with suppress(OSError, CannotCreateError):
        lines = ignore.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if ignore.exists() else []
        if FOLDER not in lines:
            write_text(ignore, "\n".join([*lines, FOLDER]) + "\n")
    return folder


def write_dictionary(path: Path) -> Path:
    """Write the data dictionary beside a rater's table."""
    about = {"Description": "Ratings of figures by one person, made with neurostorm-review"}
    return write_json(path.with_suffix(".json"), about | DESCRIBED)


def clean_note(note: str) -> str:
    """Return a note of at most `MAX_NOTE` characters.

    White space around it, halves of surrogate pairs and `DIRECTION` are left out.
    """
    text = note.replace("\r\n", "\n").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return DIRECTION.sub("", text).strip()[:MAX_NOTE]


def escape_note(note: str) -> str:
    """Escape the control characters of a note, so that it fits in one cell of one line."""
    text = CONTROL.sub(lambda found: SHORT.get(found[0], f"\\u{ord(found[0]):04x}"), note)
    return "\\u006e/a" if text == MISSING else text


def unescape_note(cell: str) -> str:
    """Return the note of a cell; the inverse of `escape_note`."""
    if cell == MISSING:
        return ""
    plain = {written[1]: char for char, written in SHORT.items()}
    return ESCAPED.sub(lambda f: plain[f[1]] if len(f[1]) == 1 else chr(int(f[1][1:], 16)), cell)


def figure_file(out_dir: Path, figure: str) -> Path | None:
    """Return the file of a figure; None if it does not exist."""
    folder = out_dir / figure.partition("_")[0] / "figures"
    return next((path for kind in IMAGE_TYPES if (path := folder / f"{figure}{kind}").is_file()), None)


def hash_figure(path: Path) -> str:
    """Return the first digits of the SHA-256 of a figure; empty if it cannot be read."""
    try:
        return hashlib.sha256(read_output(path)).hexdigest()[:HASH_LENGTH]
    except OSError:
        return ""


def is_outdated(out_dir: Path, rating: Rating) -> bool:
    """Return whether the figure has changed since it was rated; figures that are not newer are not read."""
    path = figure_file(out_dir, rating.figure)
    if path is None or not rating.figure_hash:
        return False
    rated = datetime.fromisoformat(rating.rated_at)
    if path.stat().st_mtime < rated.timestamp():
        return False
    return hash_figure(path) != rating.figure_hash


@dataclass(frozen=True)
class RunRating:
    """Ratings of a run: of its own figures, and of the figures of its anatomy."""

    run: str
    by_rater: Mapping[str, str]
    """Worst rating of each rater."""
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def consensus(self) -> str:
        """Median of the raters, of an even number the worse of the two in the middle; empty without ratings."""
        order = sorted(RATINGS.index(rating) for rating in self.by_rater.values())
        return RATINGS[order[len(order) // 2]] if order else ""


def rate_runs(runs: Sequence[str], ratings: Mapping[str, Mapping[str, Rating]]) -> dict[str, RunRating]:
    """Combine the ratings of figures to ratings of runs.

    Parameters
    ----------
    runs : sequence of str
        Names of the runs, without suffix.
    ratings : mapping
        Ratings by rater and figure; without outdated ones.

    Returns
    -------
    dict of str to RunRating
        Runs that have ratings.
    """
    own: dict[str, list[tuple[str, Rating]]] = {}
    anatomies: dict[str, set[str]] = {}
    for rater, by_figure in ratings.items():
        for rating in by_figure.values():
            key = f"{rating.run}_{ANATOMY}" if rating.is_anatomical else rating.run
            own.setdefault(key, []).append((rater, rating))
            if rating.is_anatomical:
                anatomies.setdefault(rating.participant, set()).add(rating.run)
    found = {}
    for run in runs:
        names = anatomies_of(run, anatomies.get(run.partition("_")[0], ()))
        images = [run, *(f"{name}_{ANATOMY}" for name in names)]
        pairs = [pair for image in images for pair in own.get(image, ())]
        if pairs:
            found[run] = _combine(run, pairs)
    return found


def anatomies_of(run: str, anatomies: Iterable[str]) -> list[str]:
    """Return which anatomical images of a participant belong to a run: those of its session, else all of them."""
    session = split_name(f"{run}_bold")[0].get("ses")
    names = sorted(anatomies)
    same = [name for name in names if split_name(f"{name}_{ANATOMY}")[0].get("ses") == session]
    return same or names


def failed_runs(out_dir: Path, runs: Sequence[str]) -> set[str]:
    """Return the runs of an output folder whose consensus is `FAILED`.

    Raises
    ------
    NoInputError
        The folder has no ratings.
    BadDataError
        A table of ratings is damaged.
    """
    current = without_outdated(out_dir, read_all_ratings(out_dir, required=True))[0]
    return {run for run, rating in rate_runs(runs, current).items() if rating.consensus == FAILED}


def without_outdated(
    out_dir: Path, ratings: Mapping[str, Mapping[str, Rating]]
) -> tuple[dict[str, dict[str, Rating]], list[str]]:
    """Separate the ratings, by rater and figure, from the names of figures that changed since they were rated."""
    outdated = {
        (rater, figure)
        for rater, by_figure in ratings.items()
        for figure, rating in by_figure.items()
        if is_outdated(out_dir, rating)
    }
    current = {
        rater: {figure: rating for figure, rating in by_figure.items() if (rater, figure) not in outdated}
        for rater, by_figure in ratings.items()
    }
    return current, sorted({figure for _, figure in outdated}, key=natural_key)


def _combine(run: str, pairs: Iterable[tuple[str, Rating]]) -> RunRating:
    by_rater: dict[str, str] = {}
    tags: dict[str, None] = {}
    notes: dict[str, None] = {}
    for rater, rating in pairs:
        if rating.rating:
            by_rater[rater] = max(by_rater.get(rater, PASSED), rating.rating, key=RATINGS.index)
        tags |= dict.fromkeys(rating.tags)
        notes |= dict.fromkeys([f"{rater}: {clean_note(rating.note)}"] if rating.note else [])
    return RunRating(run, by_rater, tuple(tag for tag in TAGS if tag in tags), tuple(notes))


def _read_row(row: Sequence[str]) -> Rating:
    """Read the cells of a row; a ValueError says what is wrong."""
    if len(row) != len(COLUMNS):
        raise ValueError(f"{len(row)} cells instead of {len(COLUMNS)}")
    cells = {name: "" if cell == MISSING else cell for name, cell in zip(COLUMNS, row, strict=True)}
    if not FIGURE.fullmatch(cells["figure"]):
        raise ValueError(f"{cells['figure']!r} is no name of a figure")
    if cells["rating"] and cells["rating"] not in RATINGS:
        raise ValueError(f"rating {cells['rating']!r} is none of {', '.join(RATINGS)}")
    tags = tuple(cells["tags"].split(",")) if cells["tags"] else ()
    if wrong := [tag for tag in tags if tag not in TAGS]:
        raise ValueError(f"tag {wrong[0]!r} is none of {', '.join(TAGS)}")
    if cells["figure_hash"] and not HASH.fullmatch(cells["figure_hash"]):
        raise ValueError(f"figure_hash {cells['figure_hash']!r} has not {HASH_LENGTH} hexadecimal digits")
    if not TIME.fullmatch(cells["rated_at"]):
        raise ValueError(f"rated_at {cells['rated_at']!r} is not a time such as 2026-01-31T12:00:00Z")
    datetime.fromisoformat(cells["rated_at"])  # a ValueError for the 31st of February
    note = unescape_note(cells["note"])
    return Rating(cells["figure"], cells["rating"], tags, note, cells["figure_hash"], cells["rated_at"])


def _damaged(path: Path, problem: str) -> BadDataError:
    return BadDataError(
        f"{path}: damaged table of ratings: {problem}.", "Correct it or restore it from a backup; it was not changed."
    )


def _now(current: Rating | None) -> str:
    """Return the time, later than that of the rating which is replaced."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return now if current is None or current.rated_at != now else _now(current)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process and thread at a time change a file.

    Raises
    ------
    TemporaryError
        Another process holds the lock.
    CannotCreateError, InputOutputError
        The lock file cannot be created, or the file system has no locks.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        file = lock.open("w")
    except OSError as error:
        raise writing_error(error, path) from error
    with file:
        try:
            is_ours = wait_for_lock(file, WAIT_SECONDS)
        except OSError as error:
            raise InputOutputError(
                f"{lock}: this file system has no locks ({error.strerror}).",
                "Rate without a server: neurostorm-review OUT --static.",
            ) from error
        if not is_ours:
            raise TemporaryError(f"{path}: another process has been writing it for {WAIT_SECONDS:.0f} s.", "Try again.")
        yield
