"""Left-right orientation of an image.

Preprocessing determines it, the verdict depends on it, and sidecars store it. Its wording is defined here only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class LeftRight(Enum):
    """Result of the left-right check; the values are those of sidecars."""

    AS_STORED = "as stored"
    """Left and right agree with the affine."""
    FLIPPED = "flipped"
    """The brain is more similar to the mirror image of the template."""
    UNKNOWN = "unknown"
    """The image does not show left and right."""
    NOT_CHECKED = "not checked"
    """A raw image, which has no reference for the check."""


@dataclass(frozen=True)
class Orientation:
    """Left-right orientation of an image, and its reference.

    Attributes
    ----------
    left_right : LeftRight
    same_as : tuple of str
        The participant's own images with the same orientation (``T1w``); empty if only the template was compared.
    """

    left_right: LeftRight = LeftRight.NOT_CHECKED
    same_as: tuple[str, ...] = ()

    @property
    def in_words(self) -> str:
        """Describe the orientation in words."""
        if self.same_as:
            return f"as in the participant's own {' and '.join(self.same_as)}"
        return WORDS[self.left_right]


WORDS = {
    LeftRight.AS_STORED: "as in the template",
    LeftRight.FLIPPED: "possibly left-right flipped",
    LeftRight.UNKNOWN: "not visible in the image",
    LeftRight.NOT_CHECKED: "by the affine of the raw image (not checked)",
}
