"""The encoder, its checkpoints and its heads; `load_model` is the door."""

from __future__ import annotations

from bids_app.model.api import Model, load_autoencoder, load_model
from bids_app.model.encoder import Encoder, EncoderConfig

__all__ = ["Encoder", "EncoderConfig", "Model", "load_autoencoder", "load_model"]
