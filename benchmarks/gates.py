"""Quality measures of good and of spoiled registrations.

    python benchmarks/gates.py FOLDER [--data DIR] [--scans NAME ...] [--only TEXT ...]

FOLDER keeps the anatomies and boldrefs, and ``gates.csv`` with a line for each case; cases that are there are not
repeated. ``--data`` is a folder of datasets of real scans.
"""

from __future__ import annotations

import argparse
import csv
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from bids_app.catalog.templates import load_template
from bids_app.errors import NeurostormError
from bids_app.phantom.dataset import DatasetPlan, write_dataset
from bids_app.phantom.spoiled import flip_left_right, shrink_voxels, spoil
from bids_app.preprocess.anatomical import Anatomy, normalise_t1w, prepare_t1w
from bids_app.preprocess.io.headers import load_nifti
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.registration.ants import Image
from bids_app.preprocess.registration.bold_to_t1w import align_rigidly
from bids_app.preprocess.registration.bold_to_template import normalise_boldref
from bids_app.preprocess.registration.boldref import EpiReference, mask_boldref
from bids_app.preprocess.registration.plausibility import control_ratio, cost_ratio, similarity_ratio
from bids_app.preprocess.registration.transforms import Chain, grid_points, linear

KINDS = ("adult", "flash", "multiband", "child", "old", "thick", "mp2rage", "coarse")
SEED = 23
REAL = {
    "oneback": ("ds-oneback/sub-01/anat/*_T1w.nii.gz", "ds-oneback/sub-01/func/*_bold.nii.gz"),
    "prisma": (
        "real/pyneal-three-vendors/sub-siemens/anat/*_T1w.nii.gz",
        "real/pyneal-three-vendors/sub-siemens/func/*rest*_bold.nii.gz",
    ),
    "prisma-slab": (
        "real/pyneal-three-vendors/sub-siemens/anat/*_T1w.nii.gz",
        "real/pyneal-three-vendors/sub-siemens/func/*visual*_bold.nii.gz",
    ),
    "xa30": (
        "real/prisma-xa30-fieldmaps/sub-01/anat/*_T1w.nii.gz",
        "real/prisma-xa30-fieldmaps/sub-01/func/*_bold.nii.gz",
    ),
    "philips": ("", "real/pyneal-three-vendors/sub-philips/func/*_bold.nii.gz"),
    "trio": ("", "real/opennft-psc/sub-01/func/*_bold.nii.gz"),
}
CAUSES = {
    "flipped": "left and right",
    "upside-down": "upside down",
    "gap-lost": "slice gap",
    "voxels": "voxel size",
    "another person": "another person",
    "cut": "slices cut the brain",
    "t2w": "not a T1w",
}
"""Words that name the cause, by words of the case."""
Row = dict[str, object]
ORDER = (
    "oneback", "phantom-adult", "xa30", "phantom-flash", "prisma", "prisma-slab", "phantom-old", "phantom-multiband",
    "phantom-thick", "trio", "philips", "phantom-child", "phantom-mp2rage", "phantom-coarse",
)  # fmt: skip
T1W_SPOILED = ("t2w", "bias", "upside-down", "half-voxels", "small-voxels")


@dataclass(frozen=True)
class Scans:
    """T1w and BOLD of a person; persons with equal ``person`` are the same."""

    name: str
    person: str
    t1w: Path | None
    bold: Path


@dataclass(frozen=True)
class Case:
    """One registration: who, what was spoiled, and the function that measures it."""

    name: str
    scanner: str
    what: str
    measure: Callable[[], Row]


