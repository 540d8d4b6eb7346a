"""Speed of the encoder's backends on one full clip of the published configuration, in one process.

    python benchmarks/encoder.py forward     # inference: time, speed-up, GFLOP/s, difference, memory
    python benchmarks/encoder.py training    # forward and backward: prompts, low-rank updates, all weights
    python benchmarks/encoder.py products    # linear layers, forward and gradients, beside those of PyTorch
    python benchmarks/encoder.py stream      # a run of 1,200 volumes: memory during encoding
    python benchmarks/encoder.py gpu         # clips per second by backend, dtype and batch size, on a GPU

Weights are random with a fixed seed, which is sufficient for timing. Backends alternate, and the minimum over the
repeats is reported, because other work on the machine can only make a run slower. On a machine that is always busy, use
`--clock cpu` to measure the CPU time of one thread instead of wall time.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bids_app.clips import MODEL_GRID_SHAPE, ClipReader, GridSeries, GridSeriesWriter
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.model.heads import pool
from bids_app.model.mamba import D_STATE
from bids_app.model.scan import BACKENDS, ENVIRONMENT_VARIABLE, backend_in_use
from bids_app.model.streaming import apply_in_batches
from bids_app.model.windows import plan_windows
from bids_app.training.low_rank import LowRankSettings, add_low_rank_updates
from bids_app.training.memory import reuse_freed_memory

CONFIG = EncoderConfig()
CPU = torch.device("cpu")


def published_encoder(config: EncoderConfig = CONFIG) -> Encoder:
    """Return an encoder of the published configuration with seeded random weights."""
    torch.manual_seed(0)
    return Encoder(config).eval()


def clips(batch: int = 1) -> torch.Tensor:
    """Return full clips of noise, (B, 1, 96, 96, 96, 20)."""
    return torch.randn(batch, 1, *CONFIG.img_size, generator=torch.Generator().manual_seed(1))


def matrix_flop(config: EncoderConfig = CONFIG) -> float:
    """Return the number of floating-point operations in the matrix products of one clip."""
    x, y, z, t = config.grid(0)
    voxels = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    total = 2.0 * x * y * z * t * voxels * config.embed_dim
    for stage, depth in enumerate(config.depths):
        c, grid = config.width(stage), config.grid(stage)
        d, rank, tokens = 2 * c, -(-c // 16), int(np.prod(plan_windows(grid, config.window(stage), False).padded))
        mixer = c * 2 * d + d * (rank + 2 * D_STATE) + rank * d + d * c
        total += depth * 2.0 * tokens * (mixer + 2 * config.mlp_ratio * c * c)
        if stage + 1 < config.n_stages:
            total += 2.0 * tokens / 8 * (8 * c) * (2 * c)
    return total


def matrix_rate() -> float:
    """Return the speed of torch's own matrix product on this machine, FLOP/s."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = min(seconds(lambda: a @ b) for _ in range(8))
    return 2 * 2048**3 / best


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock: Callable[[], float] = time.perf_counter
"""The clock in use; set by `main`."""


def seconds(work: Callable[[], object]) -> float:
    """Return the time of one call, s."""
    start = clock()
    work()
    return clock() - start


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use this backend for the scan within the context."""
    before = os.environ.get(ENVIRONMENT_VARIABLE)
    os.environ[ENVIRONMENT_VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENVIRONMENT_VARIABLE]
        else:
            os.environ[ENVIRONMENT_VARIABLE] = before


def usable(device: torch.device) -> list[str]:
    """Return the backends that run on a device, the reference last."""
    return [name for name, b in BACKENDS.items() if not b.unavailable(device, torch.float32, D_STATE)]


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print a table as Markdown."""
    print(f"\n{title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")


