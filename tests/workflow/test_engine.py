"""Steps as nodes: cached, isolated from failures of others, with the reason of their own failure."""

from __future__ import annotations

import ctypes
import errno
import gzip
import logging
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pytest

from bids_app.errors import BadDataError, CannotCreateError, UsageError
from bids_app.settings import ResourceSettings
from bids_app.terminal import terminal_log
from bids_app.workflow import engine as engine_module
from bids_app.workflow.engine import Engine, read_plugin_file, remove_caches
from bids_app.workflow.graph import Graph, Step
from bids_app.workflow.progress import Groups
from tests.helpers.scripts import ENVIRONMENT

T = TypeVar("T")


def write_number(number: int, out_dir: Path) -> Path:
    path = out_dir / "number.txt"
    path.write_text(str(number))
    with (out_dir.parent / "calls.txt").open("a") as log:
        log.write("write ")
    return path


def double(source: Path, out_dir: Path) -> int:
    with (out_dir.parent / "calls.txt").open("a") as log:
        log.write("double ")
    return 2 * int(source.read_text())


def store(value: int, target: Path, out_dir: Path) -> Path:
    target.write_text(str(value))
    return target


def fail(out_dir: Path) -> None:
    raise BadDataError("scan.nii.gz: truncated.", "Copy it again.")


def warn(out_dir: Path) -> Path:
    """Write a number, and a message."""
    logging.getLogger("bids_app.workflow.test").warning("weak contrast")
    return write_number(1, out_dir)


def fail_unexpectedly(out_dir: Path) -> None:
    raise ZeroDivisionError("by zero")


def fail_for_the_disk(out_dir: Path) -> None:
    raise OSError(28, "No space left on device", "x.nii")


def fill_the_disk(out_dir: Path) -> None:
    """Fill the disk with a file and leave it there."""
    with (out_dir / "large.bin").open("wb") as file:
        while True:
            file.write(bytes(2**16))
            file.flush()


