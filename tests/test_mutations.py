"""The mutations of scripts/mutations.py still fit the code and the tests, and survivors are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_script
from tests.test_reliability import TESTS, marks_of

mutations = load_script("mutations")
MUTATIONS = mutations.MUTATIONS


def test_the_promises_are_at_least_forty_and_each_is_named_once() -> None:
    promises = [mutation.promise for mutation in MUTATIONS]
    assert len(promises) >= 40
    assert len(set(promises)) == len(promises)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.promise)
def test_a_mutation_changes_one_place_and_the_code_stays_valid(mutation) -> None:
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.code) == 1
    changed = text.replace(mutation.code, mutation.replacement)
    assert changed != text
    if mutation.file.endswith(".py"):
        compile(changed, mutation.file, "exec")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.promise)
def test_the_tests_of_a_mutation_exist_and_are_fast(mutation) -> None:
    assert mutation.tests
    for file, _, name in (test.partition("::") for test in mutation.tests):
        marks = marks_of(TESTS / file)
        assert name in marks, f"{file}::{name}"
        assert not any(mark in marks[name] for mark in ("mark.slow", "mark.container", "mark.gpu"))


FAILED = "E   AssertionError\n1 failed, 2 passed in 0.1s"


@pytest.mark.parametrize(
    ("code", "output", "result"),
    [
        (0, "3 passed in 0.1s", mutations.SURVIVED),
        (1, FAILED, mutations.CAUGHT),
        (1, f"E   NameError: name 'x' is not defined\n{FAILED}", mutations.BROKEN),
        (1, "1 error in 0.1s", mutations.BROKEN),
        (2, "Interrupted: 1 error during collection", mutations.BROKEN),
        (5, "no tests ran", mutations.BROKEN),
    ],
)
def test_only_a_failed_test_counts_as_caught(code: int, output: str, result: str) -> None:
    assert mutations.judge(code, output) == result


GUARDED = "def double(x):\n    if x < 0:\n        raise ValueError\n    return 2 * x\n"
TESTED = """
import pytest
from bids_app.guarded import double

def test_negative_numbers_are_refused():
    with pytest.raises(ValueError):
        double(-1)

def test_numbers_are_doubled():
    assert double(2) == 4

def test_that_always_fails():
    assert double(2) == 5
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_survivors_and_tests_that_are_not_green_are_reported(tmp_path: Path, monkeypatch, capsys) -> None:
    def make_tree(root: Path) -> None:
        for folder in ("bids_app", "tests"):
            (root / folder).mkdir(parents=True)
        (root / "bids_app" / "__init__.py").touch()
        (root / "bids_app" / "guarded.py").write_text(GUARDED)
        (root / "tests" / "test_guarded.py").write_text(TESTED)

    def mutation(promise: str, replacement: str, *tests: str):
        named = tuple(f"test_guarded.py::{test}" for test in tests)
        return mutations.Mutation(promise, "bids_app/guarded.py", "if x < 0:", replacement, named)

    tests = ("test_negative_numbers_are_refused", "test_numbers_are_doubled", "test_that_always_fails")
    found = (mutation("removed", "if False:", *tests), mutation("broken", "if y < 0:", tests[1]))
    monkeypatch.setattr(mutations, "copy_tree", make_tree)
    monkeypatch.setattr(mutations, "MUTATIONS", found)
    assert mutations.main([]) == 1
    lines = [line.rpartition(" | ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [mutations.CAUGHT, mutations.SURVIVED, mutations.NOT_GREEN, mutations.BROKEN]
    monkeypatch.setattr(mutations, "MUTATIONS", (mutation("removed", "if False:", tests[0]),))
    assert mutations.main(["-k", "REMOVED"]) == 0


def test_a_text_that_no_mutation_has_is_refused(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        mutations.main(["-k", "nothing of this name"])
    assert caught.value.code == 2
    assert "'nothing of this name'" in capsys.readouterr().err
