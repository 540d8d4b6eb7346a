"""Reconstruction errors are those of the hidden patches in the brain; what cannot be measured has a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_app.adapters.reconstruction import NO_DECODER, mask_settings, measure_reconstruction
from bids_app.clips import MODEL_GRID_SHAPE, ClipReader, GridSeries
from bids_app.model.checkpoint import Checkpoint, read_checkpoint, save_encoder
from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.masking import MaskSettings, sample_mask

CONFIG = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))
TUBES = MaskSettings("random", "tube", 0.25)


@pytest.fixture(scope="module")
def reader() -> ClipReader:
    rng = np.random.default_rng(0)
    mask = np.zeros(MODEL_GRID_SHAPE, bool)
    mask[20:76, 20:76, 20:76] = True
    image = 500 + 100 * rng.standard_normal(int(mask.sum()))
    return ClipReader(GridSeries((image + 20 * rng.standard_normal((45, len(image)))).astype(np.float32), mask, 0.8))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Autoencoder that predicts 0.3 everywhere."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(CONFIG)
    torch.nn.init.zeros_(model.decoder_pred.weight)
    torch.nn.init.constant_(model.decoder_pred.bias, 0.3)
    info = {"mask": vars(TUBES), "normalisation": "global"}
    path = save_encoder(
        tmp_path / "a.safetensors", CONFIG, model.encoder.state_dict(), "a", decoder=model.decoder_state(), info=info
    )
    return read_checkpoint(path)


def test_errors_are_relative_to_those_of_two_means(checkpoint, reader) -> None:
    found = measure_reconstruction(checkpoint, reader, seed=4)
    assert found.clips == (0, 1)
    assert found.mask == "25% of random patches in space, tube in time"
    generator = torch.Generator().manual_seed(4)
    errors = np.zeros(3)
    for number in found.clips:
        clip = reader.clip(number, "global")[0].numpy()
        mask = sample_mask(TUBES, 1, CONFIG.grid(0), CONFIG.window_size, generator=generator)[0, ..., 0].numpy()
        hidden = np.kron(mask, np.ones((24, 24, 24))).astype(bool) & reader.series.mask
        visible = ~hidden & reader.series.mask
        truth = clip[hidden]
        guesses = (0.3, clip[visible].mean(), truth.mean(axis=1, keepdims=True))
        errors += [((truth - guess) ** 2).sum() for guess in guesses]
    assert found.error == pytest.approx(errors[0] / errors[1], rel=1e-4)
    assert found.dynamics == pytest.approx(errors[0] / errors[2], rel=1e-4)
    assert found.error > 1
    assert found.dynamics > 10  # the image is stronger than its dynamics
    assert found.facts == {"reconstruction_error": found.error, "reconstruction_dynamics": found.dynamics}


def test_what_cannot_be_measured_has_a_reason(checkpoint, reader) -> None:
    cases = {
        NO_DECODER: replace(checkpoint, decoder={}),
        "does not name the masks": replace(checkpoint, info={}),
        "masks of an atlas": replace(checkpoint, info={"mask": {"spatial": "atlas"}}),
        "normalisation of the pre-training is unknown": replace(
            checkpoint, info=checkpoint.info | {"normalisation": "?"}
        ),
    }
    for reason, wrong in cases.items():
        found = measure_reconstruction(wrong, reader)
        assert reason in found.reason
        assert found.facts == {"reconstruction_unknown": found.reason}


def test_an_infinite_reconstruction_is_no_number_of_the_verdict(checkpoint, reader, monkeypatch) -> None:
    decode = MaskedAutoencoder.decode
    monkeypatch.setattr(MaskedAutoencoder, "decode", lambda self, features: decode(self, features) / 0)
    assert "infinite or NaN" in measure_reconstruction(checkpoint, reader).facts["reconstruction_unknown"]


def test_masks_are_those_of_the_published_or_of_our_files(checkpoint) -> None:
    assert mask_settings(checkpoint) == TUBES
    published = replace(checkpoint, info={"spatial_mask": "window", "time_mask": "tube", "mask_ratio": 0.8})
    assert mask_settings(published) == MaskSettings("window", "tube", 0.8)
    assert mask_settings(replace(checkpoint, info={"spatial_mask": "window"})) == MaskSettings()
