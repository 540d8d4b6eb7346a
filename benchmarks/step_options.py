"""Time and memory of a training step with the options that change them: bf16, and recomputed activations.

    OMP_NUM_THREADS=1 python benchmarks/step_options.py

For each option, a process of its own trains the published encoder for two steps of one clip of noise on the CPU. The
processor time of the second step and the highest memory of the process are printed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch

from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.masking import MaskSettings, sample_mask
from bids_app.training.memory import reuse_freed_memory
from bids_app.training.pretrain import set_checkpointing

OPTIONS = ("float32", "bf16", "checkpointing")


def measure(option: str) -> tuple[float, float]:
    """Train for two steps; return the processor time of the second, s, and the highest memory, GB."""
    reuse_freed_memory()
    torch.manual_seed(0)
    config = EncoderConfig()
    model = MaskedAutoencoder(config)
    set_checkpointing(model, option == "checkpointing")
    clip = torch.randn(1, 1, *config.img_size)
    generator = torch.Generator().manual_seed(0)
    mask = sample_mask(MaskSettings(), 1, config.grid(0), config.window_size, None, generator)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4)
    for _ in range(2):
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=option == "bf16"):
            prediction = model(clip, mask)
        model.loss(prediction.float(), clip, mask).backward()
        optimiser.step()
        optimiser.zero_grad()
    return time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Print one row per option."""
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--only", choices=OPTIONS, help="measure one option in this process")
    only = p.parse_args().only
    if only:
        seconds, memory = measure(only)
        print(f"{only:14} {seconds:6.1f} s {memory:6.1f} GB", flush=True)
        return
    for option in OPTIONS:
        subprocess.run([sys.executable, __file__, "--only", option], check=True)


if __name__ == "__main__":
    main()
