"""Masked pre-training: equal losses for equivalent settings, and region weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.masking import AtlasPatches, MaskSettings
from bids_app.training.data.augmentation import Augmentation
from bids_app.training.data.loader import ClipBatches
from bids_app.training.optimiser import LoopSettings
from bids_app.training.pretrain import PretrainSettings, count_region_patches, pretrain, region_weights
from bids_app.training.processes import fabric_for
from tests.helpers.scripts import ENVIRONMENT

DOCUMENT = Path(__file__).parents[2] / "docs" / "published.md"
SMALL = EncoderConfig(img_size=(8, 8, 8, 20), patch_size=(2, 2, 2, 1), embed_dim=8, depths=(1, 1))
LOOP = LoopSettings(epochs=2, learning_rate=1e-3)


@dataclass(frozen=True)
class SmallScan:
    """A clip source of smooth noise with 8 x 8 x 8 voxels."""

    seed: int
    n_vols: int = 44
    participant: str = "a"
    clip_volumes: int = 20

    @property
    def n_clips(self) -> int:
        return self.n_vols // 20

    def clip(self, start: int) -> torch.Tensor:
        values = torch.randn(8, 8, 8, self.n_vols, generator=torch.Generator().manual_seed(self.seed))
        return values[None, ..., start : start + 20].cumsum(1) / 4


def make_autoencoder() -> MaskedAutoencoder:
    torch.manual_seed(7)
    return MaskedAutoencoder(SMALL)


def curve(settings: PretrainSettings, batch_size: int = 4, **more) -> list[float]:
    batches = ClipBatches(tuple(SmallScan(k) for k in range(4)), batch_size)
    return [row["loss"] for row in pretrain(make_autoencoder(), batches, settings, **more)]


def atlas() -> AtlasPatches:
    labels = torch.zeros(8, 8, 8, dtype=torch.int64)
    labels[:4], labels[4:, :4], labels[7, 7, 7] = 1, 2, 3
    return AtlasPatches.from_volume(labels, (2, 2, 2))


def test_checkpointing_does_not_change_the_losses():
    settings = PretrainSettings(loop=LOOP)
    assert curve(replace(settings, checkpointing=True)) == pytest.approx(curve(settings), rel=1e-5)


def test_accumulated_batches_equal_a_larger_batch():
    settings = PretrainSettings(MaskSettings("atlas", "tube", 0.5, "soft"), None, LOOP)
    accumulated = replace(settings, loop=replace(LOOP, accumulate=2))
    assert curve(accumulated, 2, atlas=atlas()) == pytest.approx(curve(settings, 4, atlas=atlas()), rel=1e-4)


def test_half_precision_gives_similar_losses():
    settings = PretrainSettings(strd=None, loop=LOOP)
    half = curve(settings, fabric=fabric_for(precision="bf16-mixed"))
    assert half != curve(settings)
    assert half == pytest.approx(curve(settings), rel=0.02)


def test_tokens_of_other_masks_are_not_trained():
    model = make_autoencoder()
    before = {name: value.clone() for name, value in model.named_parameters()}
    batches = ClipBatches((SmallScan(1),), 2)
    pretrain(model, batches, PretrainSettings(MaskSettings("random", "tube"), loop=LOOP))
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert "mask_token" in changed
    assert not changed & {"window_mask_token", "atlas_mask_token"}
    assert all(p.requires_grad for p in model.parameters())


def test_region_weights_balance_or_weight_regions():
    own = atlas()
    equal = region_weights(own)
    sums = [float((equal * own.fractions[k]).sum()) for k in range(2)]
    assert sums[0] == pytest.approx(sums[1], rel=0.05)  # one region is twice as large
    assert equal[2, 3, 1] == 0
    named = region_weights(own, {2: 3.0})
    assert float(named[3, 1, 1] / named[0, 0, 0]) == pytest.approx(3.0)
    settings = PretrainSettings(MaskSettings("random", "tube"), loop=LOOP)
    assert curve(settings, weights=named) != curve(settings)


def test_unresolved_regions_are_reported():
    rows = count_region_patches(atlas(), "majority", {1: "left"})
    assert rows[0] == {"index": 1, "name": "left", "patches": 32.0, "resolved": True}
    assert [row["resolved"] for row in count_region_patches(atlas(), "pure", {})] == [True, True, False]


def test_augmented_training_is_reproducible():
    settings = PretrainSettings(loop=LOOP, augment=Augmentation(p_affine=1, p_noise=1, p_smooth=1))
    assert curve(settings) == curve(settings)
    assert curve(settings) != curve(replace(settings, augment=None))


def test_the_held_out_loss_falls_and_ignores_augmentation_and_dropout():
    """One and the same model has the same held-out loss whatever it is trained with."""
    held_out = (SmallScan(11), SmallScan(12))
    batches = ClipBatches(tuple(SmallScan(k) for k in range(4)), 4)
    first = []
    for augment, strd in ((None, None), (Augmentation(p_affine=1, p_noise=1), (5, 5))):
        still = PretrainSettings(augment=augment, strd=strd, loop=replace(LOOP, epochs=1, learning_rate=1e-12))
        first.append(pretrain(make_autoencoder(), batches, still, held_out=held_out)[0]["held_out"])
    assert first[0] == pytest.approx(first[1], rel=1e-6)
    settings = PretrainSettings(loop=replace(LOOP, epochs=6, learning_rate=5e-3))
    rows = pretrain(make_autoencoder(), batches, settings, held_out=held_out)
    assert rows[-1]["held_out"] < 0.98 * first[0]


TWO_PROCESSES = """
from tests.training.test_pretrain import LOOP, SMALL, SmallScan, atlas, make_autoencoder
from bids_app.model.masking import MaskSettings
from bids_app.training.data.loader import ClipBatches
from bids_app.training.processes import Layout, fabric_for
from bids_app.training.pretrain import PretrainSettings, pretrain
from pathlib import Path

fabric = fabric_for("cpu", Layout(1, 2))
fabric.launch()
batches = ClipBatches(tuple(SmallScan(k) for k in range(4)), 2, shard=(fabric.global_rank, fabric.world_size))
settings = PretrainSettings(MaskSettings("atlas", "random", 0.5), loop=LOOP)
pretrain(make_autoencoder(), batches, settings, Path({out!r}), atlas(), fabric=fabric)
"""


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch_size(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(out=str(tmp_path / "two")))
    subprocess.run([sys.executable, str(script)], check=True, timeout=280, env=ENVIRONMENT)
    settings = PretrainSettings(MaskSettings("atlas", "random", 0.5), loop=LOOP)
    curve(settings, 4, folder=tmp_path / "one", atlas=atlas())
    one, two = (np.loadtxt(tmp_path / name / "steps.csv", delimiter=",", skiprows=1) for name in ("one", "two"))
    assert one.shape == (4, 5)
    assert two == pytest.approx(one, rel=1e-4)


def test_the_fields_of_a_configuration_are_documented_with_the_published_values():
    published = asdict(EncoderConfig())
    documented = {}
    for names, value in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \|", DOCUMENT.read_text(), re.MULTILINE):
        documented |= dict.fromkeys(re.findall(r"`(\w+)`", names), value)
    found = {name: json.loads(documented.get(name, "null")) for name in published}
    assert found == json.loads(json.dumps(published))