def die(out_dir: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def block(out_dir: Path) -> None:
    """Block all threads of the process, as ANTs does during a registration."""
    (out_dir.parent / "worker").write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(120)


def note_siblings(number: int, out_dir: Path) -> Path:
    """Record the folders of other steps when this one starts."""
    found = sorted(path.name for path in out_dir.parent.iterdir() if path.is_dir() and path != out_dir)
    (out_dir.parent / "siblings.txt").write_text(" ".join(found))
    return write_number(number, out_dir)


@pytest.fixture(autouse=True)
def steps_can_be_imported(monkeypatch, tmp_path):
    """Put this file on the path of worker processes, which import steps by module and name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    for function in (
        write_number,
        double,
        store,
        fail,
        fail_unexpectedly,
        fail_for_the_disk,
        fill_the_disk,
        warn,
        die,
        die_in_the_second_invocation,
        note,
        note_overlap,
        hold_memory,
        note_siblings,
        grow,
        copy_to,
    ):
        monkeypatch.setattr(function, "__module__", "test_engine")


def note_overlap(out_dir: Path) -> None:
    """Act as a GPU step: record how many GPU steps run at the same time."""
    mark = out_dir.parent / f"running-{out_dir.name}"
    mark.touch()
    time.sleep(0.5)
    with (out_dir.parent / "overlap.txt").open("a") as log:
        log.write(f"{len(list(out_dir.parent.glob('running-*')))}\n")
    mark.unlink()


def run(graph: Graph, work_dir: Path, crash_dir: Path, n_procs: int = 1, **resources) -> Engine:
    """Run a graph and return the engine."""
    engine = Engine(graph, work_dir, ResourceSettings(n_procs=n_procs, **resources), name="wf")
    engine.run(crash_dir=crash_dir)
    return engine


def hold_memory(out_dir: Path) -> None:
    """Act as a large step: hold 300 MB for a while and record the memory of all processes of the run."""
    held = np.ones(HELD_MB * 2**20, dtype=np.uint8)
    mark = out_dir.parent / f"holding-{out_dir.name}"
    mark.touch()
    end = time.monotonic() + 2
    while len(list(out_dir.parent.glob("holding-*"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    run = psutil.Process(os.getppid()).children(recursive=True)
    megabytes = sum(process.memory_full_info().uss for process in run) / 2**20
    with (out_dir.parent / "megabytes.txt").open("a") as log:
        log.write(f"{megabytes}\n")
    time.sleep(0.5)  # the other one looks too
    mark.unlink()
    assert held[-1] == 1


HELD_MB = 300


def peak_mb(folder: Path, *, low_mem: bool) -> float:
    """Peak memory of two large steps on two processors, MB."""
    graph = Graph()
    steps = [graph.step(name, hold_memory) for name in ("one", "two")]
    engine = run(graph, folder, folder.parent, 2, low_mem=low_mem)
    assert all(engine.error_of(step) is None for step in steps)
    return max(map(float, (folder / "wf" / "megabytes.txt").read_text().split()))


@pytest.mark.slow
def test_low_mem_needs_the_memory_of_the_largest_step(tmp_path: Path) -> None:
    side_by_side = peak_mb(tmp_path / "usual", low_mem=False)
    in_turn = peak_mb(tmp_path / "low", low_mem=True)
    assert side_by_side > 2 * HELD_MB
    assert in_turn < side_by_side - 0.9 * HELD_MB


def run_chain(tmp_path: Path, number: int, n_procs: int = 1, invocation: str = "") -> str:
    graph = Graph(invocation)
    source = graph.step("write", write_number, number=number)
    value = graph.step("double", double, source=source)
    target = graph.step("store", store, value=value, target=tmp_path / "out.txt", always=True)
    engine = run(graph, tmp_path / "work", tmp_path, n_procs)
    assert engine.error_of(target) is None
    return (tmp_path / "work" / "wf" / "calls.txt").read_text()


def note(number: int, out_dir: Path, after: int = 0) -> int:
    with (out_dir.parent / "order.txt").open("a") as log:
        log.write(f"{number} ")
    time.sleep(0.2)
    return number


@pytest.mark.parametrize("n_procs", [1, 2])
def test_the_first_run_is_finished_before_the_last_is_begun(tmp_path: Path, n_procs: int) -> None:
    n_runs = 12
    graph = Graph()
    for number in range(n_runs):
        first = graph.step(f"run{number}_first", note, number=number)
        graph.step(f"run{number}_second", note, number=number, after=first)
    run(graph, tmp_path / "work", tmp_path, n_procs)
    order = (tmp_path / "work" / "wf" / "order.txt").read_text().split()
    last_of_the_first = len(order) - order[::-1].index("0")
    assert last_of_the_first <= (2 if n_procs == 1 else n_runs // 2)  # one of two workers may start late
    assert sorted(order, key=int) == [str(number) for number in range(n_runs) for _ in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["Linear", "MultiProc"])
def test_runs_end_one_by_one_with_a_plugin_of_nipype(tmp_path: Path, plugin: str) -> None:
    """``note`` writes the order of the steps; the end of each run is written there, too."""
    file, notes = tmp_path / "plugin.yml", tmp_path / "work" / "wf" / "order.txt"
    file.write_text(f"plugin: {plugin}\nplugin_args: {{n_procs: 2, memory_gb: 8}}\n")
    graph = Graph()
    last = {}
    for number in range(5):
        first = graph.step(f"run{number}_first", note, number=number)
        last[f"end{number}"] = (graph.step(f"run{number}_second", note, number=number, after=first),)
    ended: list[tuple[str, int]] = []
    groups = Groups(graph, last, lambda name: ended.append((name, len(notes.read_text().split()))))
    resources = ResourceSettings(n_procs=2, plugin=file)
    Engine(graph, tmp_path / "work", resources, "wf").run(crash_dir=tmp_path, groups=groups)
    assert sorted(name for name, _ in ended) == [f"end{number}" for number in range(5)]
    assert ended[0][1] < 10 or plugin == "Linear"  # Linear goes breadth-first, on one processor


def test_an_unknown_plugin_is_named(tmp_path: Path) -> None:
    file = tmp_path / "plugin.yml"
    file.write_text("plugin: Slurmm\n")
    graph = Graph()
    graph.step("write", write_number, number=1)
    with pytest.raises(UsageError, match="Slurmm"):
        Engine(graph, tmp_path / "work", ResourceSettings(plugin=file), "wf").run(crash_dir=tmp_path)


def test_one_process_stops_after_the_first_failure_when_asked_to(tmp_path: Path) -> None:
    graph = Graph()
    graph.step("broken", fail)
    later = graph.step("later", write_number, number=1)
    engine = Engine(graph, tmp_path / "work", ResourceSettings(), "wf")
    engine.run(crash_dir=tmp_path, stop_on_first_crash=True)
    assert engine.error_of(later) is not None


@pytest.mark.parametrize("n_procs", [1, 2])
def test_results_are_passed_between_steps(tmp_path: Path, n_procs: int) -> None:
    run_chain(tmp_path, 21, n_procs)
    assert (tmp_path / "out.txt").read_text() == "42"


@pytest.mark.parametrize("n_procs", [1, 2])
def test_messages_of_steps_are_kept_for_the_log(tmp_path: Path, n_procs: int) -> None:
    graph = Graph()
    step = graph.step("warn", warn)
    last = graph.step("double", double, source=step)
    for _ in range(2):  # the second time, both are reused from the scratch folder
        engine = run(graph, tmp_path / "work", tmp_path, n_procs)
        assert [(level, text) for _, level, text in engine.messages_of(last)] == [("WARNING", "weak contrast")]


def test_gpu_steps_run_one_at_a_time(tmp_path: Path) -> None:
    graph = Graph()
    for name in ("one", "two", "three"):
        graph.step(name, note_overlap, n_procs=2, gpu=True)
    run(graph, tmp_path / "work", tmp_path, 4)
    assert (tmp_path / "work" / "wf" / "overlap.txt").read_text() == "1\n" * 3


def meet(others: tuple[str, ...], out_dir: Path, first: object = None) -> int:
    """Wait until other steps run at the same time."""
    (out_dir / "here").touch()
    end = time.monotonic() + 30
    while not all((out_dir.parent / other / "here").exists() for other in others):
        assert time.monotonic() < end, f"{others} do not run at the same time"
        time.sleep(0.01)
    return os.getpid()


@pytest.mark.timeout(120)
def test_all_gpu_steps_run_in_one_worker_while_other_workers_go_on(tmp_path: Path) -> None:
    graph = Graph()
    gpu = [graph.step("gpu_0", meet, others=("meanwhile",), gpu=True)]
    graph.step("meanwhile", meet, others=("gpu_0",))
    all_workers = ("cpu_0", "cpu_1", "cpu_2")  # busy at the same time: one of them would have run the step on the GPU
    cpu = [graph.step(name, meet, others=all_workers, first=gpu[0]) for name in all_workers]
    gpu.append(graph.step("gpu_1", meet, others=(), gpu=True, first=cpu[0]))
    engine = run(graph, tmp_path / "work", tmp_path, len(all_workers))
    (worker,) = {engine.result_of(step) for step in gpu}
    assert worker not in {engine.result_of(step) for step in cpu}


def test_cluster_jobs_have_a_name_without_a_user_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("LOGNAME", raising=False)
    plugin = tmp_path / "plugin.yml"
    plugin.write_text("plugin: Linear\n")
    graph = Graph()
    graph.step("write", write_number, number=1)
    run(graph, tmp_path / "work", tmp_path, plugin=plugin)
    assert os.environ["LOGNAME"]


def test_a_second_run_repeats_only_steps_that_always_run(tmp_path: Path) -> None:
    assert run_chain(tmp_path, 21) == "write double "
    (tmp_path / "out.txt").unlink()
    assert run_chain(tmp_path, 21) == "write double "
    assert (tmp_path / "out.txt").read_text() == "42"


def process_id(out_dir: Path, first: object = None) -> int:
    return os.getpid()


@pytest.mark.timeout(120)
def test_short_steps_run_in_this_process_and_their_failures_skip_dependent_steps_only(tmp_path: Path) -> None:
    graph = Graph()
    here = graph.step("here", process_id, short=True)
    elsewhere = graph.step("elsewhere", process_id, first=here)
    failed = graph.step("failed", fail, short=True)
    skipped = graph.step("skipped", process_id, first=failed)
    ended: list[str] = []
    groups = Groups(graph, {"well": (here, elsewhere), "badly": (skipped,)}, ended.append)
    engine = Engine(graph, tmp_path / "work", ResourceSettings(n_procs=2))
    engine.run(crash_dir=tmp_path, groups=groups)
    assert engine.result_of(here) == os.getpid() != engine.result_of(elsewhere)
    assert engine.error_of(skipped).message == "scan.nii.gz: truncated."
    assert sorted(ended) == ["badly", "well"]


def test_steps_that_are_reused_are_not_looked_at_by_nipype(tmp_path: Path, monkeypatch) -> None:
    run_chain(tmp_path, 21)
    seen = []
    monkeypatch.setattr(engine_module.Engine, "_workflow", noted(seen, engine_module.Engine._workflow))
    run_chain(tmp_path, 21)
    assert [list(steps) for steps in seen] == [["store"]]


def noted(seen: list[object], method: Callable[..., T]) -> Callable[..., T]:
    def call(self: object, argument: object) -> T:
        seen.append(argument)
        return method(self, argument)

    return call


def test_a_changed_input_repeats_dependent_steps(tmp_path: Path) -> None:
    run_chain(tmp_path, 21)
    assert run_chain(tmp_path, 4) == "write double write double "
    assert (tmp_path / "out.txt").read_text() == "8"


def chain_of(number: int) -> tuple[Graph, list[Step]]:
    """Three steps: a number, twice the number, and one that does not depend on them."""
    graph = Graph()
    source = graph.step("source", note_siblings, number=number)
    return graph, [source, graph.step("double", double, source=source), graph.step("alone", write_number, number=1)]


@pytest.mark.parametrize("reason", ["another argument", "a missing result", "a result that nipype does not know"])
def test_what_depends_on_a_repeated_step_is_deleted_before_it_starts(tmp_path: Path, reason: str) -> None:
    graph, _ = chain_of(1)
    run(graph, tmp_path / "work", tmp_path)
    folder = tmp_path / "work" / "wf"
    if reason == "a missing result":
        (folder / "source" / "result_source.pklz").unlink()
    if reason == "a result that nipype does not know":
        next((folder / "source").glob("_0x*.json")).unlink()
    graph, steps = chain_of(2 if reason == "another argument" else 1)
    engine = run(graph, tmp_path / "work", tmp_path)
    assert (folder / "siblings.txt").read_text() == "alone"
    assert [engine.error_of(step) for step in steps] == [None] * 3
    assert engine.result_of(steps[1]) == (4 if reason == "another argument" else 2)
    assert (folder / "calls.txt").read_text() == "write double write write double "


def test_a_folder_that_is_deleted_in_part_is_no_result(tmp_path: Path, monkeypatch) -> None:
    run(chain_of(1)[0], tmp_path / "work", tmp_path)

    def stop_halfway(folder: Path) -> None:
        (folder / "number.txt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", stop_halfway)
        with pytest.raises(KeyboardInterrupt):
            run(chain_of(2)[0], tmp_path / "work", tmp_path)
    graph, steps = chain_of(1)
    engine = run(graph, tmp_path / "work", tmp_path)
    assert engine.result_of(steps[0]).read_text() == "1"


class Planted:
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def test_a_pickle_that_another_user_planted_is_not_executed(tmp_path: Path, monkeypatch) -> None:
    graph, steps = chain_of(1)
    engine = run(graph, tmp_path / "work", tmp_path)
    result, marker = tmp_path / "work" / "wf" / "source" / "result_source.pklz", tmp_path / "executed"
    result.unlink()
    result.write_bytes(gzip.compress(pickle.dumps(Planted(marker))))
    if os.geteuid() == 0:
        os.chown(result, 4321, 4321)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with pytest.raises(CannotCreateError, match=r"result_source\.pklz"):
        run(graph, tmp_path / "work", tmp_path)
    assert not marker.exists()
    with pytest.raises(ValueError, match="None"):
        engine.result_of(steps[0])
    assert marker.exists()  # it does execute code if it is read


def die_in_the_second_invocation(value: int, number: int, out_dir: Path) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


@pytest.mark.timeout(60)
def test_results_of_an_earlier_run_do_not_hide_a_killed_step(tmp_path: Path) -> None:
    for number in (1, 2):
        graph = Graph(invocation=f"{number}")
        source = graph.step("write", write_number, number=number)
        value = graph.step("double", double, source=source)
        risky = graph.step("risky", die_in_the_second_invocation, value=value, number=number)
        target = graph.step("store", store, value=risky, target=tmp_path / "out.txt", always=True)
        engine = run(graph, tmp_path / "work", tmp_path, 2)
        error = engine.error_of(target)
        if number == 1:
            assert error is None
            assert engine.result_of(value) == 2
    assert (error.step, error.exit_code) == ("risky", 75)
    assert set(engine.costs(target)) == {"write", "double"}


@pytest.mark.timeout(60)
def test_a_step_that_always_runs_needs_a_result_of_this_invocation(tmp_path: Path) -> None:
    run_chain(tmp_path, 3, invocation="first")
    graph = Graph(invocation="second")
    source = graph.step("write", write_number, number=3)
    value = graph.step("double", double, source=source)
    target = graph.step("store", store, value=value, target=tmp_path / "out.txt", always=True)
    engine = Engine(graph, tmp_path / "work", ResourceSettings(), "wf")
    assert engine.error_of(value) is None
    assert engine.error_of(target).exit_code == 75


def test_a_failure_skips_dependent_steps_only(tmp_path: Path) -> None:
    graph = Graph()
    broken = graph.step("broken", fail)
    behind = graph.step("behind", double, source=broken)
    good = graph.step("good", write_number, number=1)
    engine = run(graph, tmp_path / "work", tmp_path)
    error = engine.error_of(behind)
    assert (error.step, error.message, error.hint, error.exit_code) == (
        "broken", "scan.nii.gz: truncated.", "Copy it again.", 65,
    )  # fmt: skip
    assert engine.error_of(good) is None


def test_the_error_of_an_earlier_run_is_ignored(tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "out.txt"
    for attempt in range(2):
        graph = Graph()
        step = graph.step("store", store, value=1, target=target)
        engine = run(graph, tmp_path / "work", tmp_path)
        if attempt == 0:
            assert engine.error_of(step).exit_code == 74
            target.parent.mkdir()
        else:
            assert engine.error_of(step) is None


@pytest.mark.parametrize(
    ("function", "code", "words"), [(fail_unexpectedly, 70, "ZeroDivisionError"), (fail_for_the_disk, 74, "x.nii")]
)
def test_every_failure_has_its_exit_code(tmp_path: Path, function, code: int, words: str) -> None:
    graph = Graph()
    step = graph.step("step", function)
    engine = run(graph, tmp_path / "work", tmp_path)
    error = engine.error_of(step)
    assert error.exit_code == code
    assert words in error.message


@pytest.mark.parametrize("function", [fail, fail_unexpectedly])
def test_a_vague_error_on_a_full_disk_is_reported_as_such(tmp_path: Path, monkeypatch, function) -> None:
    monkeypatch.setattr(engine_module, "is_full", lambda folder, *_: folder.name == "step")
    graph = Graph()
    step = graph.step("step", function)
    error = run(graph, tmp_path / "work", tmp_path).error_of(step)
    assert error.exit_code == 74
    assert "no space left" in error.message


@pytest.mark.timeout(60)
def test_a_killed_worker_fails_its_step_and_the_others_continue(tmp_path: Path) -> None:
    graph = Graph()
    killed = graph.step("killed", die)
    behind = graph.step("behind", double, source=killed)
    first = graph.step("first", write_number, number=3)
    value = graph.step("value", double, source=first)
    stored = graph.step("stored", store, value=value, target=tmp_path / "out.txt")
    engine = run(graph, tmp_path / "work", tmp_path, 2)
    assert engine.error_of(behind).exit_code == 75
    assert engine.error_of(stored) is None
    assert (tmp_path / "out.txt").read_text() == "6"


FULL = """
from pathlib import Path
from bids_app.workflow.engine import Engine
from bids_app.workflow.graph import Graph
from bids_app.settings import ResourceSettings
from tests.workflow.test_engine import fill_the_disk

if __name__ == "__main__":
    graph = Graph()
    engine = Engine(graph, Path({scratch!r}), ResourceSettings(n_procs=2), "g")
    steps = [graph.step(name, fill_the_disk) for name in ("one", "two")]
    engine.run(crash_dir=Path({crashes!r}))
    for step in steps:
        error = engine.error_of(step)
        print(error.exit_code, error.message)
"""


def test_steps_that_fill_the_disk_report_it(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    small, crashes, script = tmp_path / "small", tmp_path / "crashes", tmp_path / "full.py"
    small.mkdir()
    crashes.mkdir()
    script.write_text(FULL.format(scratch=str(small), crashes=str(crashes)))
    mount = 'mount -t tmpfs -o size=2m none "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, str(small), sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["74", "74"], done.stdout + done.stderr
    assert done.stdout.lower().count("no space left") == 2
    assert done.stdout.count(str(small)) == 2


def no_space_without_a_name(out_dir: Path) -> Path:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_by_its_folder_if_the_error_does_not(tmp_path: Path) -> None:
    graph = Graph()
    step = graph.step("step", no_space_without_a_name)
    error = run(graph, tmp_path / "work", tmp_path).error_of(step)
    assert error.exit_code == 74
    assert error.message.startswith(f"{tmp_path / 'work'}")
    assert "no space left" in error.message


def grow(number: int, out_dir: Path, source: Path | None = None, threads: int = 1) -> Path:
    """Write the number below the content of another step, in several files; slowly enough to be killed."""
    lines = f"{source.read_text() if source else ''}{number}\n"
    for name in ("a", "b", "result"):
        (out_dir / name).write_text(lines)
        time.sleep(0.02)
    return out_dir / "result"


def chains(number: int, invocation: str, target: Path) -> tuple[Graph, list[Step]]:
    """Make a graph of quick steps, which all depend on the number, and return its last steps."""
    graph, last = Graph(invocation), []
    for chain in ("left", "right"):
        step = graph.step(f"{chain}0", grow, number=number)
        for place in range(1, 8):
            step = graph.step(f"{chain}{place}", grow, number=number, source=step)
        last.append(graph.step(f"{chain}_store", copy_to, source=step, target=target / chain, always=True))
    return graph, last


def copy_to(source: Path, target: Path, out_dir: Path) -> Path:
    target.write_text(source.read_text())
    return target


CHAINS = """
import sys
from pathlib import Path
from bids_app.workflow.engine import Engine
from bids_app.settings import ResourceSettings
from test_engine import chains  # the name under which pytest knows it, since stamps depend on it

if __name__ == "__main__":
    number, invocation, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    graph, last = chains(number, invocation, folder / "out")
    engine = Engine(graph, folder / "work", ResourceSettings(n_procs=2), "wf")
    (folder / "crash").mkdir(exist_ok=True)
    (folder / "started").touch()
    engine.run(crash_dir=folder / "crash")
    errors = [engine.error_of(step) for step in last]
    sys.exit(next((error.exit_code for error in errors if error), 0))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_kills_of_a_changed_graph_never_leave_a_result_of_the_earlier_one(tmp_path: Path) -> None:
    script, out = tmp_path / "chains.py", tmp_path / "out"
    script.write_text(CHAINS)
    out.mkdir()
    draw, kills, number = random.Random(13), Counter[str](), 0
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{Path(__file__).parent}"}

    def begin(invocation: str) -> subprocess.Popen[bytes]:
        (tmp_path / "started").unlink(missing_ok=True)
        call = [sys.executable, str(script), str(number), invocation, str(tmp_path)]
        return subprocess.Popen(call, env=environment, stderr=subprocess.DEVNULL)

    started = time.monotonic()
    assert begin("first").wait() == 0
    seconds = time.monotonic() - started
    while kills.total() < 30:
        number += 1
        for attempt in range(5):
            run = begin(f"{number}-{attempt}")
            wait_until((tmp_path / "started").exists, 120)
            whom = draw.choice(["main", "workers", "workers twice"])
            time.sleep(draw.uniform(0, 0.8) * seconds)
            for _ in range(2 if whom == "workers twice" else 1):
                kills[whom] += kill(run, workers=whom != "main")
                time.sleep(0.3)
            code = run.wait()
            graph, last = chains(number, f"{number}-{attempt}", out)
            engine = Engine(graph, tmp_path / "work", ResourceSettings(), "wf")
            finished = [step for step in graph.steps.values() if engine.error_of(step) is None]
            for step in finished:
                content = Path(engine.result_of(step)).read_text()
                assert set(content.split()) == {str(number)}, f"{step.name} after {whom} were killed"
            assert (code == 0) <= (last[0] in finished and last[1] in finished)
        assert begin(f"{number}-last").wait() == 0
        for chain in ("left", "right"):
            assert (out / chain).read_text() == f"{number}\n" * 8
    print(dict(kills))


def kill(run: subprocess.Popen[bytes], *, workers: bool) -> bool:
    """Kill a run, or its workers; False if there was nothing to kill."""
    if not workers:
        run.kill()
        return run.poll() is None or run.returncode == -signal.SIGKILL
    found = False
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(run.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.ppid() != run.pid:  # a child of the fork server
                    process.kill()
                    found = True
    return found


KILLED = """
from pathlib import Path
from bids_app.workflow.engine import Engine
from bids_app.workflow.graph import Graph
from bids_app.settings import ResourceSettings
from tests.workflow.test_engine import block

if __name__ == "__main__":
    graph = Graph()
    engine = Engine(graph, Path({scratch!r}), ResourceSettings(n_procs=2), "g")
    graph.step("one", block)
    graph.step("two", block)
    engine.run(crash_dir=Path({scratch!r}))
"""


def test_workers_exit_when_the_run_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(scratch=str(tmp_path)))
    run = subprocess.Popen([sys.executable, str(script)], env=ENVIRONMENT)
    marker = tmp_path / "g" / "worker"
    wait_until(marker.is_file, 60)
    worker = int(wait_until(marker.read_text, 5))
    run.kill()
    run.wait()
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), 10)


