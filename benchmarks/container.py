"""Measure the container image: its size, and the time and memory of start, self-test, participant and group level.

    python benchmarks/container.py IMAGE [--run "docker run --rm --user 1234:1234"] [--dataset DIR]

Processes are found by their user, who must have no others. CPU time and memory (shared pages counted once) are summed
over all of them. Without a dataset, one participant with a T1w image is simulated.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass
class Cost:
    """CPU time and peak memory of a user's processes."""

    uid: int
    peak_bytes: int = 0
    cpu_seconds: dict[int, float] = field(default_factory=dict)

    def sample(self) -> None:
        """Sample all processes of the user once."""
        total = 0
        for process in psutil.process_iter(["pid", "uids"]):
            try:
                if process.info["uids"] and process.info["uids"].real == self.uid:
                    total += process.memory_full_info().pss
                    times = process.cpu_times()
                    self.cpu_seconds[process.info["pid"]] = times.user + times.system
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        self.peak_bytes = max(self.peak_bytes, total)


def measure(command: list[str], uid: int) -> tuple[float, Cost, int]:
    """Run a command, and return its seconds, the cost of the user's processes, and its exit code."""
    cost, done = Cost(uid), threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            cost.sample()

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return seconds, cost, code


def size_of(image: str, engine: str) -> float:
    """Return the size of an image in bytes, as given by the container engine."""
    out = subprocess.run([engine, "image", "inspect", image], capture_output=True, text=True, check=True).stdout
    return json.loads(out)[0]["Size"]


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--run", default="docker run --rm --user 1234:1234", help="command that runs an image")
    parser.add_argument("--engine", default="docker", help="docker or podman, to read the size")
    parser.add_argument("--uid", type=int, default=1234, help="the user in --run")
    parser.add_argument("--dataset", type=Path)
    options = parser.parse_args()
    print(f"{options.image}: {size_of(options.image, options.engine) / 1e9:.2f} GB")
    with tempfile.TemporaryDirectory() as folder:
        raw, out, work = options.dataset, Path(folder) / "out", Path(folder) / "work"
        if raw is None:
            raw = Path(folder) / "raw"
            program = Path(sys.executable).with_name("neurostorm-phantom")
            subprocess.run([program, raw, "--participants", "1", "--states", "rest"], check=True)
        for path in (out, work):
            path.mkdir()
        for path in (Path(folder), out, work):
            path.chmod(0o777)
        run = shlex.split(options.run)
        mounts = ["-v", f"{raw.absolute()}:/data:ro", "-v", f"{out}:/out", "-v", f"{work}:/work"]
        print(f"{'command':<12} {'s':>7} {'CPU s':>12} {'peak GB':>8} {'exit code':>10}")
        for name, arguments in {
            "version": ["--version"],
            "self-test": ["--self-test"],
            "participant": ["/data", "/out", "participant", "--model", "demo", "--nprocs", "2", "-w", "/work"],
            "group": ["/data", "/out", "group"],
        }.items():
            seconds, cost, code = measure([*run, *mounts, options.image, *arguments], options.uid)
            cpu = sum(cost.cpu_seconds.values())
            print(f"{name:<12} {seconds:7.1f} {cpu:12.1f} {cost.peak_bytes / 1e9:8.2f} {code:10d}", flush=True)
        for name, tree in (("output", out), ("scratch", work)):
            print(f"{name}: {sum(path.lstat().st_size for path in tree.rglob('*')) / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
