"""Formats of the clip store: random clips per second from each candidate, page cache cold and warm.

    pip install webdataset litdata zarr           # candidates that are not dependencies; those missing are left out
    python benchmarks/store_formats.py
    python benchmarks/store_formats.py --quick    # a few small scans, to check that the benchmark runs

The same scans, int8 values of the brain of 230,000 voxels, are written once in each format, then clips of 20 volumes
are read in random order by one process as int8 rows, and copied once. `cold`: the files were dropped from the page
cache before. Clips start at any volume; formats whose unit is a sample (WebDataset, LitData) hold clips that start at
multiples of 20 volumes, because they read whole samples, and the pipeline of WebDataset reads a shard in order. `cat`
of all files is the ceiling, in clips of the same size.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
from encoder import table
from safetensors import safe_open
from safetensors.numpy import save_file
from store import drop

N = 20
"""Volumes of a clip."""
BUFFER = 50
"""Samples of the shuffling buffer of WebDataset."""
Read = Callable[[int, int], np.ndarray]
"""Reads the clip of a scan that starts at a volume."""


def scans(n_scans: int, n_vols: int, n_voxels: int) -> Iterator[np.ndarray]:
    """Yield scans of noise, (U, V) int8."""
    for seed in range(n_scans):
        noise = np.random.default_rng(seed).normal(0, 32, (N, n_voxels))
        yield np.tile(np.clip(np.rint(noise), -127, 127).astype(np.int8), (n_vols // N, 1))


def loose(folder: Path, data: Iterator[np.ndarray]) -> Read:
    """Write one file a scan (format 1 of the store)."""
    for i, values in enumerate(data):
        np.save(folder / f"{i}.npy", values)
    return lambda i, k: np.array(np.load(folder / f"{i}.npy", mmap_mode="r")[k : k + N])


def tar(folder: Path, data: Iterator[np.ndarray]) -> Read:
    """Write a tar of arrays, and read at the offsets of an index."""
    offsets = []
    with tarfile.open(folder / "shard.tar", "w", format=tarfile.PAX_FORMAT) as file:
        for i, values in enumerate(data):
            content = io.BytesIO()
            np.save(content, values)
            member = tarfile.TarInfo(f"{i}.values.npy")
            member.size = content.tell()
            content.seek(0)
            file.addfile(member, content)
            offsets.append((file.offset - -(-member.size // 512) * 512 + member.size - values.nbytes, values.shape[1]))
    descriptor = os.open(folder / "shard.tar", os.O_RDONLY)

    def read(i: int, k: int) -> np.ndarray:
        start, n_voxels = offsets[i]
        out = np.empty((N, n_voxels), np.int8)
        assert os.preadv(descriptor, [out.data], start + k * n_voxels) == out.nbytes
        return out

    return read


def safetensors(folder: Path, data: Iterator[np.ndarray]) -> Read:
    """Write one file of safetensors, and read slices."""
    save_file({str(i): values for i, values in enumerate(data)}, folder / "shard.safetensors")
    file = safe_open(folder / "shard.safetensors", "np")
    return lambda i, k: file.get_slice(str(i))[k : k + N]


def hdf5(folder: Path, data: Iterator[np.ndarray]) -> Read:
    """Write one HDF5 file of contiguous arrays, and read slices."""
    with h5py.File(folder / "shard.h5", "w") as file:
        for i, values in enumerate(data):
            file.create_dataset(str(i), data=values)
    opened = h5py.File(folder / "shard.h5")
    return lambda i, k: opened[str(i)][k : k + N]


def zarr(folder: Path, data: Iterator[np.ndarray]) -> Read:
    """Write arrays of Zarr 3, one shard a scan, one chunk a clip, without compression."""
    import zarr as library

    arrays = []
    for i, values in enumerate(data):
        array = library.create_array(
            folder / str(i), shape=values.shape, dtype="int8", shards=values.shape, chunks=(N, values.shape[1]),
            compressors=None,
        )  # fmt: skip
        array[:] = values
        arrays.append(array)
    return lambda i, k: np.asarray(arrays[i][k : k + N])


def webdataset(folder: Path, data: Iterator[np.ndarray]) -> Read:
    """Write clips as samples of a WebDataset, and read them as its pipeline does: in order, shuffled in a buffer."""
    import webdataset as library

    n_clips, path = 0, folder / "shard.tar"
    with library.TarWriter(str(path)) as writer:
        for values in data:
            for k in range(0, len(values), N):
                writer.write({"__key__": f"{n_clips:06d}", "npy": values[k : k + N]})
                n_clips += 1
    samples = iter(library.WebDataset(str(path), shardshuffle=False).shuffle(BUFFER).decode().repeat())
    return lambda i, k: next(samples)["npy"]


def litdata(folder: Path, data: Iterator[np.ndarray]) -> Read:
    """Write clips as samples of LitData, and read them by number."""
    from litdata import StreamingDataset
    from litdata.streaming import Cache

    cache = Cache(str(folder / "lit"), chunk_bytes="256MB")
    index = per_scan = 0
    for values in data:
        per_scan = len(values) // N
        for k in range(0, len(values), N):
            cache[index] = {"codes": values[k : k + N]}
            index += 1
    cache.done()
    cache.merge()
    samples = StreamingDataset(str(folder / "lit"))
    return lambda i, k: samples[i * per_scan + k // N]["codes"]


FORMATS: dict[str, tuple[Callable[[Path, Iterator[np.ndarray]], Read], str | None, bool]] = {
    "loose files (format 1)": (loose, None, False),
    "tar, offsets in an index": (tar, None, False),
    "safetensors": (safetensors, None, False),
    "HDF5, contiguous": (hdf5, None, False),
    "Zarr 3, sharded": (zarr, "zarr", False),
    f"WebDataset, buffer of {BUFFER}": (webdataset, "webdataset", True),
    "LitData": (litdata, "litdata", True),
}
"""Writer, library that it needs, and whether its clips start at multiples of 20 volumes."""


def rate(read: Read, clips: list[tuple[int, int]], n_voxels: int) -> float:
    """Return clips per second."""
    out = np.empty((N, n_voxels), np.int8)
    start = time.perf_counter()
    for i, k in clips:
        np.copyto(out, read(i, k))
    return len(clips) / (time.perf_counter() - start)


def cat(folder: Path, clip_bytes: int) -> float:
    """Return the speed of ``cat`` of all files of a folder, clips per second."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    start = time.perf_counter()
    with open(os.devnull, "wb") as nowhere:
        subprocess.run(["cat", *paths], stdout=nowhere, check=True)
    return sum(path.stat().st_size for path in paths) / clip_bytes / (time.perf_counter() - start)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write (default: the folder for temporary files)")
    parser.add_argument("--scans", type=int, default=20)
    parser.add_argument("--clips", type=int, default=200, help="number of clips to read")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    n_voxels, n_vols = (1000, 60) if arguments.quick else (230_000, 440)
    n_scans = 3 if arguments.quick else arguments.scans
    rng = np.random.default_rng(0)
    clips = [(int(rng.integers(n_scans)), int(rng.integers(n_vols - N + 1))) for _ in range(arguments.clips)]
    clip_bytes, lines = n_voxels * N, []
    for name, (write, library, aligned) in FORMATS.items():
        if library is not None and importlib.util.find_spec(library) is None:
            print(f"{name}: {library} is not installed")
            continue
        with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
            folder, wanted = Path(work), [(i, k // N * N if aligned else k) for i, k in clips]
            start = time.perf_counter()
            read = write(folder, scans(n_scans, n_vols, n_voxels))
            os.sync()
            written = time.perf_counter() - start
            n_files = sum(path.is_file() for path in folder.rglob("*"))
            drop(folder)
            ceilings = [cat(folder, clip_bytes)]
            drop(folder)
            rates = [rate(read, wanted, n_voxels)]
            cat(folder, clip_bytes)
            rates.append(max(rate(read, wanted, n_voxels) for _ in range(3)))
            ceilings.append(cat(folder, clip_bytes))
        lines.append(
            [name, "multiples of 20" if aligned else "any volume", str(n_files), f"{written:.0f}"]
            + [f"{value:.0f}" for pair in zip(rates, ceilings, strict=True) for value in pair]
        )
    head = ["format", "starts", "files", "writing, s", "clips/s, cold", "cat, cold", "clips/s, warm", "cat, warm"]
    table(f"Clips of {clip_bytes / 1e6:.1f} MB read at random from {n_scans} scans", head, lines)


if __name__ == "__main__":
    main()
