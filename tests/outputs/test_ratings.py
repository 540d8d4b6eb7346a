"""Tables of ratings: what is stored and read again, several writers, and ratings of runs."""

import csv
import json
import multiprocessing
import os
import subprocess
import sys
import time

import pandas as pd
import pytest

from bids_app.errors import BadDataError, CannotCreateError, NoInputError, TemporaryError, UsageError
from bids_app.outputs import ratings as module
from bids_app.outputs.ratings import (
    COLUMNS,
    DESCRIBED,
    RatedMeanwhileError,
    Rating,
    check_rater,
    clean_note,
    escape_note,
    failed_runs,
    hash_figure,
    rate_runs,
    ratings_path,
    read_all_ratings,
    read_ratings,
    store_rating,
    unescape_note,
    without_outdated,
)
from tests.helpers.machine import run_on_small_disk, run_without_privileges

FIGURE = "sub-01_task-rest_desc-coreg_bold"
HOSTILE = [
    "tab\there",
    "two\nlines\r\nand\ra third",
    "\"quoted\" and 'single'",
    '"',
    "<script>alert(1)</script> & <b>bold</b>",
    "back\\slash \\n \\t \\u0041",
    "n/a",
    "ñandú 脳 🧠 e\u0301 \u202e right to left",
    "line\u2028separator\x85\x00\x1b[31m",
    "=1+1",
    ", ; '",
]


def ratings(**by_figure):
    """Make the ratings of one rater: ``rest_coreg="fail"`` is a figure of the run of that task."""
    found = {}
    for name, rating in by_figure.items():
        task, _, desc = name.partition("_")
        figure = f"sub-01_task-{task}_desc-{desc}_bold" if task != "anat" else f"sub-01_desc-{desc}_T1w"
        found[figure] = Rating(figure, rating, rated_at="2026-01-01T00:00:00Z")
    return found


@pytest.mark.parametrize("note", HOSTILE)
def test_notes_survive_a_table_with_one_line_per_row(tmp_path, note):
    store_rating(tmp_path, "AB", Rating(FIGURE, "fail", ("motion", "other"), note))
    path = ratings_path(tmp_path, "AB")
    assert read_ratings(path)[FIGURE].note == clean_note(note)
    assert len(path.read_text().splitlines()) == 2
    row = pd.read_csv(path, sep="\t", keep_default_na=False).iloc[0]
    assert unescape_note(row["note"]) == clean_note(note)
    assert row["tags"] == "motion,other"


def test_halves_of_surrogate_pairs_are_replaced_and_long_notes_are_cut():
    assert clean_note("a\ud800b") == "a\ufffdb"
    assert len(clean_note("x" * 5000)) == module.MAX_NOTE
    assert escape_note("n/a") != "n/a"


def test_the_table_has_a_data_dictionary_of_all_columns_beside_it(tmp_path):
    store_rating(tmp_path, "AB", Rating(FIGURE, "pass"))
    path = ratings_path(tmp_path, "AB")
    described = json.loads(path.with_suffix(".json").read_text())
    with path.open(newline="") as file:
        header = next(csv.reader(file, delimiter="\t"))
    assert tuple(header) == COLUMNS
    assert set(header) <= set(described)
    assert set(DESCRIBED["rating"]["Levels"]) == set(module.RATINGS)
    assert set(DESCRIBED["tags"]["Levels"]) == set(module.TAGS)
    assert "ratings" in (tmp_path / ".bidsignore").read_text().splitlines()


def test_a_rating_replaces_that_of_the_same_figure_and_an_empty_one_removes_it(tmp_path):
    first = store_rating(tmp_path, "AB", Rating(FIGURE, "pass"))
    other = store_rating(tmp_path, "AB", Rating("sub-02_desc-norm_T1w", "fail"))
    second = store_rating(tmp_path, "AB", Rating(FIGURE, "doubtful"), first.rated_at)
    assert read_ratings(ratings_path(tmp_path, "AB")) == {FIGURE: second, other.figure: other}
    assert store_rating(tmp_path, "AB", Rating(FIGURE), second.rated_at) is None
    assert list(read_ratings(ratings_path(tmp_path, "AB"))) == [other.figure]


def test_a_rating_that_another_process_made_meanwhile_is_not_replaced_unseen(tmp_path):
    first = store_rating(tmp_path, "AB", Rating(FIGURE, "pass"), "")
    with pytest.raises(RatedMeanwhileError) as caught:
        store_rating(tmp_path, "AB", Rating(FIGURE, "fail"), "")
    assert caught.value.current == first
    assert read_ratings(ratings_path(tmp_path, "AB"))[FIGURE].rating == "pass"


def rate_many(out_dir, rater, participants):
    for label in participants:
        store_rating(out_dir, rater, Rating(f"sub-{label}_desc-norm_T1w", "fail", note=f"{rater} {label}"))


