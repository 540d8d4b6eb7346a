"""Clip store: clips read per second, beside what `cat` reaches, and memory over an epoch of 880,000 clips.

    python benchmarks/store.py                  # about five minutes and 5 GB in the folder for temporary files
    python benchmarks/store.py --folder /nfs    # on another file system
    python benchmarks/store.py --quick          # small scans and a small index, to check that the benchmark runs

Memory: the index of 40,000 participants with 22 clips each is simulated, opened, and an epoch is drawn; the tar files
are sparse, so that the clips of a sample of batches are read as well.

Reading: the same scans of noise in a brain of 230,000 voxels, in format 1 (a folder for each) and in shards, batches of
8 clips from random volumes. `int8 rows`: what travels to a GPU, 4.6 MB a clip, in the memory of the training process.
`on the grid`: also dequantised on the CPU, 71 MB of float32 a clip, as training on a CPU needs. The old loader is that
of the last release: one thread that dequantises each clip. `cat`: all files in order, in clips of the same size; the
ceiling. `cold`: the files were dropped from the page cache before (not on the host of a virtual machine, nor on a file
server).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from encoder import table

from bids_app.clips import MODEL_GRID_SHAPE
from bids_app.training.data.loader import AnyBatch, ClipBatches
from bids_app.training.data.places import Place
from bids_app.training.data.quantise import BACKGROUND, MASK_BYTES, N_VOXELS
from bids_app.training.data.scan import FACTS, NewScan, Scan
from bids_app.training.data.shards import SHARDS, index_of, tar_of
from bids_app.training.data.store import ClipStore
from bids_app.training.memory import reuse_freed_memory

CLIP, BATCH = 20, 8
GB = 10**9
HEAD = ["", "cold", "cat, cold", "warm", "cat, warm", "processor, ms a clip"]
N_FACTS = 24
"""Numbers that describe a scan: confounds, signal and quality."""


def noise_scan(name: str, seed: int, n_vols: int, n_voxels: int) -> NewScan:
    """Return a scan of noise, with as many facts as a real one."""
    rng = np.random.default_rng(seed)
    noise = np.clip(np.rint(rng.normal(0, 32, (CLIP, n_voxels))), -127, 127).astype(np.int8)
    mask = np.zeros(N_VOXELS, bool)
    mask[rng.permutation(N_VOXELS)[:n_voxels]] = True
    codes, mean = np.tile(noise, (n_vols // CLIP, 1)), np.zeros(n_voxels, np.float16)
    return NewScan(name, description(name, seed, n_vols), codes, np.packbits(mask), mean)


def description(name: str, seed: int, n_vols: int) -> dict[str, object]:
    """Return the description of a scan."""
    numbers = np.random.default_rng(seed).normal(size=(3, N_FACTS)).tolist()
    facts = {key: {f"{key}_{i}_mean": x for i, x in enumerate(row)} for key, row in
             zip(("confounds", "signal", "quality"), numbers, strict=True)}  # fmt: skip
    return {
        "participant": name[4:9], "session": "1", "scale": 0.03, "background": -1.25, "n_vols": n_vols,
        "labels": {"task": "rest"}, "source": f"/data/derivatives/{name[:9]}/func/{name}_bold.nii.gz", "start": 0.0,
        "scanner": {"Manufacturer": "Siemens", "ManufacturersModelName": "Skyra"}, "stamp": f"{seed:016x}",
    } | facts  # fmt: skip


def write_format_1(folder: Path, scan: NewScan) -> None:
    """Write a scan as earlier versions did."""
    (folder / scan.name).mkdir(parents=True)
    for name, array in (("values", scan.codes), ("mask", scan.mask), ("mean", scan.mean)):
        np.save(folder / scan.name / f"{name}.npy", array)
    (folder / scan.name / "scan.json").write_text(json.dumps(scan.content))
    about = {"format": "neurostorm-clips", "version": 1, "normalisation": "global"}
    (folder / "store.json").write_text(json.dumps(about))


def old_clip(scan: Scan, start: int) -> torch.Tensor:
    """Read a clip as the last release did."""
    codes = torch.full((N_VOXELS, CLIP), BACKGROUND, dtype=torch.int8)
    indices = scan.voxel_indices
    rows = np.ascontiguousarray(scan.codes(indices)[start : start + CLIP].T)
    codes[torch.from_numpy(indices)] = torch.from_numpy(rows)
    grid = torch.where(codes == BACKGROUND, scan.background, codes.float().mul_(scan.scale))
    return grid.reshape(1, *MODEL_GRID_SHAPE, CLIP)


def old_batches(batches: ClipBatches) -> Iterator[torch.Tensor]:
    """Read batches as the last release did: one thread, one batch ahead."""
    waiting: queue.Queue[torch.Tensor | None] = queue.Queue(maxsize=1)

    def work() -> None:
        for requests in batches._requests(0, 0):
            waiting.put(torch.stack([old_clip(each.source, each.start) for each in requests]))  # type: ignore[arg-type]
        waiting.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (batch := waiting.get()) is not None:
        yield batch


def drop(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def cat(folder: Path) -> float:
    """Return the speed of ``cat``, clips per second."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    start = time.perf_counter()
    with open(os.devnull, "wb") as nowhere:
        subprocess.run(["cat", *paths], stdout=nowhere, check=True)
    return sum(path.stat().st_size for path in paths) / (time.perf_counter() - start)


