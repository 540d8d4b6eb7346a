"""Heads, which predict a task from the encoder's features. Parameters have the names of the published files.

B  batch      C  features      X Y Z T  token grid of the encoder's last stage      O  outputs
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import nn

from bids_app.errors import BadDataError
from bids_app.terminal import first_of

V3_LAYERS, V3_ATTENTION_HEADS, V3_EXPANSION = 6, 8, 4
MAX_WEIGHT = 1e18
"""Largest absolute weight: the squares of larger ones, as in layer norms, exceed float32."""
MAX_LISTED, MAX_LETTERS = 10, 150
"""Keys listed in an error message, and letters of each."""
Built = TypeVar("Built", bound=nn.Module)


def n_outputs(n_classes: int) -> int:
    """Return the number of outputs of a classification head; two classes have one logit with a sigmoid."""
    return 1 if n_classes == 2 else n_classes


def pool(features: torch.Tensor) -> torch.Tensor:
    """Average features over all tokens.

    Parameters
    ----------
    features : torch.Tensor, (B, C, X, Y, Z, T)

    Returns
    -------
    torch.Tensor, (B, C)
        The embedding of each clip.
    """
    return features.mean(dim=(2, 3, 4, 5))


class LinearHead(nn.Module):
    """A linear layer on the mean over tokens (``v1``)."""

    version = "v1"
    last = "head"
    """Name of the linear layer at the end."""

    def __init__(self, n_features: int, outputs: int, n_tokens: int = 0) -> None:
        super().__init__()
        self.n_features, self.outputs = n_features, outputs
        self.head = nn.Linear(n_features, outputs)

    def from_embedding(self, embedding: torch.Tensor) -> torch.Tensor:
        """(B, C) to (B, O)."""
        return self.head(embedding)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z, T) to (B, O)."""
        return self.from_embedding(pool(features))


class TwoLayerHead(LinearHead):
    """Two linear layers, without a nonlinearity between them, on the mean over tokens (``v2``)."""

    version = "v2"

    def __init__(self, n_features: int, outputs: int, n_tokens: int = 0) -> None:
        super().__init__(4 * n_features, outputs)
        self.n_features = n_features
        self.hidden = nn.Linear(n_features, 4 * n_features)

    def from_embedding(self, embedding: torch.Tensor) -> torch.Tensor:
        """(B, C) to (B, O)."""
        return self.head(self.hidden(embedding))


class TokenHead(nn.Module):
    """Transformer layers over a class token and the clip's tokens, as published in 2026 (``v3``).

    Clips with fewer tokens than the head has positions use the first positions, as in the published code.
    """

    version = "v3"
    last = "head"
    """Name of the linear layer at the end."""

    def __init__(self, n_features: int, outputs: int, n_tokens: int = 160, n_layers: int = V3_LAYERS) -> None:
        super().__init__()
        self.n_features, self.outputs = n_features, outputs
        self.cls_token = nn.Parameter(torch.zeros(1, 1, n_features))
        self.pos_embed = nn.Parameter(torch.zeros(1, n_tokens + 1, n_features))
        layers = nn.ModuleList(
            nn.TransformerEncoderLayer(n_features, V3_ATTENTION_HEADS, V3_EXPANSION * n_features, 0.1, batch_first=True)
            for _ in range(n_layers)
        )
        self.transformer_encoder = nn.ModuleDict({"layers": layers})
        self._add_last_layers()

    def _add_last_layers(self) -> None:
        self.norm = nn.LayerNorm(self.n_features)
        self.head = nn.Linear(self.n_features, self.outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z, T) to (B, O)."""
        tokens = features.flatten(2).transpose(1, 2)  # (B, X*Y*Z*T, C)
        n_positions = self.pos_embed.shape[1] - 1
        if tokens.shape[1] > n_positions:
            raise BadDataError(
                f"The v3 head has positions for {n_positions} tokens but received {tokens.shape[1]}.",
                "Use clips of the length that the head was trained on.",
            )
        x = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return self.head(self.norm(self._transform(x + self.pos_embed[:, : x.shape[1]])[:, 0]))

    def _transform(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) to the same shape; tokens attend to the tokens of their own clip."""
        for layer in cast(nn.ModuleList, self.transformer_encoder["layers"]):
            x = layer(x)
        return x


class ConstantTokenHead(TokenHead):
    """The ``v3`` head as published in 2025, whose output is the same for every clip.

    The published code ran its layers without ``batch_first``: a token attends to the same token of the other clips of a
    batch, and never to the other tokens of its clip. The class tokens of all clips are equal, so that the class token
    receives nothing of the clip. The output of any batch is therefore that of the class token alone.
    """

    version = "v3-2025"
    last = "mlp_head.1"

    def _add_last_layers(self) -> None:
        self.mlp_head = nn.Sequential(nn.LayerNorm(self.n_features), nn.Linear(self.n_features, self.outputs))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z, T) to (B, O), equal rows."""
        x = self.cls_token + self.pos_embed[:, :1]
        return self.mlp_head(self._transform(x)[:, 0]).expand(len(features), -1)


Head = LinearHead | TokenHead
HEADS: dict[str, type[Head]] = {h.version: h for h in (LinearHead, TwoLayerHead, TokenHead, ConstantTokenHead)}
UNUSED_KEYS = ("norm.weight", "norm.bias")
"""Keys of older ``v1`` and ``v2`` heads, never applied."""
LAYER = re.compile(r"transformer_encoder\.layers\.(\d+)\.")


def head_version(state: Mapping[str, torch.Tensor]) -> str:
    """Infer the version of a head from its keys; ``clf_head_version`` is not in all published files.

    Raises
    ------
    BadDataError
        The keys are those of no known head.
    """
    names = {key.partition(".")[0] for key in state}
    if "cls_token" in names:
        return "v3-2025" if "mlp_head" in names else "v3"
    if "hidden" in names:
        return "v2"
    if "head" in names:
        return "v1"
    raise BadDataError(
        f"The head is of an unknown kind, with the tensors {_listed(sorted(state))}.",
        f"Known are {', '.join(HEADS)}, as published. For embeddings only, use --level minimal.",
    )


def output_layer(state: Mapping[str, torch.Tensor]) -> str:
    """Return the name of the linear layer at the end of a head, from the head's keys."""
    return HEADS[head_version(state)].last


