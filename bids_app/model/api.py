"""Loading of models: `load_model` returns an encoder, and its head if the file has one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from torch import nn

from bids_app.errors import UsageError
from bids_app.model.checkpoint import Checkpoint, naming, read_checkpoint, weights_sha256
from bids_app.model.device import check_device, choose_device
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.model.heads import build_and_load, build_head, check_head
from bids_app.model.mae import MaskedAutoencoder, autoencoder_from
from bids_app.model.scan import backend_in_use
from bids_app.settings import HUB_PREFIX
from bids_app.terminal import VERBOSE

log = logging.getLogger(__name__)


class Model(nn.Module):
    """An encoder with its weights and its head.

    Attributes
    ----------
    path : pathlib.Path
    name : str
    weights_sha256 : str
        Hash of the encoder's tensors, identical in every file format; adapters refer to it.
    config : EncoderConfig
    encoder : Encoder
    head : nn.Module or None
    unused_keys : tuple of str
        Keys of the file that the model does not use.
    info : dict
        Metadata of the file: hyperparameters, or task, labels and licence.
    demonstration : bool
        The model is for demonstration only; every output states this.
    """

    def __init__(self, checkpoint: Checkpoint, name: str | None = None, with_head: bool = True) -> None:
        super().__init__()
        self.path = checkpoint.path
        self.name = name or checkpoint.name
        self.config: EncoderConfig = checkpoint.config
        self.info = checkpoint.info
        self.demonstration = checkpoint.demonstration
        weights = checkpoint.encoder | checkpoint.prompts
        self.encoder = build_and_load(lambda: Encoder(checkpoint.config), weights, f"encoder in {checkpoint.path}")
        self.weights_sha256 = weights_sha256(checkpoint.encoder)
        self.head: nn.Module | None = None
        unused: tuple[str, ...] = ()
        if checkpoint.head and with_head:
            with naming(checkpoint.path, "the head"):
                self.head, unused = build_head(checkpoint.head)
                check_head(self.head, self.config.n_features)
        self.unused_keys = (*checkpoint.unused_keys, *checkpoint.decoder, *(f"head.{k}" for k in unused))
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.encoder.parameters()).device

    def encode(self, clips: torch.Tensor) -> torch.Tensor:
        """Encode clips.

        Parameters
        ----------
        clips : torch.Tensor, (B, 1, x, y, z, t)

        Returns
        -------
        torch.Tensor, (B, C, X, Y, Z, T)
        """
        return self.encoder(clips)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Map (B, 1, x, y, z, t) to the head's raw outputs (B, O); two classes have one logit."""
        if self.head is None:
            raise UsageError(f"The model {self.name} has no head.", "Use encode, or apply an adapter.")
        return self.head(self.encode(clips))


def load_model(path_or_name: str | Path, device: str | torch.device = "cpu", with_head: bool = True) -> Model:
    """Load an encoder and its head.

    Parameters
    ----------
    path_or_name : str or Path
        A checkpoint (``.ckpt`` of the published code, or our ``.safetensors``), or a name in the catalog. Nothing is
        downloaded; if the model is not in the cache, the error's hint is the command to fetch it.
    device : str or torch.device
        ``auto`` is the GPU if there is one, else the CPU.
    with_head : bool
        Also load the head, which must then be of a known version.

    Returns
    -------
    Model
        In evaluation mode; its parameters do not require gradients.
    """
    check_device(str(device))
    device = choose_device(str(device))
    path, name = _resolve(path_or_name)
    checkpoint = read_checkpoint(path)
    model = Model(checkpoint, name, with_head)
    if model.unused_keys:
        names = ", ".join(model.unused_keys)
        log.log(VERBOSE, "%s: %d keys of the file are not used: %s", path, len(model.unused_keys), names)
    log.log(VERBOSE, "%s, encoder %s…, scan backend %s", model.name, model.weights_sha256[:12], backend_in_use(device))
    return model.to(device)


def load_autoencoder(path_or_name: str | Path, device: str | torch.device = "cpu") -> MaskedAutoencoder:
    """Load encoder and decoder of a pre-training file; parameters as in `load_model`.

    Returns
    -------
    MaskedAutoencoder
        In evaluation mode; its parameters require gradients.
    """
    path, _ = _resolve(path_or_name)
    return autoencoder_from(read_checkpoint(path)).eval().to(device)


def _resolve(path_or_name: str | Path) -> tuple[Path, str | None]:
    """Return path and name of a model: an existing file, or else an entry of the catalog or a file of the hub.

    The name is None for files that are not in the catalog: theirs is in the file.
    """
    if not isinstance(path_or_name, str | Path):
        raise UsageError(
            f"A model is a name or a file, not {type(path_or_name).__name__}.", "Give the name as a string, or a path."
        )
    path = Path(path_or_name)
    is_file = not str(path_or_name).startswith(HUB_PREFIX) and path.suffix in (".ckpt", ".safetensors", ".pt", ".pth")
    if os.path.isfile(path) or isinstance(path_or_name, Path) or is_file:
        return path, None
    from bids_app.catalog.models import find_model, weights_path  # the catalog is only needed for names

    entry = find_model(str(path_or_name))
    return weights_path(entry), None if entry.referenced else entry.name