def speed(start: Callable[[], Iterator], use: Callable, seconds: float) -> tuple[float, float]:
    """Return clips per second, from the first batch on, which starts the reading processes, and processor time, ms."""
    cpu_before, batches, n_batches = sum(os.times()[:4]), start(), 0
    use(next(batches))
    began = time.perf_counter()
    for batch in batches:
        use(batch)
        n_batches += 1
        if time.perf_counter() - began > seconds:
            break
    rate = n_batches / (time.perf_counter() - began)
    batches.close()  # type: ignore[attr-defined]  # processor time of processes counts when they have ended
    return rate * BATCH, (sum(os.times()[:4]) - cpu_before) / (n_batches + 1) / BATCH * 1000


def on_grid(batch: AnyBatch) -> torch.Tensor:
    """Dequantise."""
    return batch.to("cpu").clips


def same(batch: object) -> object:
    """Take the batch as it is."""
    return batch


def measure_reading(folder: Path, n_scans: int, n_vols: int, n_voxels: int, workers: list[int], seconds: float) -> None:
    """Print the table of reading."""
    old_folder, new_folder = folder / "old", folder / "new"
    store = ClipStore(new_folder, "global")
    with store.writer() as writer:
        for k in range(n_scans):
            scan = noise_scan(f"sub-{k:05d}_task-rest", k, n_vols, n_voxels)
            write_format_1(old_folder, scan)
            writer.add(scan)
    clip_bytes = CLIP * n_voxels
    old, new = tuple(ClipStore(old_folder)), tuple(store)
    many = 40  # epochs of these scans are too short to measure
    before, threads = ClipBatches(old * many, BATCH), ClipBatches(new * many, BATCH)
    cases: list[tuple[str, Path, Callable[[], Iterator[object]], Callable]] = [
        ("format 1, old loader, on the grid", old_folder, partial(old_batches, before), same),
        ("format 1, a thread, int8 rows", old_folder, partial(before.epoch, 0), same),
        ("shards, a thread, int8 rows", new_folder, partial(threads.epoch, 0), same),
        ("shards, a thread, on the grid", new_folder, partial(threads.epoch, 0), on_grid),
    ]
    for n in workers:
        epoch = partial(ClipBatches(new * many, BATCH, workers=n).epoch, 0)
        cases.append((f"shards, {n} processes, int8 rows", new_folder, epoch, same))
        cases.append((f"shards, {n} processes, on the grid", new_folder, epoch, on_grid))
    lines = []
    for name, place, start, use in cases:
        drop(place)
        ceiling_cold = cat(place) / clip_bytes
        drop(place)
        cold, _ = speed(start, use, seconds)
        ceiling = cat(place) / clip_bytes
        warm, cpu = speed(start, use, seconds)
        lines.append([name, f"{cold:.0f}", f"{ceiling_cold:.0f}", f"{warm:.0f}", f"{ceiling:.0f}", f"{cpu:.0f}"])
    files = [sum(path.is_file() for path in each.rglob("*")) for each in (old_folder, new_folder)]
    print(f"\nFiles of {n_scans} scans: {files[0]} in format 1, {files[1]} in shards.")
    table(f"Clips of {clip_bytes / 1e6:.1f} MB per second", HEAD, lines)