def build_head(state: Mapping[str, torch.Tensor]) -> tuple[Head, tuple[str, ...]]:
    """Build a head that fits a state dict, and load it strictly.

    Parameters
    ----------
    state : mapping of str to torch.Tensor
        Keys without prefix (``head.weight``, ...).

    Returns
    -------
    head : nn.Module
        In evaluation mode.
    unused_keys : tuple of str
        Known keys that are never applied.
    """
    version = head_version(state)
    is_transformer = issubclass(HEADS[version], TokenHead)
    first = {"v1": "head.weight", "v2": "hidden.weight"}.get(version, "cls_token")
    last = f"{HEADS[version].last}.weight"
    required = (first, last, *(("pos_embed",) if is_transformer else ()))
    if missing := [key for key in required if key not in state]:
        raise BadDataError(f"The head has no {missing[0]}.", "Download the checkpoint again; it is incomplete.")
    sizes = [*state[first].shape[-1:], *state[last].shape[:1]]
    if is_transformer:
        sizes += [state["pos_embed"].numel() // max(sizes[0], 1) - 1] if sizes else []
        sizes += [len({found[1] for key in state if (found := LAYER.match(key))})]
    if len(sizes) < 2 or min(sizes) < 1 or (is_transformer and (len(sizes) < 4 or sizes[0] % V3_ATTENTION_HEADS)):
        shapes = ", ".join(f"{k} {tuple(state[k].shape)}" for k in required)
        raise BadDataError(
            f"The head has weights of an invalid shape ({shapes}).", "Download the file again; it is damaged."
        )
    unused_keys = () if is_transformer else tuple(k for k in UNUSED_KEYS if k in state)
    used = {k: v for k, v in state.items() if k not in unused_keys}
    head = build_and_load(lambda: HEADS[version](*sizes), used, "head")
    return head.eval(), unused_keys


def build_and_load(build: Callable[[], Built], state: Mapping[str, torch.Tensor], what: str) -> Built:
    """Build a module and load a state dict, as `load_strictly`; nothing is allocated if it does not fit.

    A file of a few hundred bytes can claim any size. The module is therefore built on the ``meta`` device first.

    Parameters
    ----------
    build : callable
        Makes the module.
    state : mapping of str to torch.Tensor
    what : str
        Name of the module in the error message.
    """
    try:
        with torch.device("meta"):
            expected = build().state_dict()
    except (RuntimeError, OverflowError) as error:  # a size of more than 64 bits
        raise BadDataError(f"The sizes of the {what} are impossible ({error}).", "Check the file.") from error
    _check_fit(expected, state, what)
    module = build()
    _load(module, state)
    return module


def check_head(head: Head, n_features: int) -> None:
    """Raise a `BadDataError` if a head reads another number of features than an encoder has."""
    if head.n_features != n_features:
        raise BadDataError(
            f"The head reads {head.n_features} features, but the encoder has {n_features}.",
            "Download the file again, or give the model that it belongs to.",
        )


def check_numbers(state: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise a `BadDataError` if tensors of a module are not finite numbers below `MAX_WEIGHT`."""
    _check_fit(state, state, what)


def load_strictly(module: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Load a state dict; raise an error that lists missing, unused, misshapen and non-finite keys.

    Parameters
    ----------
    module : nn.Module
    state : mapping of str to torch.Tensor
    what : str
        Name of the module in the error message.
    """
    own = module.state_dict()
    _check_fit(own, state, what)
    _load(module, state)


def _load(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    module.load_state_dict({k: state[k].to(v.dtype) for k, v in module.state_dict().items()}, strict=True)


def _check_fit(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise an error that lists the keys of a state dict that do not fit a module's own."""
    faults = {
        "missing": sorted(set(own) - set(state)),
        "unused keys": sorted(set(state) - set(own)),
        "misshapen": [
            f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
            for k in own
            if k in state and state[k].shape != own[k].shape
        ],
        "not numbers": [k for k in own if k in state and (state[k].is_complex() or state[k].dtype == torch.bool)],
    }
    if not any(faults.values()):
        faults["not finite"] = [k for k in own if not torch.isfinite(state[k].float()).all()]
    if not any(faults.values()):
        faults[f"above {MAX_WEIGHT:g}"] = [k for k in own if not _is_moderate(state[k])]
    found = "; ".join(f"{kind}: {_listed(keys)}" for kind, keys in faults.items() if keys)
    if found:
        raise BadDataError(
            f"The weights do not fit the {what} ({found}).",
            "Check that the file is complete and belongs to this model.",
        )


def _is_moderate(weight: torch.Tensor) -> bool:
    return weight.numel() == 0 or float(weight.float().abs().max()) <= MAX_WEIGHT


def _listed(keys: Sequence[str]) -> str:
    return first_of([key[:MAX_LETTERS] for key in keys], MAX_LISTED)
