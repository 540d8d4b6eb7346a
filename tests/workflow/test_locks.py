"""Participant locks: one process at a time, and locks of dead owners are replaced."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from bids_app.bids.processes import process_scope, start_time
from bids_app.bids.writer import remove_leftovers
from bids_app.errors import CannotCreateError, InputOutputError, TemporaryError
from bids_app.workflow import locks
from bids_app.workflow.locks import STALE_SECONDS, Locks, is_in_use, lock_files

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sub-01" / "log" / "running.json"


def write_lock(path: Path, age: float = 0.0, **changes) -> None:
    """Write the lock of another process; with the identity of this one by default, so that its owner is alive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pid = os.getpid()
    content = {"mark": "x", "pid": pid, "started": start_time(pid), "place": process_scope(), "host": "node7",
               "since": "today"}  # fmt: skip
    path.write_text(json.dumps(content | changes))
    os.utime(path, (time.time() - age,) * 2)


def test_a_lock_file_exists_while_it_is_held(path: Path) -> None:
    with Locks() as held:
        held.acquire(path)
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert list(path.parent.iterdir()) == [path]
    assert list(path.parent.iterdir()) == []


def test_a_second_process_is_refused_with_the_owner(path: Path) -> None:
    write_lock(path)
    with (
        Locks() as held,
        pytest.raises(TemporaryError, match=rf"running.json.*process {os.getpid()} on node7") as caught,
    ):
        held.acquire(path)
    assert caught.value.exit_code == 75
    assert "delete this file" in caught.value.hint
    assert path.exists()


def test_different_participants_are_locked_independently(tmp_path: Path) -> None:
    with Locks() as one, Locks() as other:
        one.acquire(*lock_files("01", tmp_path, tmp_path / "work"))
        other.acquire(*lock_files("02", tmp_path, tmp_path / "work"))
        assert is_in_use(tmp_path / "work")
    assert not is_in_use(tmp_path / "work")


def test_several_locks_are_acquired_all_or_none(tmp_path: Path) -> None:
    first, second = lock_files("01", tmp_path, tmp_path / "work")
    write_lock(second)
    with Locks() as held, pytest.raises(TemporaryError):
        held.acquire(first, second)
    assert not first.exists()
    assert second.exists()


def hold_and_wait(path: Path, ready) -> None:
    with Locks() as held:
        held.acquire(path)
        ready.set()
        time.sleep(60)


def test_the_lock_of_a_killed_process_is_replaced_at_once(path: Path) -> None:
    ready = FORK.Event()
    owner = FORK.Process(target=hold_and_wait, args=(path, ready))
    owner.start()
    assert ready.wait(20)
    with Locks() as held, pytest.raises(TemporaryError):
        held.acquire(path)
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    with Locks() as held:
        held.acquire(path)
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_reused_process_number_is_not_the_owner(path: Path) -> None:
    write_lock(path, started="1")
    with Locks() as held:
        held.acquire(path)


ELSEWHERE = {"place": "another machine", "pid": 999_999_999}


@pytest.mark.parametrize("clock_s", [0, 2 * STALE_SECONDS, -2 * STALE_SECONDS])
def test_an_old_lock_of_another_machine_is_stale(path: Path, monkeypatch, clock_s: float) -> None:
    """However far the clock of this machine is from that of the file system."""
    real = time.time
    monkeypatch.setattr(locks.time, "time", lambda: real() + clock_s)
    write_lock(path, age=STALE_SECONDS / 2 + clock_s, **ELSEWHERE)
    with Locks() as held, pytest.raises(TemporaryError):
        held.acquire(path)
    write_lock(path, age=STALE_SECONDS + 60 + clock_s, **ELSEWHERE)
    with Locks() as held:
        held.acquire(path)


def test_a_lock_is_touched_often_compared_with_the_age_at_which_it_is_stale() -> None:
    assert locks.BEAT_SECONDS * 10 <= STALE_SECONDS <= 15 * 60


def test_the_lock_of_a_requeued_job_is_replaced_at_once(path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    with Locks() as first:
        first.acquire(path)
        holder = json.loads(path.read_text()) | ELSEWHERE
    write_lock(path, **holder)  # of a process that was killed on another node
    with Locks() as held, pytest.raises(TemporaryError):
        held.acquire(path)  # another process of the same job
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with Locks() as held:
        held.acquire(path)
        assert json.loads(path.read_text())["restarts"] == 1


@pytest.mark.parametrize(
    "other", [{"job": ":78"}, {"job": "far:77"}, {"restarts": 2}, {"restarts": "x"}, {"job": None}]
)
def test_the_lock_of_another_job_is_not_replaced_at_once(path: Path, monkeypatch, other: dict) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    write_lock(path, **{"job": ":77", "restarts": 1} | ELSEWHERE | other)
    with Locks() as held, pytest.raises(TemporaryError):
        held.acquire(path)


def test_a_held_lock_is_touched(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.02)
    with Locks() as held:
        held.acquire(path)
        os.utime(path, (0, 0))
        end = time.monotonic() + 10
        while path.stat().st_mtime < 1000:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_replaced_lock_is_not_removed_by_its_old_owner(path: Path) -> None:
    with Locks() as held:
        held.acquire(path)
        write_lock(path, mark="of another")
    assert path.exists()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_hard_links_a_lock_is_a_new_file(path: Path, monkeypatch, number: int) -> None:
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with Locks() as held:
        held.acquire(path)
        with Locks() as other, pytest.raises(TemporaryError):
            other.acquire(path)
    assert not path.exists()


def test_a_link_that_nfs_reports_as_failed_counts_as_created(path: Path, monkeypatch) -> None:
    link = os.link

    def link_and_lose_the_answer(source, target):
        link(source, target)
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "link", link_and_lose_the_answer)
    with Locks() as held:
        held.acquire(path)
        assert path.exists()


