"""Checks of an adapter without its encoder, which may not be on this machine."""

from __future__ import annotations

from bids_app.adapters.file import Adapter
from bids_app.clips import MODEL_GRID_SHAPE
from bids_app.errors import BadDataError
from bids_app.model.checkpoint import State, naming
from bids_app.model.config import EncoderConfig
from bids_app.model.heads import build_head, check_head, check_numbers


def check_grid(config: EncoderConfig, where: object) -> None:
    """Raise a `BadDataError` if an encoder reads another grid than that to which scans are resampled."""
    if config.img_size[:3] != MODEL_GRID_SHAPE:
        grid, own = (" x ".join(map(str, size)) for size in (config.img_size[:3], MODEL_GRID_SHAPE))
        raise BadDataError(
            f"{where}: the encoder reads clips of {grid} voxels, but scans are resampled to {own} voxels of 2 mm.",
            f"Give an encoder of {own} voxels; the number of volumes of a clip is free.",
        )


def check_alone(adapter: Adapter) -> None:
    """Check that all tensors of an adapter are usable, fit each other and fit the card.

    `AdaptedModel` checks the same when an encoder is adapted, and that the adapter fits this encoder.

    Raises
    ------
    BadDataError
        They do not; the message names the file.
    """
    where = adapter.path or adapter.card.name
    with naming(where, "the weights"):
        check_numbers(adapter.encoder, "encoder")
        n_features = _check_head(adapter, adapter.head)
        if adapter.twin:
            _check_head(adapter, adapter.twin, n_features)
    for name, domain in adapter.domains.items():
        expected = len(adapter.card.signal) if name == "signal" else n_features
        if len(domain.mean) != expected:
            raise BadDataError(
                f"{where}: the reference statistics ({name}) have {len(domain.mean)} features, but "
                f"{'the card lists' if name == 'signal' else 'the head reads'} {expected}.",
                "Download the adapter's file again.",
            )


def _check_head(adapter: Adapter, state: State, n_features: int | None = None) -> int:
    """Check a head, and return the number of features that it reads."""
    head, _ = build_head(state)
    check_head(head, n_features or head.n_features)
    if head.outputs != adapter.card.n_outputs:
        raise BadDataError(
            f"The head has {head.outputs} outputs, but the card requires {adapter.card.n_outputs}.",
            "Download the file again.",
        )
    return head.n_features