def wait_until(condition: Callable[[], T], seconds: float) -> T:
    """Wait for a condition and return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def test_removing_scratch_keeps_other_files(tmp_path: Path) -> None:
    graph = Graph()
    graph.step("write", write_number, number=1)
    engine = run(graph, tmp_path / "work", tmp_path)
    (tmp_path / "work" / "of_somebody_else.txt").write_text("keep me")
    engine.remove(graph.steps.values())
    left = [path.name for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert "of_somebody_else.txt" in left
    assert not (tmp_path / "work" / "wf" / "write").exists()


def test_library_caches_and_crash_folders_are_removed(tmp_path: Path) -> None:
    work = tmp_path / "work"
    for name in ("caches/mplconfigdir", "crash-1"):
        (work / name).mkdir(parents=True)
        (work / name / "file").write_text("")
    (work / "of_somebody_else.txt").write_text("keep me")
    remove_caches(work)
    assert [path.name for path in work.iterdir()] == ["of_somebody_else.txt"]
    (work / "of_somebody_else.txt").unlink()
    remove_caches(work)
    assert not work.exists()


@pytest.mark.parametrize("content", ["plugin_args: {}", "[", "plugin: SLURM\nplugin_args: 3"])
def test_broken_plugin_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plugin.yml"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"plugin\.yml"):
        read_plugin_file(path)


@pytest.mark.parametrize(("n_procs", "is_terminal"), [(1, True), (2, True), (1, False), (2, False)])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    tmp_path: Path, monkeypatch, capsys, n_procs: int, is_terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    with terminal_log(verbosity=0):
        run_chain(tmp_path, 21, n_procs)
    said = capsys.readouterr().err
    assert ("0/3" in said) == is_terminal
    assert (len(re.findall(r"^\d\d:\d\d:\d\d [123]/3 ", said, re.MULTILINE)) == 3) != is_terminal
    with terminal_log(verbosity=0):
        run_chain(tmp_path, 21, n_procs)
    assert "2 of 3 steps are reused" in capsys.readouterr().err
