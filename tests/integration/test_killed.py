"""A killed run, or one on a full disk, leaves complete files only; repeating it gives the same result."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from bids_app.cli.phantom import main as phantom

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
KILLS = 30
SIZES = 20
"""Sizes of a disk that is too small."""
LATEST = 0.7
"""Latest time of a kill, as a fraction of the duration of an undisturbed run."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "raw"
    assert phantom([str(folder), "--participants", "1", "--seed", "5", "--size", "small", "--states", "rest"]) == 0
    return folder


NO_MINIMUM_SPACE = """
import bids_app.workflow.participant as participant
from bids_app.cli.neurostorm import run
participant.check_disk = lambda *_: ""
run()
"""


def command(raw: Path, folder: Path, *options: str, n_procs: int = 2) -> list[str]:
    where = [str(raw), str(folder / "out"), "participant", "-w", str(folder / "work")]
    return [
        sys.executable,
        "-m",
        "bids_app.cli.neurostorm",
        *where,
        "--model",
        "demo",
        "--nprocs",
        str(n_procs),
        "--mem",
        "4GB",
        *options,
    ]


def start(call: list[str]) -> subprocess.Popen[str]:
    """Start a command in its own session, so that it can be killed with all its workers."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        call, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(call: list[str]) -> None:
    process = start(call)
    _, said = process.communicate()
    assert process.returncode == 0, said


def contents(out: Path) -> dict[str, str]:
    """Hash each derivative; logs and pages contain times and are left out."""
    files = (p for p in out.rglob("*") if p.is_file() and "log" not in p.relative_to(out).parts and p.suffix != ".html")
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@dataclass(frozen=True)
class Undisturbed:
    """Undisturbed run: its outputs and duration (s)."""

    contents: dict[str, str]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(raw: Path, tmp_path_factory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    finish(command(raw, folder))
    return Undisturbed(contents(folder / "out"), time.monotonic() - started)


def fault_of(path: Path) -> str:
    """Describe the fault of a file; empty if it is complete, or was replaced or removed meanwhile."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ""
    try:
        if path.suffix == ".json":
            json.loads(data)
        elif path.suffix == ".tsv":
            rows = data.decode().split("\n")
            assert rows[-1] == ""
            assert len(Counter(row.count("\t") for row in rows[:-1])) == 1
        elif path.suffix == ".gz":
            gzip.decompress(data)
        elif path.suffix in (".html", ".svg"):
            assert data.rstrip().endswith((b"</html>", b"</svg>"))
        elif path.suffix == ".h5":
            assert data[:4] == b"\x89HDF"
            assert int.from_bytes(data[40:48], "little") == len(data)  # where the file ends, by its superblock
        else:
            assert data
    except (AssertionError, ValueError, OSError, EOFError) as error:
        return f"{path}: {error!r}"
    return ""