def test_processes_that_rate_at_once_lose_nothing(tmp_path):
    """Two processes of one rater, and one of another."""
    context = multiprocessing.get_context("spawn")
    parts = [("AB", range(30)), ("AB", range(30, 60)), ("CD", range(30))]
    processes = [context.Process(target=rate_many, args=(tmp_path, *part)) for part in parts]
    for process in processes:
        process.start()
    seen = set()
    while any(process.is_alive() for process in processes):  # a reader finds whole tables at any time
        seen.update(len(each) for each in read_all_ratings(tmp_path).values())
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found = read_all_ratings(tmp_path)
    assert {rater: len(rows) for rater, rows in found.items()} == {"AB": 60, "CD": 30}
    assert found["AB"]["sub-45_desc-norm_T1w"].note == "AB 45"
    assert len(seen) > 1


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_table_and_no_lock(tmp_path):
    store_rating(tmp_path, "AB", Rating(FIGURE, "pass"))
    before = ratings_path(tmp_path, "AB").read_bytes()
    code = (
        "import os, sys; from pathlib import Path; from bids_app.outputs import ratings as m\n"
        "m.format_ratings = lambda rows: os._exit(9)\n"
        f"m.store_rating(Path({str(tmp_path)!r}), 'AB', m.Rating('sub-02_desc-norm_T1w', 'fail'))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert ratings_path(tmp_path, "AB").read_bytes() == before
    store_rating(tmp_path, "AB", Rating(FIGURE, "fail"))
    assert read_ratings(ratings_path(tmp_path, "AB"))[FIGURE].rating == "fail"


def test_a_lock_that_is_not_released_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.05)
    path = ratings_path(tmp_path, "AB")
    path.parent.mkdir()
    with module._locked(path), pytest.raises(TemporaryError, match="another process"), module._locked(path):
        pass


GOOD_ROW = f"sub-01\tsub-01_task-rest\t{FIGURE}\tpass\tn/a\tn/a\t0123456789abcdef\t2026-01-01T00:00:00.5Z"
HEADER = "\t".join(COLUMNS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "columns"),
        (f"{HEADER}\textra\n{GOOD_ROW}\tx\n", "columns"),
        (f"{HEADER}\n{GOOD_ROW[:-1]}\n", "rated_at"),
        (f"{HEADER}\n{GOOD_ROW[:60]}", "line 2: 4 cells"),
        (f"{HEADER}\n{GOOD_ROW.replace('pass', 'perfect')}\n", "rating 'perfect'"),
        (f"{HEADER}\n{GOOD_ROW}\n{GOOD_ROW}\n", "line 3: .* has two rows"),
        (f"{HEADER}\n{GOOD_ROW.replace('abcdef', 'x')}\n", "figure_hash"),
        (f"{HEADER}\n{GOOD_ROW.replace(FIGURE, '../x')}\n", "no name of a figure"),
        (f"{HEADER}\n{GOOD_ROW.replace('n/a', chr(34) + 'open')}\n", "line"),
        (f"{HEADER}\n{GOOD_ROW.replace('01-01T', '02-31T')}\n", "line 2"),
    ],
)
def test_a_damaged_table_is_an_error_with_the_line_and_is_not_changed(tmp_path, text, problem):
    path = ratings_path(tmp_path, "AB")
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(BadDataError, match=problem):
        read_ratings(path)
    with pytest.raises(BadDataError, match="AB_ratings"):
        store_rating(tmp_path, "AB", Rating("sub-02_desc-norm_T1w", "fail"))
    assert path.read_text() == text


def test_tables_saved_by_a_spreadsheet_are_read(tmp_path):
    path = ratings_path(tmp_path, "AB")
    path.parent.mkdir()
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEADER}\r\n{GOOD_ROW}\r\n".encode())
    assert read_ratings(path)[FIGURE].rating == "pass"
    path.write_bytes(f"{HEADER}\n{GOOD_ROW}\n".encode().replace(b"\tn/a\tn/a", b"\tn/a\t\xe9t\xe9"))
    with pytest.raises(BadDataError, match="UTF-8"):
        read_ratings(path)


def test_labels_of_raters_are_letters_and_digits():
    assert check_rater("rater-AB1") == "AB1"
    for label in ("", "A B", "../x", "é", "x" * 65, "a_b"):
        with pytest.raises(UsageError, match="--rater"):
            check_rater(label)


def test_a_full_disk_and_a_folder_without_permission_are_errors_with_their_codes(tmp_path):
    (tmp_path / "x").mkdir(mode=0o555)
    code = (
        "import sys; from pathlib import Path; from bids_app.errors import NeurostormError\n"
        "from bids_app.outputs.ratings import Rating, store_rating\n"
        "out = Path(sys.argv[1] if len(sys.argv) > 1 else %r)\n"
        "try:\n"
        "  for i in range(900): store_rating(out, 'AB', Rating(f'sub-{i}_desc-norm_T1w', 'fail', note='x' * 2000))\n"
        "except NeurostormError as error: print(type(error).__name__, error.exit_code)"
    )
    done = run_without_privileges(code % str(tmp_path / "x"))
    assert done.stdout.split() == ["CannotCreateError", "73"], done.stderr
    place = tmp_path / "small"
    place.mkdir()
    done = run_on_small_disk(code % str(place), place, 1)
    assert done.stdout.split() == ["InputOutputError", "74"], done.stderr