def peak_memory(name: str) -> float:
    """Return the peak resident memory, GB, of a process that only encodes one clip with a backend."""
    result = subprocess.run([sys.executable, __file__, "once", name], capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def once(name: str) -> None:
    """Encode one clip and print the peak of the process's resident memory, GB."""
    encoder = published_encoder()
    with backend(name), torch.inference_mode():
        encoder(clips())
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory too
    print(int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024 / 1e9)


def forward(repeats: int) -> None:
    """Measure inference on one clip."""
    encoder, clip, flop = published_encoder(), clips(), matrix_flop()
    names = usable(CPU)
    cases = [(name, torch.float32) for name in names] + [("native", torch.bfloat16)] * ("native" in names)
    best: dict[tuple[str, torch.dtype], float] = {}
    outputs: dict[tuple[str, torch.dtype], torch.Tensor] = {}
    rate = 0.0
    with torch.inference_mode():
        for _ in range(repeats):
            rate = max(rate, matrix_rate())
            for case in cases:
                name, dtype = case
                half = torch.autocast("cpu", dtype) if dtype == torch.bfloat16 else nullcontext()
                with backend(name), half:
                    start = clock()
                    outputs[case] = encoder(clip).float()
                    best[case] = min(best.get(case, float("inf")), clock() - start)
    reference = ("reference", torch.float32)
    rows = []
    for case in cases:
        name, dtype = case
        difference = (outputs[case] - outputs[reference]).abs().max().item()
        memory = f"{peak_memory(name):.2f}" if dtype == torch.float32 else ""
        with backend(name):
            label = backend_in_use()
        rows.append(
            [
                label,
                str(dtype).removeprefix("torch."),
                f"{best[case]:.3f}",
                f"{best[reference] / best[case]:.1f}",
                f"{flop / best[case] / 1e9:.0f}",
                f"{100 * flop / best[case] / rate:.0f} %",
                f"{difference:.1e}",
                memory,
            ]
        )
    head = ["backend", "dtype", "s per clip", "speed-up", "GFLOP/s", "of matmul", "difference", "peak GB"]
    table(f"One clip of 96x96x96x20 ({flop / 1e9:.1f} GFLOP; matmul {rate / 1e9:.0f} GFLOP/s)", head, rows)


def training(repeats: int) -> None:
    """Measure forward and backward passes on one clip: of prompts and low-rank updates, the rest frozen, and of all."""
    clip, rows = clips(), []
    prompted, updated, whole = published_encoder(EncoderConfig(prompt_len=50)), published_encoder(), published_encoder()
    for name, parameter in prompted.named_parameters():
        parameter.requires_grad_(name.endswith(".prompt"))
    add_low_rank_updates(updated, LowRankSettings())  # only these require gradients
    encoders = {
        "prompts, backbone frozen": prompted,
        f"low-rank updates (rank {LowRankSettings.rank}), backbone frozen": updated,
        "everything": whole,
    }
    best: dict[tuple[str, str], float] = {}
    gradients: dict[tuple[str, str], torch.Tensor] = {}
    for case in [(what, name) for _ in range(repeats) for name in usable(CPU) for what in encoders]:
        encoder = encoders[case[0]]
        trained = [p for p in encoder.parameters() if p.requires_grad]
        with backend(case[1]):
            start = clock()
            found = torch.autograd.grad(encoder(clip).square().mean(), trained)
            best[case] = min(best.get(case, float("inf")), clock() - start)
        gradients[case] = torch.cat([g.flatten() for g in found])
    for what, name in [(what, name) for what in encoders for name in usable(CPU)]:
        exact, value = gradients[what, "reference"], best[what, name]
        error = (gradients[what, name] - exact).norm() / exact.norm()
        rows.append([what, name, f"{value:.2f}", f"{best[what, 'reference'] / value:.1f}", f"{error:.1e}"])
    head = ["gradients of", "backend", "s per clip", "speed-up", "relative difference of gradients"]
    table("Forward and backward on one clip, float32", head, rows)


LINEAR_LAYERS = {"in_proj": (0, 36, 144), "linear2": (0, 144, 36), "dt_proj": (0, 3, 72), "linear1": (1, 72, 288)}
"""Stage, inputs and outputs of some linear layers of the published configuration."""


def products(repeats: int) -> None:
    """Measure linear layers, forward and each gradient, in GFLOP/s."""
    from torch.nn import functional as F

    from bids_app.model.linear import linear

    reuse_freed_memory()  # as training does
    functions = {"native": linear, "torch": F.linear}
    rows = []
    for name, (stage, n_in, n_out) in LINEAR_LAYERS.items():
        tokens = math.prod(CONFIG.grid(stage))
        for kind, function in functions.items():
            x, weight, dy = torch.randn(tokens, n_in), torch.randn(n_out, n_in), torch.randn(tokens, n_out)
            works: list[Callable[[], object]] = [partial(function, x, weight)]
            for chosen in range(2):
                leaves = [t.clone().requires_grad_(index == chosen) for index, t in enumerate((x, weight))]
                y = function(*leaves)
                works.append(partial(torch.autograd.grad, y, leaves[chosen], dy, retain_graph=True))
            best = [min(seconds(work) for _ in range(repeats)) for work in works]
            rates = [f"{2e-9 * tokens * n_in * n_out / one:.0f}" for one in best]
            rows.append([f"{name} ({tokens} x {n_in} to {n_out})", kind, *rates])
    table("Linear layers", ["layer", "product", "forward", "gradient of the input", "of the weight, GFLOP/s"], rows)


def stream(n_vols: int) -> None:
    """Encode a long run and record the memory of the process."""
    import psutil

    process, grown = psutil.Process(), []
    encoder = published_encoder()
    with tempfile.TemporaryDirectory() as folder:
        reader = ClipReader(noise_run(Path(folder) / "run", n_vols))
        start = time.perf_counter()
        with torch.inference_mode():
            for _ in apply_in_batches(lambda clip: pool(encoder(clip)), reader.clips(), 1):
                grown.append(process.memory_info().rss / 1e9)
        total = time.perf_counter() - start
    rows = [
        [str(len(grown)), f"{total:.1f}", *(f"{grown[i]:.2f}" for i in (0, len(grown) // 2, -1)), f"{max(grown):.2f}"]
    ]
    head = ["clips", "total s", "GB after the first", "GB halfway", "GB after the last", "maximum GB after a clip"]
    table(f"A run of {n_vols} volumes at 0.8 s, {backend_in_use()}", head, rows)


def noise_run(folder: Path, n_vols: int) -> GridSeries:
    """Write a run of noise in a brain of 230,000 voxels."""
    centre = np.indices(MODEL_GRID_SHAPE).reshape(3, -1) - 47.5
    mask = ((centre / np.array([[36.0], [43.0], [36.0]])) ** 2).sum(0).reshape(MODEL_GRID_SHAPE) < 1
    random = np.random.default_rng(0)
    with GridSeriesWriter(folder, mask, 0.8, n_vols) as writer:
        for _ in range(n_vols):
            writer.append(random.standard_normal((1, int(mask.sum())), dtype=np.float32) * 50 + 500)
    return GridSeries.open(folder)


def gpu(repeats: int) -> None:
    """Measure clips per second by backend, dtype and batch size."""
    if not torch.cuda.is_available():
        print("\nNo GPU is available; nothing was measured.")
        return
    device, rows = torch.device("cuda"), []
    encoder = published_encoder().to(device)
    for size in (1, 2, 4, 8, 16, 32):
        batch = clips(size).to(device)
        copy = gpu_seconds(batch.clone, repeats)
        for name in usable(device):
            for dtype in (torch.float32, torch.bfloat16):
                half = torch.autocast("cuda", dtype) if dtype == torch.bfloat16 else nullcontext()
                try:
                    with backend(name), torch.inference_mode(), half:
                        took = gpu_seconds(partial(encoder, batch), repeats)
                except torch.OutOfMemoryError:
                    rows.append([name, str(dtype), str(size), "out of memory", "", ""])
                    continue
                rows.append(
                    [name, str(dtype), str(size), f"{size / took:.1f}", f"{took / size:.4f}", f"{took / copy:.0f}"]
                )
    head = ["backend", "dtype", "batch", "clips/s", "s per clip", "time relative to copying the clips"]
    table(f"GPU: {torch.cuda.get_device_name()}", head, rows)


def gpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the minimum time of several calls on the device, s, after a warm-up call."""
    work()
    best = float("inf")
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best


def main() -> None:
    """Run one of the benchmarks and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("forward", "training", "products", "stream", "gpu", "once"))
    parser.add_argument("backend", nargs="?", default="native", help="backend of `once`")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: CPU time of one thread")
    parser.add_argument("--volumes", type=int, default=1200, help="length of the run of `stream`")
    arguments = parser.parse_args()
    global clock
    clock = CLOCKS[arguments.clock]
    arguments.threads = 1 if arguments.clock == "cpu" else arguments.threads
    torch.set_num_threads(arguments.threads)
    if arguments.what == "once":
        once(arguments.backend)
        return
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {arguments.threads} threads, {arguments.clock} time, torch {torch.__version__}")
    if arguments.what == "stream":
        stream(arguments.volumes)
    else:
        kinds = {"forward": forward, "training": training, "products": products, "gpu": gpu}
        kinds[arguments.what](arguments.repeats)


if __name__ == "__main__":
    main()