class Reader(threading.Thread):
    """Thread that reads all files of an output folder repeatedly, like other jobs of a cluster."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.out, self.done = out, threading.Event()
        self.faults: list[str] = []
        self.seen: dict[Path, tuple[int, int]] = {}
        self.reads = 0

    def run(self) -> None:
        while not self.done.wait(0.02):
            self.look()

    def look(self) -> None:
        for folder, folders, names in os.walk(self.out):
            folders.sort()
            for name in names:
                path = Path(folder, name)
                if name.startswith(".neurostorm-"):
                    continue  # being written
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue
                if self.seen.get(path) != (stat.st_mtime_ns, stat.st_ino):
                    self.seen[path] = (stat.st_mtime_ns, stat.st_ino)
                    self.reads += 1
                    self.faults += filter(None, [fault_of(path)])


def test_the_reader_detects_a_partial_file(tmp_path: Path) -> None:
    whole = tmp_path / "x.nii.gz"
    whole.write_bytes(gzip.compress(bytes(1000)))
    assert fault_of(whole) == ""
    whole.write_bytes(gzip.compress(bytes(1000))[:-3])
    assert fault_of(whole)


def test_thirty_kills_change_no_result_and_leave_no_partial_file(raw: Path, undisturbed, tmp_path: Path) -> None:
    draw = random.Random(11)
    rounds, killed = 0, 0
    while killed < KILLS:
        folder = tmp_path / f"round{rounds}"
        reader = Reader(folder / "out")
        reader.start()
        for _ in range(10):
            process = start(command(raw, folder))
            try:
                process.wait(draw.uniform(0, LATEST) * undisturbed.seconds)
                break  # all was done before the next kill
            except subprocess.TimeoutExpired:
                (os.killpg if draw.random() < 0.5 else os.kill)(process.pid, signal.SIGKILL)
                killed += 1
            process.communicate()
        finish(command(raw, folder))
        reader.done.set()
        reader.join()
        reader.look()
        assert reader.faults == []
        assert reader.reads > len(undisturbed.contents)
        assert contents(folder / "out") == undisturbed.contents
        assert not list((folder / "out").rglob(".neurostorm-*"))
        rounds += 1
    assert rounds >= 3


@pytest.fixture(scope="module")
def without_t1w(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rerun") / "raw"
    arguments = ["--participants", "1", "--seed", "6", "--size", "small", "--no-t1w", "--states", "rest"]
    assert phantom([str(folder), *arguments, "--volumes", "24"]) == 0
    return folder


def kill_workers(process: subprocess.Popen[str]) -> bool:
    """Kill the worker processes of a run three times, so that a retry is killed, too; False if there were none."""
    found = 0
    for _ in range(3):
        with suppress(psutil.NoSuchProcess):
            (run,) = psutil.Process(process.pid).children()
            for worker in run.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if worker.parent() != run:  # a child of the fork server
                        worker.kill()
                        found += 1
        time.sleep(0.5)
    return found > 0


def outcome_of(out: Path, before: set[Path]) -> dict | None:
    """Return the summary of the newest invocation; None if it wrote none."""
    (found,) = set(out.glob("sub-*/log/*/summary.json")) - before or {None}
    return json.loads(found.read_text()) if found else None


def test_thirty_kills_of_a_run_with_other_options_never_pass_for_success(without_t1w: Path, tmp_path: Path) -> None:
    """Each repeats, with other options, a complete run in the same scratch and output folders."""
    options = [("--level", "minimal", "--dummy-scans", number) for number in "012"]
    fresh = []
    for number, changed in enumerate(options):
        started = time.monotonic()
        finish(command(without_t1w, tmp_path / f"fresh{number}", *changed))
        seconds = time.monotonic() - started
        fresh.append(contents(tmp_path / f"fresh{number}" / "out"))
    assert fresh[0] != fresh[1] != fresh[2]
    draw = random.Random(12)
    folder, out = tmp_path / "shared", tmp_path / "shared" / "out"
    finish(command(without_t1w, folder, *options[0]))
    killed, rounds, exit_codes = Counter[str](), 0, Counter[int]()
    while killed.total() < KILLS:
        rounds += 1
        changed, expected = options[rounds % 3], fresh[rounds % 3]
        for _ in range(6):
            logs = set(out.glob("sub-*/log/*/summary.json"))
            process = start(command(without_t1w, folder, *changed))
            with suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0.2, LATEST) * seconds)
                break  # all was done before the next kill
            whom = draw.choice(["workers", "workers", "the run", "the supervisor", "all"])
            if whom == "workers" and not kill_workers(process):
                whom = "all"
            if whom == "the run":
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(process.pid).children()[0].kill()
            if whom in ("the supervisor", "all"):
                (os.kill if whom == "the supervisor" else os.killpg)(process.pid, signal.SIGKILL)
            _, said = process.communicate()
            killed[whom] += 1
            exit_codes[process.returncode] += 1
            print(f"kill {killed.total()} in round {rounds}: {whom}, exit code {process.returncode}", flush=True)
            summary = outcome_of(out, logs)
            if process.returncode == 0:
                assert summary is not None
                assert summary["status"] == "ok", said
                assert contents(out) == expected
            for run in summary["runs"] if summary else ():
                assert run["outputs"] or run["status"] != "ok"
                made = contents(out)
                wrong = [name for name in run["outputs"] if name in expected and made[name] != expected[name]]
                assert wrong == []
                assert run["status"] != "ok" or made == expected
        finish(command(without_t1w, folder, *changed))
        assert contents(out) == expected
        assert not list(out.rglob(".neurostorm-*"))
        assert not list(folder.rglob("running*.json"))
    print(f"{rounds} rounds; kills: {dict(killed)}; exit codes: {dict(exit_codes)}")
    assert len(killed) == 4
    assert any(code > 0 for code in exit_codes)


@pytest.fixture
def small_disk(tmp_path: Path):
    """Run a command with a small file system mounted on a folder; skips if mounting is not allowed."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")

    def run(place: Path, megabytes: float, call: list[str], after: str = "true") -> subprocess.CompletedProcess[str]:
        place.mkdir(parents=True, exist_ok=True)
        script = f'mount -t tmpfs -o size={int(1024 * megabytes)}k none "$0" && "$@"; code=$?; {after}; exit $code'
        return subprocess.run(
            ["unshare", "-rm", "sh", "-c", script, str(place), *call], capture_output=True, text=True, check=False
        )

    return run


