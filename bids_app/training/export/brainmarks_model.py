"""Model of Brainmarks for exports of NeuroSTORM: passes the embeddings of a dataset on, as they are.

Copied into each export, into ``brainmarks/models``; Brainmarks finds it there, and NeuroSTORM need not be installed.
"""

from __future__ import annotations

from typing import Any

from brainmarks.models.base import Embeddings, ModelWrapper
from brainmarks.models.registry import register_model


class NeurostormEmbeddings(ModelWrapper):
    """Embeddings that were computed before."""

    __space__ = "neurostorm_embeddings"

    def forward(self, batch: dict[str, Any]) -> Embeddings:
        """Return ``bold`` (B, 1, C), the embedding of each run, as ``patch_embeds``; there are no others."""
        return Embeddings(cls_embeds=None, reg_embeds=None, patch_embeds=batch["bold"])


@register_model
def neurostorm_embeddings() -> NeurostormEmbeddings:
    """Return the model."""
    return NeurostormEmbeddings()
