"""Hemisphere and network of regions, from their names: order and blocks of matrices of regions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

NETWORK = re.compile(r"(?:\d+Networks_)?(?P<hemisphere>[LR])H_(?P<network>[A-Za-z]+)(?:_.*)?")
"""Names of Schaefer 2018: ``7Networks_LH_Default_PFC_1``."""
LEFT = re.compile(r"(?:^|[\s_.-])(?:l|lh|left)(?:$|[\s_.-])", re.IGNORECASE)
RIGHT = re.compile(r"(?:^|[\s_.-])(?:r|rh|right)(?:$|[\s_.-])", re.IGNORECASE)
"""A word that names a hemisphere, as in ``Precentral_L``, ``ctx-lh-cuneus`` or ``Left Putamen``."""
HEMISPHERES = {"L": "left", "R": "right", "": "midline"}


@dataclass(frozen=True)
class Block:
    """Regions of one network or hemisphere, next to each other: ``size`` of them, from position ``start``."""

    name: str
    start: int
    size: int


def hemisphere_of(name: str) -> str:
    """Return ``L`` or ``R``; empty if the name of a region has neither or both."""
    match = NETWORK.fullmatch(name)
    if match:
        return match["hemisphere"]
    found = [side for side, pattern in (("L", LEFT), ("R", RIGHT)) if pattern.search(name)]
    return found[0] if len(found) == 1 else ""


def network_of(name: str) -> str:
    """Return the network that the name of a region has; empty if it has none."""
    match = NETWORK.fullmatch(name)
    return match["network"] if match else ""


def order_regions(names: Sequence[str]) -> tuple[list[int], tuple[Block, ...]]:
    """Order regions by network, then hemisphere; without networks by hemisphere: left, right, others.

    Networks keep the order in which they first occur.

    Parameters
    ----------
    names : sequence of str
        In the order of the atlas, which is kept within a block.

    Returns
    -------
    tuple
        Indices of the regions in the new order, and the blocks: networks, or else hemispheres. Without either, the
        order of the atlas, and no block.
    """
    networks, sides = [network_of(name) for name in names], [hemisphere_of(name) for name in names]
    by_network = any(networks)
    if not by_network and not any(sides):
        return list(range(len(names))), ()
    if by_network:
        blocks = [network or "other" for network in networks]
        ranks = {block: rank for rank, block in enumerate(dict.fromkeys(sorted(blocks, key="other".__eq__)))}
    else:
        blocks = [HEMISPHERES[side] for side in sides]
        ranks = {block: rank for rank, block in enumerate(HEMISPHERES.values())}
    side_ranks = {side: rank for rank, side in enumerate(HEMISPHERES)}
    order = sorted(range(len(names)), key=lambda n: (ranks[blocks[n]], side_ranks[sides[n]]))
    found: list[Block] = []
    for position, index in enumerate(order):
        if found and found[-1].name == blocks[index]:
            found[-1] = Block(found[-1].name, found[-1].start, found[-1].size + 1)
        else:
            found.append(Block(blocks[index], position, 1))
    return order, tuple(found)