def simulate_index(folder: Path, n_participants: int, n_vols: int, n_voxels: int, per_shard: int = 20) -> ClipStore:
    """Write a store whose tar files are sparse."""
    store = ClipStore(folder, "global")
    (folder / SHARDS).mkdir()
    head = 8192  # description
    size = head + MASK_BYTES + 2 * n_voxels + n_vols * n_voxels
    mask = np.zeros(N_VOXELS, bool)
    mask[:n_voxels] = True
    bits = np.packbits(mask).tobytes()
    for first in range(0, n_participants, per_shard):
        name, scans = f"20260101T000000-{first:08x}", []
        with open(Place(str(folder)).path(tar_of(name)), "wb") as file:
            for k in range(min(per_shard, n_participants - first)):
                person, at = f"sub-{first + k:05d}_task-rest", k * size
                mask_at, mean_at = at + head, at + head + MASK_BYTES
                about = description(person, first + k, n_vols)
                text = json.dumps(about).encode()
                file.seek(at + 512)
                file.write(text)
                file.seek(mask_at)
                file.write(bits)
                scans.append({
                    "name": person, "generation": 1, "n_voxels": n_voxels,
                    "about": {key: x for key, x in about.items() if key not in FACTS}, "json": [at + 512, len(text)],
                    "mask": mask_at, "mean": mean_at,
                    "values": mean_at + 2 * n_voxels, "span": [at, at + size], "sha256": "0" * 64,
                })  # fmt: skip
            file.truncate(len(scans) * size)
        index = {"shard": name, "bytes": len(scans) * size, "sha256": "0" * 64, "scans": scans}
        Path(Place(str(folder)).path(index_of(name))).write_text(json.dumps(index))
    store.write_index()
    return store


def rss(pid: int | str = "self") -> float:
    """Return the memory of a process and, by shares, of its children, MB."""
    pids = [pid, *subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True).stdout.split()]
    total = 0
    for each in pids:
        path = Path(f"/proc/{each}/smaps_rollup")
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def measure_memory(folder: Path, n_participants: int, n_vols: int, n_voxels: int, workers: int) -> None:
    """Print the time to open an index, and memory over an epoch."""
    simulate_index(folder, n_participants, n_vols, n_voxels)
    size = (folder / "index.jsonl").stat().st_size
    before, start = rss(), time.perf_counter()
    scans = tuple(ClipStore(folder))
    opened = time.perf_counter() - start
    os.rename(folder / "index.jsonl", folder / "aside")
    start = time.perf_counter()
    without = len(list(ClipStore(folder)))
    opened_without = time.perf_counter() - start
    os.rename(folder / "aside", folder / "index.jsonl")
    batches = ClipBatches(scans, BATCH)
    print(
        f"\nIndex of {len(scans):,} scans ({without:,} without index.jsonl) and {batches.n_clips:,} clips, "
        f"{size / 1e6:.0f} MB: opened in {opened:.1f} s; {opened_without:.1f} s from the indices of all shards. "
        f"Memory before: {before:.0f} MB."
    )
    start = time.perf_counter()
    memory: list[tuple[str, float]] = []
    wanted, seen = {0: "start", batches.steps // 2: "middle", batches.steps - 1: "end"}, 0
    for step, requests in enumerate(batches._requests(0, 0)):
        seen += len(requests)
        if step in wanted:
            memory.append((f"clips drawn, {wanted[step]}", rss()))
    drawn = time.perf_counter() - start
    read = ClipBatches(scans, BATCH, workers=workers)
    steps = min(200, read.steps // 3)
    for name, first in (("start", 0), ("middle", read.steps // 2), ("end", read.steps - steps)):
        epoch = read.epoch(1, first)
        for _ in range(steps):
            next(epoch)
        memory.append((f"{steps * BATCH:,} clips read by {workers} processes, {name}", rss()))
        epoch.close()  # type: ignore[attr-defined]
    print(f"All {seen:,} clips of an epoch drawn in {drawn:.1f} s.")
    table("Memory of all processes (PSS), MB", ["", "MB"], [[name, f"{value:.0f}"] for name, value in memory])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write (default: the folder for temporary files)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=6, help="time of each measurement")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(f"Load of the machine before: {os.getloadavg()[0]:.1f}. ", end="")
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    n_voxels, n_vols, n_scans, n_participants = (2000, 60, 3, 200) if arguments.quick else (230_000, 440, 20, 40_000)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
        measure_memory(Path(work) / "index", n_participants, n_vols, n_voxels, 2)
    reuse_freed_memory()  # as the command does
    with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
        seconds = 0.2 if arguments.quick else arguments.seconds
        measure_reading(Path(work) / "reading", n_scans, n_vols, n_voxels, arguments.workers, seconds)


if __name__ == "__main__":
    main()
