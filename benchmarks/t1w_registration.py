"""T1w images of whole heads, registered to the template in several ways and judged with the same tissue maps.

    python benchmarks/t1w_registration.py FOLDER --data DIR [--scans NAME ...] [--ways brain head correlation]

FOLDER and ``--data`` are those of `gates.py`: anatomies that are in FOLDER are not computed again. All ways start from
the same bias-corrected image at 2 mm:

- brain: the present registration, of the brains, to MNI152NLin6Asym;
- head: the former one, of the whole heads, to MNI152NLin2009aSym, and on by the packaged transform;
- correlation: the brains to MNI152NLin6Asym by SyN with cross-correlation, to the full resolution of 2 mm.

r, MI, grey and white are those of `real_scans.py`, with the tissue maps of MNI152NLin6Asym.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from gates import ORDER, Bench
from real_scans import compare_with_template
from template import AFFINE, CORRELATION, OTHER_SPACE

from bids_app.catalog.templates import MODEL_SPACE, load_template
from bids_app.errors import RegistrationError
from bids_app.preprocess.anatomical import Anatomy
from bids_app.preprocess.io.images import read_volume
from bids_app.preprocess.registration.ants import Image, register
from bids_app.preprocess.registration.spaces import chain_between
from bids_app.preprocess.registration.t1w_to_template import align_with_template, attempts_for
from bids_app.preprocess.registration.transforms import Chain

WAYS = ("brain", "head", "correlation")


def chains_of(way: str, anatomy: Anatomy, out_dir: Path) -> tuple[Chain, Chain]:
    """Register a T1w in one of `WAYS`; return the transforms from points of MNI152NLin6Asym to the T1w, and back."""
    if way == "brain":
        return Chain.load(anatomy.chain), Chain.load(anatomy.inverse)
    image = Image(*read_volume(anatomy.image))
    if way == "head":
        found, _, _ = align_with_template(load_template(OTHER_SPACE), image, anatomy.source.name, out_dir, 1)
        back = found.inverse.then(chain_between(OTHER_SPACE, MODEL_SPACE))
        return chain_between(MODEL_SPACE, OTHER_SPACE).then(found.chain), back
    brain = read_volume(anatomy.mask)[0] > 0.5
    first = next(iter(attempts_for(load_template(MODEL_SPACE), image, brain)))
    stages = (AFFINE, CORRELATION)
    found = register(first.fixed, first.moving, first.near, stages, out_dir, start=first.starts[0], name="correlation")
    return found.chain, found.inverse


def main() -> int:
    """Register all T1w images and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--scans", nargs="+", choices=ORDER, default=["oneback", "prisma", "xa30"], metavar="NAME")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.folder, options.data, options.scans)
    print("| T1w | way | r | MI | grey | white | CPU s |\n|" + " --- |" * 7)
    for name in (name for name in bench.scans if bench.scans[name].t1w):
        anatomy = bench.anatomy(name)
        image, mask = Image(*read_volume(anatomy.image)), read_volume(anatomy.mask)[0] > 0.5
        for way in options.ways:
            out = options.folder / "t1w" / f"{name}_{way}"
            out.mkdir(parents=True, exist_ok=True)
            start = time.process_time()
            try:
                chains = chains_of(way, anatomy, out)
            except RegistrationError as error:
                print(f"| {name} | {way} | {error.message} |  |  |  |  |", flush=True)
                continue
            spent = f"{time.process_time() - start:.0f}" if way != "brain" else ""
            found = compare_with_template(image, mask, MODEL_SPACE, *chains).values()
            print(f"| {name} | {way} | {' | '.join(f'{value:.3f}' for value in found)} | {spent} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
