"""T1w images of whole heads, registered to the template in several ways and judged with the same tissue maps.

    python benchmarks/t1w_registration.py FOLDER --data DIR [--scans NAME ...] [--ways own syn head correlation]

FOLDER and ``--data`` are those of `gates.py`: anatomies that are in FOLDER are not computed again. All ways start from
the same bias-corrected image at 2 mm:

- own: the present registration, of the brains, to MNI152NLin6Asym;
- syn: the same affine alignment, then SyN of ANTs with mutual information, as the command did formerly (with 30
  instead of 10 iterations at 2 mm if the voxels of the T1w are larger than 2 mm);
- head: the present one, of the whole heads, to MNI152NLin2009aSym, and on by the packaged transform;
- correlation: affine, then SyN of ANTs with cross-correlation, to the full resolution of 2 mm.

r, MI, grey and white are those of `real_scans.py`, with the tissue maps of MNI152NLin6Asym. Jacobian: smallest and
largest determinant in the template's brain. Error: of the transform followed by its inverse, 99th percentile in the
brain, mm. CPU s: of the deformation only ("own", "syn"), or of the whole registration.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from gates import ORDER, Bench
from nibabel.affines import voxel_sizes
from real_scans import compare_with_template
from template import AFFINE, CORRELATION, OTHER_SPACE

from bids_app.catalog.templates import MODEL_SPACE, load_template
from bids_app.errors import RegistrationError
from bids_app.preprocess.anatomical import WORKING_MM, Anatomy
from bids_app.preprocess.io.headers import load_nifti
from bids_app.preprocess.io.images import read_volume
from bids_app.preprocess.registration.ants import Image, Stage, register
from bids_app.preprocess.registration.diffeomorphic import register_diffeomorphically
from bids_app.preprocess.registration.spaces import chain_between
from bids_app.preprocess.registration.t1w_to_template import align_with_template, attempts_for
from bids_app.preprocess.registration.transforms import Chain, Linear, grid_points

WAYS = ("own", "syn", "head", "correlation")
SYN = Stage("SyN[0.3,3,0]", (100, 70, 10), (4, 2, 1), (2, 1, 0), "MI[{fixed},{moving},1,32]", "1e-7,8")


def chains_of(way: str, anatomy: Anatomy, out_dir: Path) -> tuple[Chain, Chain]:
    """Register a T1w in one of `WAYS`; return the transforms from points of MNI152NLin6Asym to the T1w, and back."""
    image = Image(*read_volume(anatomy.image))
    if way == "head":
        found, _, _ = align_with_template(load_template(OTHER_SPACE), image, anatomy.source.name, out_dir, 1)
        back = found.inverse.then(chain_between(OTHER_SPACE, MODEL_SPACE))
        return chain_between(MODEL_SPACE, OTHER_SPACE).then(found.chain), back
    brain = read_volume(anatomy.mask)[0] > 0.5
    first = next(iter(attempts_for(load_template(MODEL_SPACE), image, brain)))
    if way in ("own", "syn"):
        matrix = next(step.matrix for step in Chain.load(anatomy.chain).steps if isinstance(step, Linear))
        images = first.fixed, first.moving
        mask = load_template(MODEL_SPACE).mask
        if way == "own":
            found = register_diffeomorphically(*images, mask, brain, matrix, out_dir)
        else:
            coarse = voxel_sizes(load_nifti(anatomy.source).affine).max() > WORKING_MM
            stage = replace(SYN, iterations=(100, 70, 30)) if coarse else SYN
            found = register(*images, mask, (stage,), out_dir, start=matrix, moving_mask=brain)
        return found.chain, found.inverse
    stages = (AFFINE, CORRELATION)
    found = register(first.fixed, first.moving, first.near, stages, out_dir, start=first.starts[0], name="correlation")
    return found.chain, found.inverse


def regularity(chain: Chain, inverse: Chain) -> str:
    """Describe the Jacobian and the error of the inverse in the template's brain, as two cells of the table."""
    target = load_template(MODEL_SPACE)
    at, steps = grid_points(target.mask.shape, target.affine, target.mask), 0.5 * np.eye(3)
    columns = [(chain(at + step) - chain(at - step)) for step in steps]
    determinants = np.linalg.det(np.stack(columns, axis=-1))
    error = np.percentile(np.linalg.norm(inverse(chain(at)) - at, axis=1), 99)
    return f"{determinants.min():.2f} to {determinants.max():.1f} | {error:.2f}"


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the programs that it has run."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


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
    print("| T1w | way | r | MI | grey | white | Jacobian | error | CPU s |\n|" + " --- |" * 9)
    for name in (name for name in bench.scans if bench.scans[name].t1w):
        anatomy = bench.anatomy(name)
        image, mask = Image(*read_volume(anatomy.image)), read_volume(anatomy.mask)[0] > 0.5
        for way in options.ways:
            out = options.folder / "t1w" / f"{name}_{way}"
            out.mkdir(parents=True, exist_ok=True)
            start = cpu_seconds()
            try:
                chains = chains_of(way, anatomy, out)
            except RegistrationError as error:
                print(f"| {name} | {way} | {error.message} |  |  |  |  |  |  |", flush=True)
                continue
            spent = cpu_seconds() - start
            found = " | ".join(f"{x:.3f}" for x in compare_with_template(image, mask, MODEL_SPACE, *chains).values())
            print(f"| {name} | {way} | {found} | {regularity(*chains)} | {spent:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
