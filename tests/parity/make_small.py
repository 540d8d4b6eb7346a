"""Make the files of ``cases/`` from the recordings: ``python -m tests.parity.make_small FOLDER``, in the repository.

Nothing is recomputed: weights that can be restored from their seeds (to float32 rounding) are omitted, images are
compressed, and reconstructions, recorded at every second voxel, are kept at every fourth.
"""

from __future__ import annotations

import bz2
import gzip
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from tests.parity.cases import FOLDER, STORED
from tests.parity.weights import Recipe

SEEDS = {
    "encoder_sex": (11, 11, "by kind"),
    "encoder_age_padded_time": (12, 12, "by kind"),
    "encoder_windowed_last_stage": (13, 13, "by kind"),
    "encoder_prompts": (14, 14, "by kind"),
    "encoder_from_2025_pretraining": (61, 61, "by kind"),
    "encoder_sex_2025": (62, 62, "by kind"),
    "mae_random_random": (20, 20, "by kind"),
    "mae_window_random": (20, 20, "by kind"),
    "mae_atlas_tube": (20, 20, "by kind"),
    "mae_two_windows_other_volume": (12, 513, "even"),
    "mae_two_windows_same_volume": (25, 526, "even"),
}
"""For each checkpoint: seed of the initial values, seed of the noise, type of noise."""


def split_checkpoint(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Split a checkpoint into the recipe to restore it and the weights without a seed."""
    content = torch.load(path, weights_only=True)
    weights = content.pop("state_dict")
    first, second, noise = SEEDS[path.stem]
    seeds = {"initial_seed": first, "noise_seed": second, "noise": noise}
    drawn = {k: v for k, v in weights.items() if v.is_floating_point() and not k.startswith("output_head.")}
    for name, made in Recipe(**seeds, shapes={k: tuple(v.shape) for k, v in drawn.items()}).weights().items():
        torch.testing.assert_close(made, drawn[name], rtol=1e-6, atol=1e-7)
    stored = {STORED + name: value.numpy() for name, value in weights.items() if name not in drawn}
    shapes = {name: "x".join(map(str, value.shape)) for name, value in weights.items()}
    means = np.array([value.double().mean() for value in weights.values()])
    return {"checkpoint": content, "seeds": seeds, "shapes": shapes}, stored | {"mean_of_each_weight": means}


def pack_image(path: Path) -> None:
    """Recompress an image with bzip2; its content is unchanged."""
    (FOLDER / path.name.replace(".gz", ".bz2")).write_bytes(bz2.compress(gzip.decompress(path.read_bytes())))


def in_lines(facts: dict) -> str:
    """Format as JSON with one entry per line and inline lists."""
    text = json.dumps(facts, indent=1)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"


def main(originals: Path) -> None:
    """Write all of ``cases/``."""
    FOLDER.mkdir(exist_ok=True)
    for path in sorted(originals.glob("*.safetensors")):
        tensors = {}
        for name, value in load_file(path).items():
            if name == "pred_every_2nd_voxel":
                tensors["pred_every_4th_voxel"] = value.numpy()[:, :, ::2, ::2, ::2]
            else:
                tensors[STORED + name if name.startswith("output_head.") else name] = value.numpy()
        checkpoint = path.with_suffix(".ckpt")
        if checkpoint.exists():
            facts, weights = split_checkpoint(checkpoint)
            tensors |= weights
            (FOLDER / f"{path.stem}.json").write_text(in_lines(facts))
        np.savez_compressed(FOLDER / f"{path.stem}.npz", **tensors)
    for path in originals.glob("*.nii.gz"):
        pack_image(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