def test_a_broken_lock_file_is_not_stale(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with Locks() as held, pytest.raises(TemporaryError):
        held.acquire(path)


def test_a_folder_without_write_permission_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Locks() as held, pytest.raises(CannotCreateError, match="lock file cannot be created"):
        held.acquire(tmp_path / "file" / "running.json")


ROUNDS = 40


def compete(path: Path, barrier, wins) -> None:
    """Compete with other processes for stale locks; fails if two hold one at the same time."""
    for _ in range(ROUNDS):
        if barrier.wait() == 0:
            write_lock(path, pid=999_999_999)
        barrier.wait()
        try:
            with Locks() as held:
                held.acquire(path)
                mark = path.with_name("inside")
                mark.touch(exist_ok=False)  # raises if another is inside
                time.sleep(0.002)
                mark.unlink()
                with wins:
                    wins.value += 1
        except TemporaryError:
            pass
        finally:
            barrier.wait()


def test_of_many_competitors_for_a_stale_lock_one_holds_it_at_a_time(path: Path) -> None:
    barrier, wins = FORK.Barrier(6, timeout=60), FORK.Value("i", 0)
    racers = [FORK.Process(target=compete, args=(path, barrier, wins)) for _ in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * 6
    assert wins.value >= ROUNDS
    assert not path.exists()
    remove_leftovers(path.parent)
    assert list(path.parent.iterdir()) == []


def test_a_lock_that_replaced_a_stale_one_is_not_replaced_by_a_slower_process(path: Path, monkeypatch) -> None:
    """Both have read the lock of the dead owner; the slower one acts after the faster one has acquired the lock."""
    write_lock(path, pid=999_999_999)
    real = locks._is_dead
    with Locks() as faster, Locks() as slower:

        def overtaken(*arguments, **keywords) -> bool:
            monkeypatch.setattr(locks, "_is_dead", real)
            dead = real(*arguments, **keywords)
            faster.acquire(path)
            return dead

        monkeypatch.setattr(locks, "_is_dead", overtaken)
        with pytest.raises(TemporaryError):
            slower.acquire(path)
        assert path.exists()
    assert list(path.parent.iterdir()) == []


def test_a_lock_that_a_killed_process_was_about_to_replace_is_replaced(path: Path, monkeypatch) -> None:
    write_lock(path, pid=999_999_999)
    replacing = FORK.Process(target=die_while_replacing, args=(path,))
    replacing.start()
    replacing.join()
    assert replacing.exitcode == -signal.SIGKILL
    remove_leftovers(path.parent)
    assert len(list(path.parent.iterdir())) == 2  # the dead owner's, and that of the process that was replacing it
    with Locks() as held:
        held.acquire(path)
    assert list(path.parent.iterdir()) == []


def die_while_replacing(path: Path) -> None:
    locks.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    with Locks() as held:
        held.acquire(path)


def test_a_full_disk_is_no_question_of_permissions(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with Locks() as locks, pytest.raises(InputOutputError, match="no space left"):
        locks.acquire(tmp_path / "running.json")


@pytest.mark.parametrize(("changes", "alone"), [({}, False), ({"started": "before"}, True)])
def test_locks_of_others_count_while_their_owners_run(tmp_path: Path, changes, alone: bool) -> None:
    with Locks() as held:
        held.acquire(*lock_files("01", tmp_path / "out", tmp_path))
        assert held.are_alone(tmp_path)
        write_lock(tmp_path / "running-sub-02.json", **changes)
        assert held.are_alone(tmp_path) == alone


@pytest.mark.parametrize(("age", "alone"), [(STALE_SECONDS - 60, False), (STALE_SECONDS + 60, True)])
def test_locks_of_other_machines_count_while_they_are_touched(tmp_path: Path, age: float, alone: bool) -> None:
    with Locks() as held:
        held.acquire(*lock_files("01", tmp_path / "out", tmp_path))
        write_lock(tmp_path / "running-sub-02.json", age, place="elsewhere")
        assert held.are_alone(tmp_path) == alone
