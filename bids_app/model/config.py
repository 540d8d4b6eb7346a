"""Configuration of an encoder, with validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from bids_app.errors import BadDataError
from bids_app.model.windows import Size4

MAX_SIZE = 2**12
"""Largest number in a configuration; the published one has 96 at most. Products of sizes then fit into 64 bits."""
MAX_STAGES, MAX_BLOCKS = 8, 256
"""Largest number of stages, and of blocks of all stages; the published configuration has 4 and 12."""


def _is_size(value: Any, lowest: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= MAX_SIZE


@dataclass(frozen=True)
class EncoderConfig:
    """Configuration of an encoder: sufficient to build it and to check that weights fit.

    Attributes
    ----------
    img_size : (x, y, z, t)
        Size of the largest clip, in voxels and volumes.
    patch_size : (x, y, z, t)
        Size of one token, in voxels and volumes.
    embed_dim : int
        Width of the first stage; each later stage is twice as wide.
    depths : tuple of int
        Number of blocks in each stage.
    first_window_size, window_size : (X, Y, Z, T)
        Window size, in tokens, of the first stage and of the others.
    whole_last_stage : bool
        The last stage's windows cover the whole space without shifts (``last_layer_full_MSA``).
    prompt_len : int
        Number of prompt tokens in front of each window, in every block.
    """

    img_size: Size4 = (96, 96, 96, 20)
    in_chans: int = 1
    patch_size: Size4 = (6, 6, 6, 1)
    embed_dim: int = 36
    depths: tuple[int, ...] = (2, 2, 6, 2)
    first_window_size: Size4 = (4, 4, 4, 4)
    window_size: Size4 = (4, 4, 4, 4)
    whole_last_stage: bool = True
    mlp_ratio: int = 4
    prompt_len: int = 0

    def __post_init__(self) -> None:
        for name in ("img_size", "patch_size", "first_window_size", "window_size", "depths"):
            given = getattr(self, name)
            value = tuple(given)[: MAX_STAGES + 1] if isinstance(given, list | tuple) else ()
            n_given = (1, MAX_STAGES) if name == "depths" else (4, 4)
            if not n_given[0] <= len(value) <= n_given[1] or not all(_is_size(v) for v in value):
                raise BadDataError(
                    f"Encoder configuration: {name} is {str(given)[:100]}.",
                    f"Give {' to '.join(map(str, dict.fromkeys(n_given)))} whole numbers from 1 to {MAX_SIZE}.",
                )
            object.__setattr__(self, name, value)
        for name, lowest in (("in_chans", 1), ("embed_dim", 1), ("mlp_ratio", 1), ("prompt_len", 0)):
            number = getattr(self, name)
            if not _is_size(number, lowest):
                raise BadDataError(
                    f"Encoder configuration: {name} is {str(number)[:100]}.",
                    f"Give a whole number from {lowest} to {MAX_SIZE}.",
                )
        if not isinstance(self.whole_last_stage, bool):
            raise BadDataError(
                f"Encoder configuration: whole_last_stage is {str(self.whole_last_stage)[:100]}.", "Give true or false."
            )
        if sum(self.depths) > MAX_BLOCKS:
            raise BadDataError(
                f"Encoder configuration: depths is {self.depths}, {sum(self.depths)} blocks.",
                f"Give at most {MAX_BLOCKS} blocks.",
            )
        if self.patch_size[3] != 1:
            raise BadDataError(
                f"Encoder configuration: patch_size is {self.patch_size}.", "The temporal patch size must be 1."
            )
        for axis, (size, patch) in enumerate(zip(self.img_size[:3], self.patch_size[:3], strict=True)):
            step = patch * 2 ** (len(self.depths) - 1)
            if size % step:
                raise BadDataError(
                    f"Encoder configuration: axis {axis} of img_size {self.img_size} is not divisible by "
                    f"patches of {patch} over {len(self.depths)} stages.",
                    f"Give a multiple of {step}.",
                )

    @property
    def n_stages(self) -> int:
        """Number of stages."""
        return len(self.depths)

    def width(self, stage: int) -> int:
        """Return the number of channels of a stage."""
        return self.embed_dim * 2**stage

    def grid(self, stage: int) -> Size4:
        """Return the token grid of a stage for a clip of full size."""
        x, y, z = (s // p // 2**stage for s, p in zip(self.img_size[:3], self.patch_size[:3], strict=True))
        return x, y, z, self.img_size[3]

    def window(self, stage: int) -> Size4:
        """Return the configured window size of a stage."""
        if self.whole_last_stage and stage == self.n_stages - 1:
            x, y, z, _ = self.grid(stage)
            return x, y, z, self.window_size[3]
        return self.first_window_size if stage == 0 else self.window_size

    @property
    def n_features(self) -> int:
        """Number of output channels."""
        return self.width(self.n_stages - 1)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderConfig:
        """Build a configuration from the output of `as_dict`; unknown fields are an error."""
        if not isinstance(values, Mapping):
            raise BadDataError(
                f"Encoder configuration: is a {type(values).__name__}, not an object.", "Give the fields of a model."
            )
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise BadDataError(
                f"Encoder configuration: unknown fields {', '.join(unknown)}.",
                "The file is not an encoder, or was written by another version of neurostorm.",
            )
        return cls(**values)
