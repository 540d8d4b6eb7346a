"""The shape of an encoder, as data that checks itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from bids_app.errors import BadDataError
from bids_app.model.windows import Size4


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder; enough to build it again, and to check that weights fit it.

    Attributes
    ----------
    img_size : (x, y, z, t)
        Voxels and volumes of the largest clip.
    patch_size : (x, y, z, t)
        Voxels and volumes of one token.
    embed_dim : int
        Width of the first stage; each later stage is twice as wide.
    depths : tuple of int
        Blocks of each stage.
    first_window_size, window_size : (X, Y, Z, T)
        Tokens of a window in the first stage and in the others.
    whole_last_stage : bool
        Whether the last stage's windows cover all of space and never shift (``last_layer_full_MSA``).
    prompt_len : int
        Learned tokens in front of each window, in every block; 0 for none.
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
            value = tuple(int(v) for v in getattr(self, name))
            object.__setattr__(self, name, value)
            if not value or min(value) < 1 or (name != "depths" and len(value) != 4):
                raise BadDataError(f"Encoder configuration: {name} is {value}.", "Four sizes of 1 or more are needed.")
        for name in ("in_chans", "embed_dim", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise BadDataError(f"Encoder configuration: {name} is {getattr(self, name)}.", "It must be 1 or more.")
        if self.prompt_len < 0:
            raise BadDataError(f"Encoder configuration: prompt_len is {self.prompt_len}.", "It must be 0 or more.")
        if self.patch_size[3] != 1:
            raise BadDataError(
                f"Encoder configuration: patch_size is {self.patch_size}.", "Time is never merged: its patch is 1."
            )
        for axis, (size, patch) in enumerate(zip(self.img_size[:3], self.patch_size[:3], strict=True)):
            step = patch * 2 ** (len(self.depths) - 1)
            if size % step:
                raise BadDataError(
                    f"Encoder configuration: axis {axis} of img_size {self.img_size} does not divide into "
                    f"{len(self.depths)} stages of patches of {patch}.",
                    f"Its length must be a multiple of {step}.",
                )

    @property
    def n_stages(self) -> int:
        """Number of stages."""
        return len(self.depths)

    def width(self, stage: int) -> int:
        """Channels of a stage."""
        return self.embed_dim * 2**stage

    def grid(self, stage: int) -> Size4:
        """Token grid of a stage for a clip of full size."""
        x, y, z = (s // p // 2**stage for s, p in zip(self.img_size[:3], self.patch_size[:3], strict=True))
        return x, y, z, self.img_size[3]

    def window(self, stage: int) -> Size4:
        """The window asked for in a stage."""
        if self.whole_last_stage and stage == self.n_stages - 1:
            x, y, z, _ = self.grid(stage)
            return x, y, z, self.window_size[3]
        return self.first_window_size if stage == 0 else self.window_size

    @property
    def n_features(self) -> int:
        """Channels of the output."""
        return self.width(self.n_stages - 1)

    def as_dict(self) -> dict[str, Any]:
        """Fields as JSON holds them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderConfig:
        """The configuration that `as_dict` wrote; unknown fields are refused."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise BadDataError(
                f"Encoder configuration: unknown fields {', '.join(unknown)}.",
                "The file was written by another version, or is no encoder.",
            )
        return cls(**values)