def test_a_writable_folder_of_ratings_in_a_read_only_output_folder_is_enough(tmp_path):
    (tmp_path / "ratings").mkdir()
    (tmp_path / "other" / "ratings").mkdir(parents=True, mode=0o555)
    (tmp_path / "other" / "ratings").chmod(0o555)
    tmp_path.chmod(0o555)
    code = (
        "from pathlib import Path; from bids_app.errors import CannotCreateError\n"
        "from bids_app.outputs.ratings import Rating, make_folder, store_rating\n"
        f"print(store_rating(Path({str(tmp_path)!r}), 'AB', Rating({FIGURE!r}, 'fail')).rating)\n"
        f"try: make_folder(Path({str(tmp_path / 'other')!r}))\n"
        "except CannotCreateError as error: print(error.message)"
    )
    done = run_without_privileges(code)
    tmp_path.chmod(0o755)
    assert done.stdout.splitlines() == [
        "fail", f"{tmp_path / 'other' / 'ratings'}: cannot be written (no write permission)."
    ], done.stderr  # fmt: skip
    assert not (tmp_path / ".bidsignore").exists()


def test_a_file_in_the_place_of_the_folder_is_reported(tmp_path):
    (tmp_path / "ratings").write_text("")
    with pytest.raises(CannotCreateError, match="ratings"):
        store_rating(tmp_path, "AB", Rating(FIGURE, "fail"))
    with pytest.raises(NoInputError, match="ratings"):
        read_all_ratings(tmp_path)


def test_a_run_has_the_worst_rating_of_its_figures_and_of_its_anatomy():
    found = rate_runs(
        ["sub-01_task-rest", "sub-01_task-go", "sub-01_task-none", "sub-02_task-rest"],
        {"AB": ratings(rest_coreg="pass", rest_mask="fail", go_coreg="pass", anat_norm="doubtful")},
    )
    assert {run: each.consensus for run, each in found.items()} == {
        "sub-01_task-rest": "fail",
        "sub-01_task-go": "doubtful",
        "sub-01_task-none": "doubtful",
    }


def test_the_anatomy_of_a_session_concerns_the_runs_of_that_session():
    names = ["sub-01_ses-a_desc-norm_T1w", "sub-01_ses-b_desc-norm_T1w"]
    rows = {name: Rating(name, rating) for name, rating in zip(names, ("fail", "pass"), strict=True)}
    runs = ["sub-01_ses-a_task-rest", "sub-01_ses-b_task-rest", "sub-01_ses-c_task-rest"]
    found = {run: each.consensus for run, each in rate_runs(runs, {"AB": rows}).items()}
    assert found == dict(zip(runs, ("fail", "pass", "fail"), strict=True))  # ses-c has no T1w image of its own


@pytest.mark.parametrize(
    ("by_rater", "consensus"),
    [
        (["pass"], "pass"),
        (["pass", "fail"], "fail"),
        (["pass", "pass", "fail"], "pass"),
        (["pass", "doubtful", "fail"], "doubtful"),
        (["pass", "pass", "fail", "fail"], "fail"),
    ],
)
def test_the_consensus_is_the_median_and_the_worse_of_two(by_rater, consensus):
    raters = {f"R{i}": ratings(rest_coreg=rating) for i, rating in enumerate(by_rater)}
    assert rate_runs(["sub-01_task-rest"], raters)["sub-01_task-rest"].consensus == consensus


def test_ratings_of_a_figure_that_has_changed_do_not_count(tmp_path):
    figure = tmp_path / "sub-01" / "figures" / f"{FIGURE}.svg"
    figure.parent.mkdir(parents=True)
    figure.write_text("<svg/>")
    store_rating(tmp_path, "AB", Rating(FIGURE, "fail", figure_hash=hash_figure(figure)))
    assert failed_runs(tmp_path, ["sub-01_task-rest"]) == {"sub-01_task-rest"}
    os.utime(figure, (time.time() + 5, time.time() + 5))  # newer, with the same content
    assert failed_runs(tmp_path, ["sub-01_task-rest"]) == {"sub-01_task-rest"}
    figure.write_text("<svg><g/></svg>")
    os.utime(figure, (time.time() + 5, time.time() + 5))
    assert failed_runs(tmp_path, ["sub-01_task-rest"]) == set()
    assert without_outdated(tmp_path, read_all_ratings(tmp_path))[1] == [FIGURE]


def test_exclusion_without_ratings_is_an_error(tmp_path):
    with pytest.raises(NoInputError, match="--exclude-failed"):
        failed_runs(tmp_path, ["sub-01_task-rest"])


def test_a_note_does_not_reverse_the_text_after_it(tmp_path):
    assert clean_note("\u202eabc\u2066 \u05d0") == "abc \u05d0"
    rating = Rating("sub-01_task-rest_desc-mask_bold", "fail", (), "\u202eabc")
    assert rate_runs(["sub-01_task-rest"], {"AB": {rating.figure: rating}})["sub-01_task-rest"].notes == ("AB: abc",)