class Bench:
    """All cases over a folder of kept files."""

    def __init__(self, folder: Path, data: Path | None, names: Sequence[str] = ()) -> None:
        self.folder = folder
        scans = (*self._phantoms(), *self._real(data))
        self.scans = {s.name: s for s in scans if not names or s.name in names}

    def _real(self, data: Path | None) -> Iterator[Scans]:
        for name, (t1w, bold) in REAL.items() if data else ():
            assert data
            found = sorted(data.glob(bold))
            if found:
                person = name.removesuffix("-slab")
                yield Scans(name, person, next(iter(sorted(data.glob(t1w))), None) if t1w else None, found[0])

    def _phantoms(self) -> Iterator[Scans]:
        for kind in KINDS:
            t1w, bold = (self.folder / f"phantom-{kind}-{size}" / "sub-01" for size in ("small", "full"))
            files = t1w / "anat" / "sub-01_T1w.nii.gz", bold / "func" / "sub-01_task-rest_bold.nii.gz"
            yield Scans(f"phantom-{kind}", f"phantom-{kind}", *files)

    def simulate(self, name: str) -> None:
        """Simulate a phantom person, once: a T1w of 2 mm, and a BOLD run at the voxel sizes of the kind."""
        kind = name.removeprefix("phantom-")
        for size in ("small", "full") if kind in KINDS else ():
            plan = DatasetPlan(1, SEED + KINDS.index(kind), states=("rest",), volumes=6, size=size, kinds=(kind,))
            out = self.folder / f"{name}-{size}"
            if not out.exists():
                write_dataset(out, replace(plan, t1w=size == "small"))

    def anatomy(self, name: str, spoiled: str = "") -> Anatomy:
        """Return the anatomy of a person's T1w, computed once."""
        self.simulate(name)
        person = self.scans[name].person
        folder = self.folder / "anatomy" / (f"{person}_{spoiled}" if spoiled else person)
        kept = folder / "anatomy.pkl"
        if kept.exists():
            return pickle.loads(kept.read_bytes())
        folder.mkdir(parents=True, exist_ok=True)
        source = self.scans[name].t1w
        assert source
        if spoiled:
            data, affine = spoil(spoiled, *read_volume(source))
            source = save_image(folder / "sub-01_T1w.nii.gz", np.ascontiguousarray(data), affine)
        found = normalise_t1w(prepare_t1w(source, folder), folder)
        kept.write_bytes(pickle.dumps(found))
        return found

    def epi(self, name: str, spoiled: str = "") -> EpiReference:
        """Return the boldref of a person's run, the median of a few volumes; spoiled in a named way."""
        self.simulate(name)
        folder = self.folder / "epi" / (f"{name}_{spoiled}" if spoiled else name)
        kept = folder / "epi.pkl"
        if kept.exists():
            return pickle.loads(kept.read_bytes())
        folder.mkdir(parents=True, exist_ok=True)
        bold = self.scans[name].bold
        image = load_nifti(bold)
        n = image.shape[3]
        few = slice(min(n // 2, n - 3) - 2, min(n // 2, n - 3) + 3)
        data = np.median(np.asarray(image.dataobj[..., few], dtype=np.float32), axis=-1)
        data, affine = (data, image.affine) if not spoiled else spoil(spoiled, data, image.affine)
        boldref = save_image(folder / "boldref.nii.gz", np.ascontiguousarray(data), affine)
        found = mask_boldref(bold, boldref, folder)
        kept.write_bytes(pickle.dumps(found))
        return found

    def coregister(self, bold: str, t1w: str, bold_spoiled: str = "", t1w_spoiled: str = "") -> Row:
        """Measure an alignment of BOLD with T1w; ``mirrored`` and ``shrunk`` are made from the unspoiled anatomy."""
        derived = t1w_spoiled in ("mirrored", "shrunk")
        anatomy = self.anatomy(t1w, "" if derived else t1w_spoiled)
        data, affine = read_volume(anatomy.image)
        mask = read_volume(anatomy.mask)[0] > 0.5
        tissues = np.asarray(load_nifti(anatomy.tissues).dataobj, dtype=np.float32) / 255
        if t1w_spoiled == "mirrored":
            data, mask, *maps = (flip_left_right(v, affine)[0] for v in (data, mask, *np.moveaxis(tissues, -1, 0)))
            tissues = np.stack(maps, axis=-1)
        if t1w_spoiled == "shrunk":
            affine = shrink_voxels(data, affine)[1]
        out = self.folder / "scratch"
        out.mkdir(exist_ok=True)
        reference = self.epi(bold, bold_spoiled)
        found = align_rigidly(reference, Image(data, affine), mask, tissues, anatomy.source.name, out)
        if not (bold_spoiled or t1w_spoiled) and bold == t1w:
            with (self.folder / f"coreg_{bold}.npy").open("wb") as file:
                np.save(file, found.matrix)
        doubts = " ".join((*anatomy.doubts, *found.doubts))
        return {**anatomy.quality, **found.quality, "doubts": doubts, "warnings": " ".join(found.warnings)}

    def direct(self, bold: str, spoiled: str = "") -> Row:
        """Measure an alignment of BOLD with the template; the error against the route by the T1w, if there is one."""
        out = self.folder / "direct" / f"{bold}_{spoiled}"
        out.mkdir(parents=True, exist_ok=True)
        found = normalise_boldref(self.epi(bold, spoiled), out)
        quality: Row = dict(found.quality)
        known = self.folder / f"coreg_{bold}.npy"
        if known.exists():
            target = load_template()
            points = grid_points(target.mask.shape, target.affine, target.mask)[::7]
            truth = Chain.load(self.anatomy(bold).chain).then(linear(np.linalg.inv(np.load(known))))(points)
            epi = Image(*read_volume(self.epi(bold, spoiled).boldref))
            seen = epi.inside(truth)
            away = np.linalg.norm(Chain.load(found.chain)(points) - truth, axis=1)[seen]
            quality |= {"error_50": float(np.median(away)), "error_95": float(np.percentile(away, 95))}
        return quality | {"doubts": " ".join(found.doubts), "warnings": " ".join(found.warnings)}

    def cases(self) -> Iterator[Case]:
        """Yield all cases: the good ones first."""

        def scanner(name: str) -> str:
            return self.scans[name].person

        def coreg(bold: str, t1w: str, what: str, **how: str) -> Case:
            name = f"{bold} < {t1w}: {what}" if bold != t1w else f"{bold}: {what}"
            return Case(name, scanner(bold), what, partial(self.coregister, bold, t1w, **how))

        order = [name for name in ORDER if name in self.scans]
        both = [name for name in order if self.scans[name].t1w]
        for number, name in enumerate(both):
            yield coreg(name, name, "good")
            yield coreg(name, name, "BOLD flipped", bold_spoiled="flipped")
            others = [o for o in both[:number][::-1] if self.scans[o].person != self.scans[name].person]
            for other in others[:2]:
                yield coreg(name, other, "another person")
            yield coreg(name, name, "BOLD gap-lost", bold_spoiled="gap-lost")
        for name in both:
            yield from self._rare(coreg, name)
        yield from self._direct(order)
        for number, name in enumerate(both):
            for spoiled in T1W_SPOILED if number == 0 else ("bias", "t2w"):
                yield coreg(name, name, f"T1w {spoiled}", t1w_spoiled=spoiled)

    def _rare(self, coreg: Callable[..., Case], name: str) -> Iterator[Case]:
        yield coreg(name, name, "T1w flipped", t1w_spoiled="mirrored")
        yield coreg(name, name, "T1w small-voxels (coregistration only)", t1w_spoiled="shrunk")
        for spoiled in ("small-voxels", "upside-down", "half-voxels"):
            yield coreg(name, name, f"BOLD {spoiled}", bold_spoiled=spoiled)

    def _direct(self, names: Sequence[str]) -> Iterator[Case]:
        for spoiled in ("", "lower-cut", "upper-cut", "gap-lost", "small-voxels", "half-voxels", "upside-down"):
            for name in (n for n in names if "slab" not in n and "thick" not in n):
                what = f"no T1w {spoiled or 'good'}"
                measure = partial(self.direct, name, spoiled)
                yield Case(f"{name}: {what}", self.scans[name].person, what, measure)


def values_of(row: Row) -> dict[str, float]:
    """Return the measures of a line as numbers."""
    return {name: value for name, value in row.items() if isinstance(value, float)}


MEASURES: dict[str, Callable[[dict[str, float]], float | None]] = {
    "control ratio": control_ratio,
    "of similarity": similarity_ratio,
    "of boundary cost": cost_ratio,
    "boundary cost": lambda q: q.get("bbr_cost"),
    "1 - stands_out": lambda q: 1 - q["coreg_stands_out"],
    "largest scale": lambda q: max(q[f"coreg_scale_{axis}"] for axis in "ijk"),
    "1 - Dice": lambda q: 1 - q["coreg_dice"],
}
"""Measures that are higher in wrong alignments."""


def report(rows: list[Row]) -> Iterator[str]:
    """Yield tables: right alignments, how each measure separates them from wrong ones, and what is said to each error.

    Without a T1w, the largest scale is that of the affine transform to the template, relative to the smallest.
    """
    measured = [row for row in rows if "coreg_mirrored" in row]
    yield "| right alignment | Dice | stands out | BBR cost | control ratio | largest scale |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in (row for row in rows if "good" in str(row["what"]) and not row.get("refused")):
        found = values_of(row)
        shown = [found["coreg_dice"], found["coreg_stands_out"], found.get("bbr_cost")]
        if row in measured:
            shown += [control_ratio(found), MEASURES["largest scale"](found)]
        else:
            shown += [None, found["norm_scale_max"] / found["norm_scale_min"]]
        yield f"| {row['case']} | {' | '.join('' if v is None else f'{v:.3f}' for v in shown)} |"
    yield ""
    yield "| measure | wrong by | right, at most | wrong, at least | false alarms | misses |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, measure in MEASURES.items():
        for wrong in (("another person", "BOLD flipped", "T1w flipped"), ("BOLD gap-lost",)):
            yield _separation(name, measure, measured, wrong)
    yield ""
    yield "| case | n | refused | warned | cause named | neither refused nor warned |"
    yield "| --- | --- | --- | --- | --- | --- |"
    kinds = dict.fromkeys(str(row["what"]) for row in rows)
    for kind in sorted(kinds, key=lambda kind: "good" not in kind):
        those = [row for row in rows if row["what"] == kind]
        refused = [row for row in those if row.get("refused")]
        warned = [row for row in those if not row.get("refused") and row.get("doubts")]
        words = next((w for k, w in CAUSES.items() if k in kind), "")
        named = [row for row in those if words in f"{row.get('refused', '')} {row.get('doubts', '')}"]
        missed = [str(row["case"]).partition(":")[0] for row in those if row not in refused and row not in warned]
        counts = f"{len(those)} | {len(refused)} | {len(warned)} | {len(named) if words else ''}"
        yield f"| {kind} | {counts} | {'' if 'good' in kind else ', '.join(missed)} |"


def _separation(
    name: str, measure: Callable[[dict[str, float]], float | None], rows: list[Row], wrong: tuple[str, ...]
) -> str:
    """Return a line on a measure: the gap, and errors with a limit halfway, set without the scanner that it judges."""
    found = [(str(row["scanner"]), str(row["what"]), measure(values_of(row))) for row in rows]
    good = [(scanner, value) for scanner, what, value in found if what == "good" and value is not None]
    bad = [(scanner, value) for scanner, what, value in found if what in wrong and value is not None]
    if len({scanner for scanner, _ in good}) < 2 or len({scanner for scanner, _ in bad}) < 2:
        return f"| {name} | {', '.join(wrong)} | | | too few scanners | |"
    alarms = misses = 0
    for left_out in {scanner for scanner, _ in good}:
        others = [v for s, v in good if s != left_out], [v for s, v in bad if s != left_out]
        limit = (max(others[0]) + min(others[1])) / 2
        alarms += sum(v > limit for s, v in good if s == left_out)
        misses += sum(v <= limit for s, v in bad if s == left_out)
    highest, lowest = max(v for _, v in good), min(v for _, v in bad)
    counts = f"{alarms} of {len(good)} | {misses} of {len(bad)}"
    return f"| {name} | {', '.join(wrong)} | {highest:.3f} | {lowest:.3f} | {counts} |"


def run(bench: Bench, table: Path, only: Sequence[str]) -> None:
    """Measure the cases that the table lacks, and append a line for each."""
    rows = read_table(table)
    known = {str(row["case"]) for row in rows}
    for case in bench.cases():
        if case.name in known or not any(text in case.name for text in only):
            continue
        start = time.process_time()
        try:
            found = case.measure()
        except NeurostormError as error:
            found = {"refused": error.message}
        row = {"case": case.name, "scanner": case.scanner, "what": case.what} | found
        row["cpu_s"] = time.process_time() - start
        rows.append(row)
        write_table(table, rows)
        print(case.name, f"{row['cpu_s']:.0f} s", str(found.get("refused", ""))[:150], flush=True)


def read_table(table: Path) -> list[Row]:
    """Read the table; numbers become floats."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return [{k: _number(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def write_table(table: Path, rows: list[Row]) -> None:
    """Write the table with all columns that any row has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with table.with_suffix(".new").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    table.with_suffix(".new").replace(table)


def main() -> int:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="cases whose name contains a text")
    parser.add_argument("--scans", nargs="+", choices=ORDER, default=[], metavar="NAME", help=f"of {', '.join(ORDER)}")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    table = options.folder / "gates.csv"
    if not options.report:
        run(Bench(options.folder, options.data, options.scans), table, options.only)
    print("\n".join(report(read_table(table))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
