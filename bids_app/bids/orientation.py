"""Which way round an image is stored: what was found of its left and right, as a value that decisions can rest on.

Preprocessing finds it, the verdict judges by it, and sidecars hold it. The sentence for people is made here alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class LeftRight(Enum):
    """What was found of an image's left and right; the values are those of sidecars."""

    AS_STORED = "as stored"
    """They are where the affine says."""
    FLIPPED = "flipped"
    """The brain is more like the mirror image of the template."""
    UNKNOWN = "unknown"
    """The image does not show it."""
    NOT_CHECKED = "not checked"
    """A raw image, which was not compared with anything."""


@dataclass(frozen=True)
class Orientation:
    """Left and right of an image, and what it was compared with.

    Attributes
    ----------
    left_right : LeftRight
    same_as : tuple of str
        The participant's own images that show the same side (``T1w``); empty where only the template was looked at.
    """

    left_right: LeftRight = LeftRight.NOT_CHECKED
    same_as: tuple[str, ...] = ()

    @property
    def in_words(self) -> str:
        """What is known of left and right, for people."""
        if self.same_as:
            return f"as in the participant's own {' and '.join(self.same_as)}"
        return WORDS[self.left_right]


WORDS = {
    LeftRight.AS_STORED: "as in the template",
    LeftRight.FLIPPED: "perhaps exchanged",
    LeftRight.UNKNOWN: "cannot be told from the image",
    LeftRight.NOT_CHECKED: "by the affine of the raw image, which nothing here can check",
}