def test_a_full_output_disk_is_reported_and_leaves_no_partial_file(
    raw: Path, undisturbed, small_disk, tmp_path: Path
) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    code = NO_MINIMUM_SPACE
    call = command(raw, tmp_path)
    done = small_disk(out, 3, [call[0], "-c", code, *call[3:]], after=f'cp -r "$0" {kept}')
    assert done.returncode == 74, done.stderr
    assert "no space left" in done.stderr.lower()
    assert "Traceback" not in done.stderr
    files = [path for path in kept.rglob("*") if path.is_file() and not path.name.startswith(".neurostorm-")]
    assert files
    assert [fault for path in files if (fault := fault_of(path))] == []
    finish(command(raw, tmp_path))
    assert contents(out) == undisturbed.contents


def test_a_full_scratch_disk_is_reported(raw: Path, small_disk, tmp_path: Path) -> None:
    code = NO_MINIMUM_SPACE
    call = command(raw, tmp_path)
    done = small_disk(tmp_path / "work", 12, [call[0], "-c", code, *call[3:]])
    assert done.returncode == 74, done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_folder_that_becomes_read_only_is_reported(raw: Path, small_disk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = command(raw, tmp_path)
    turn = f'( sleep 12; mount -o remount,ro "{out}" ) & exec "$@"'
    done = small_disk(out, 3000, ["sh", "-c", turn, "sh", *call])
    assert done.returncode in (73, 74), (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert str(out) in done.stderr


def size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def assert_reported(done: subprocess.CompletedProcess[str], disk: Path) -> None:
    assert done.returncode == 74, (done.returncode, done.stderr)
    assert "no space left" in done.stderr.lower()
    assert str(disk) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("n_procs", [1, 2])
def test_a_scratch_disk_of_any_size_is_reported_as_full(raw: Path, small_disk, tmp_path: Path, n_procs: int) -> None:
    finish(command(raw, tmp_path, n_procs=n_procs))
    needed = size_mb(tmp_path / "work")
    shutil.rmtree(tmp_path / "work")
    call = command(raw, tmp_path, n_procs=n_procs)
    for part in range(SIZES):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        size = needed * (part + 0.5) / SIZES
        disk = tmp_path / "work"
        assert_reported(small_disk(disk, size, [call[0], "-c", NO_MINIMUM_SPACE, *call[3:]]), disk)


def test_an_output_disk_of_any_size_is_reported_as_full(raw: Path, small_disk, tmp_path: Path) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    finish(command(raw, tmp_path))
    needed = size_mb(out)
    shutil.rmtree(out)
    call = command(raw, tmp_path)
    for part in range(SIZES):
        size = needed * (part + 0.5) / SIZES
        done = small_disk(out, size, [call[0], "-c", NO_MINIMUM_SPACE, *call[3:]], after=f'cp -r "$0" {kept}')
        assert_reported(done, out)
        files = [path for path in kept.rglob("*") if path.is_file() and not path.name.startswith(".neurostorm-")]
        assert [fault for path in files if (fault := fault_of(path))] == []
        shutil.rmtree(kept)
