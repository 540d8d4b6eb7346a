"""Simulated datasets on disk: raw BIDS, with the ground truth in ``derivatives/truth``."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_app import __version__
from bids_app.bids.writer import write_json
from bids_app.errors import CannotCreateError, UsageError
from bids_app.phantom import truth
from bids_app.phantom.activity import STATES, foci_of
from bids_app.phantom.bold import SimulatedRun, random_body, random_boldref_to_t1w, simulate_run
from bids_app.phantom.distortion import Inhomogeneity, phase_axis, phase_direction, random_inhomogeneity
from bids_app.phantom.fieldmaps import ECHO_TIMES, SPIN_ECHO_TE, simulate_epi_pair, simulate_phase_difference
from bids_app.phantom.geometry import rng_for
from bids_app.phantom.head_shape import HeadShape, random_head_shape, random_pose
from bids_app.phantom.kinds import HEADERS, KINDS, Kind, kind_named, resized, small_t1w, vary
from bids_app.phantom.protocol import SIZES, Protocol, anatomical_protocol_for, protocol_for
from bids_app.phantom.t1w import SimulatedT1w, simulate_t1w
from bids_app.phantom.tissues import TEMPLATE, TissueMaps
from bids_app.phantom.whole_head import Person, whole_head_tissues
from bids_app.phantom.whole_head_t1w import simulate_whole_head_t1w

BIDS_VERSION = "1.10.0"
FIELDMAPS = ("pepolar", "phasediff")
MAX_DISTORTION_MM = 12.0
"""Larger displacements would fold the image: distant points would be measured at the same position."""


@dataclass(frozen=True)
class DatasetPlan:
    """Settings of a simulated dataset.

    Attributes
    ----------
    participants, sessions, runs : int
        Runs are per state. With one session or one run, the file names have no ``ses-`` or ``run-`` entity.
    states : tuple of str
        See `bids_app.phantom.activity.STATES`.
    volumes : int, optional
        Volumes per run; default: about 100 s.
    t1w : bool
        Write T1w images.
    size : str
        ``"full"`` or ``"small"``.
    distortion : float
        Largest displacement of the BOLD runs by susceptibility distortion, mm.
    fieldmaps : str, optional
        Type of fieldmap, one of `FIELDMAPS`, written for each session.
    kinds : tuple of str
        Kinds of whole heads and protocols (`bids_app.phantom.kinds`), given to the participants in turn; without any,
        heads are made of the template.
    """

    participants: int = 2
    seed: int = 1
    sessions: int = 1
    runs: int = 1
    states: tuple[str, ...] = tuple(STATES)
    volumes: int | None = None
    t1w: bool = True
    size: str = "full"
    distortion: float = 0.0
    fieldmaps: str | None = None
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("participants", "sessions", "runs"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}.", "Give 1 or more.")
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}.", "Give 0 or a positive integer.")
        if self.volumes is not None and self.volumes < 5:
            raise UsageError(f"--volumes is {self.volumes}.", "Give 5 or more.")
        if self.size not in SIZES:
            raise UsageError(f"Invalid value for --size: {self.size!r}.", f"Choose one of {', '.join(SIZES)}.")
        if self.fieldmaps is not None and self.fieldmaps not in FIELDMAPS:
            raise UsageError(
                f"Invalid value for --fieldmaps: {self.fieldmaps!r}.", f"Choose one of {', '.join(FIELDMAPS)}."
            )
        if self.distortion < 0 or self.distortion > MAX_DISTORTION_MM:
            raise UsageError(f"--distortion is {self.distortion}.", f"Give 0 to {MAX_DISTORTION_MM:g} mm.")
        if self.fieldmaps is not None and self.distortion == 0:
            raise UsageError("--fieldmaps requires a distortion.", "Give --distortion, in mm.")
        for kind in self.kinds:
            kind_named(kind)
        if self.kinds and self.fieldmaps is not None:
            raise UsageError("--fieldmaps cannot be combined with --kind.", "Leave one of them out.")
        if not self.states or len(set(self.states)) != len(self.states):
            raise UsageError(f"--states is {' '.join(self.states)!r}.", "Give each state once.")
        for state in self.states:
            foci_of(state)

    def label(self, participant: int) -> str:
        """Return ``sub-01`` for participant 0, zero-padded to the number of participants."""
        return f"sub-{participant + 1:0{max(2, len(str(self.participants)))}d}"


@dataclass(frozen=True)
class Visit:
    """One session of one participant: labels, protocol and file locations."""

    plan: DatasetPlan
    participant: int
    session: int

    @property
    def label(self) -> str:
        """``sub-01``."""
        return self.plan.label(self.participant)

    @property
    def stem(self) -> str:
        """Prefix of file names: ``sub-01`` or ``sub-01_ses-01``."""
        return self.label if self.plan.sessions == 1 else f"{self.label}_ses-{self.session + 1:02d}"

    @property
    def folder(self) -> Path:
        """``sub-01`` or ``sub-01/ses-01``."""
        return Path(*self.stem.split("_"))

    @property
    def keys(self) -> tuple[int | str, ...]:
        """Seeds of the session's random numbers."""
        return self.plan.seed, self.label, f"ses-{self.session + 1}"

    @property
    def kind(self) -> Kind | None:
        """Kind of the participant, if the plan has kinds."""
        kinds = self.plan.kinds
        return KINDS[kinds[self.participant % len(kinds)]] if kinds else None

    @property
    def protocol(self) -> Protocol:
        """Protocol of the session's BOLD runs."""
        own = self.kind.bold if self.kind else None
        protocol = protocol_for(self.participant, self.keys, self.plan.size, self.plan.volumes, own)
        return replace(protocol, distortion=self.plan.distortion)

    @property
    def field(self) -> Inhomogeneity | None:
        """Field inhomogeneity of the participant's head in this session's scanner."""
        protocol = self.protocol
        return random_inhomogeneity(protocol.peak_hz, self.plan.seed, self.label) if protocol.distortion else None

    @property
    def person(self) -> Person:
        """Anatomy of a participant with a kind; the same in each session."""
        assert self.kind
        return vary(self.kind.person, self.plan.seed, self.label)

    def maps(self, resolution_mm: int) -> TissueMaps | None:
        """Return the tissues of the participant's whole head; None without a kind."""
        return whole_head_tissues(self.person, (self.plan.seed, self.label), resolution_mm) if self.kind else None

    def owns(self, filename: str) -> bool:
        """Tell whether a file of the dataset belongs to this session."""
        return Path(filename).is_relative_to(self.folder)

    def head_shape(self) -> HeadShape:
        """Return the participant's head shape at its position in this session's T1w scan."""
        own = random_head_shape(self.plan.seed, self.label)
        if self.kind:
            own = resized(own, self.person.brain_scale)
        return replace(own, t1w_to_head=random_pose(rng_for(*self.keys, "placement")))


def write_dataset(out_dir: Path, plan: DatasetPlan, n_procs: int = 1) -> list[Path]:
    """Write a dataset; the same plan gives the same bytes with any number of processes.

    Parameters
    ----------
    out_dir : Path
        Must be empty or absent.
    n_procs : int
        Scans simulated in parallel.

    Returns
    -------
    list of Path
        The BOLD files.
    """
    try:
        if out_dir.exists() and any(out_dir.iterdir()):
            raise CannotCreateError(f"{out_dir} is not empty.", "Give a new folder for the simulated dataset.")
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateError(
            f"{out_dir}: the folder could not be created ({error.strerror}).", "Check the path and its permissions."
        ) from error
    visits = [Visit(plan, p, s) for p in range(plan.participants) for s in range(plan.sessions)]
    _write_texts(out_dir, plan)
    jobs: list[tuple[Path, Visit, str | None, int]] = [(out_dir, visit, None, 0) for visit in visits]
    jobs += [(out_dir, visit, state, run) for visit in visits for state in plan.states for run in range(plan.runs)]
    if n_procs == 1:
        rows = [_write_scan(job) for job in jobs]
    else:
        with ProcessPoolExecutor(n_procs) as pool:
            rows = list(pool.map(_write_scan, jobs))
    runs = [row for row in rows if row is not None]
    for visit in visits if plan.fieldmaps else ():
        write_fieldmaps(out_dir, visit, [str(r["filename"]) for r in runs if visit.owns(str(r["filename"]))])
    _write_table(out_dir / "derivatives" / "truth" / "states.tsv", runs)
    return [out_dir / str(row["filename"]) for row in runs]


def _write_scan(job: tuple[Path, Visit, str | None, int]) -> dict[str, object] | None:
    """Write one T1w image (no state) or one BOLD run with its truth; return the run's row of ``states.tsv``."""
    out_dir, visit, state, run = job
    if state is None:
        _write_anatomical(out_dir, visit)
        return None
    return _write_bold(out_dir, visit, state, run)


def _write_anatomical(out_dir: Path, visit: Visit) -> None:
    head_shape = visit.head_shape()
    folder = out_dir / "derivatives" / "truth" / visit.folder / "anat"
    to_template, to_t1w = truth.fields_of(head_shape)
    to_template.save(folder / f"{visit.stem}_from-T1w_to-{TEMPLATE}_mode-points_xfm.nii.gz")
    to_t1w.save(folder / f"{visit.stem}_from-{TEMPLATE}_to-T1w_mode-points_xfm.nii.gz")
    if not visit.plan.t1w:
        return
    scan = _simulate_anatomical(visit, head_shape)
    stored, slope = _as_integers(scan.image)
    path = out_dir / visit.folder / "anat" / f"{visit.stem}_T1w"
    truth.save_image(path.with_suffix(".nii.gz"), stored, scan.affine, slope=slope, codes=_codes(visit))
    sequence = visit.kind.t1w.sequence.upper() if visit.kind else "MPRAGE"
    write_json(path.with_suffix(".json"), {**_machine(visit), "MRAcquisitionType": "3D", "PulseSequenceType": sequence})
    truth.save_image(folder / f"{visit.stem}_desc-brain_mask.nii.gz", scan.brain_mask.astype(np.uint8), scan.affine)


def _simulate_anatomical(visit: Visit, head_shape: HeadShape) -> SimulatedT1w:
    small = visit.plan.size == "small"
    if visit.kind is None:
        return simulate_t1w(head_shape, anatomical_protocol_for(visit.participant, visit.plan.size), visit.keys)
    scan = small_t1w(visit.kind.t1w) if small else visit.kind.t1w
    resolution_mm = 1 if min(scan.protocol.voxel_mm) < 2.0 else 2
    maps = visit.maps(resolution_mm)
    assert maps
    return simulate_whole_head_t1w(head_shape, maps, scan, visit.keys)


def _codes(visit: Visit) -> tuple[int, int]:
    return HEADERS[visit.kind.header] if visit.kind else HEADERS["both"]


def _write_bold(out_dir: Path, visit: Visit, state: str, run: int) -> dict[str, object]:
    plan, protocol = visit.plan, visit.protocol
    simulated = simulate_run(
        visit.head_shape(),
        protocol,
        state,
        (*visit.keys, state, run),
        random_body(plan.seed, visit.label),
        field=visit.field,
        maps=visit.maps(2),
        imperfections=visit.kind.epi if visit.kind else None,
    )
    stem = f"{visit.stem}_task-{state}" + (f"_run-{run + 1:02d}" if plan.runs > 1 else "")
    path = out_dir / visit.folder / "func" / f"{stem}_bold"
    stored, slope = _as_integers(simulated.bold)
    truth.save_image(path.with_suffix(".nii.gz"), stored, simulated.affine, protocol.tr, slope, _codes(visit))
    sidecar: dict[str, object] = {
        **_machine(visit),
        "TaskName": state,
        "RepetitionTime": protocol.tr,
        "EchoTime": protocol.te,
        "FlipAngle": protocol.flip_deg,
        "PulseSequenceType": "Gradient Echo EPI",
        "Instructions": INSTRUCTIONS[state],
    }
    if visit.kind and visit.kind.thickness_mm:
        sidecar |= {"SliceThickness": visit.kind.thickness_mm, "SpacingBetweenSlices": protocol.voxel_mm[2]}
    if simulated.distortion is not None:
        sidecar |= readout_facts(protocol, simulated.affine, "AP")
    if plan.fieldmaps == "phasediff":
        sidecar["B0FieldSource"] = IDENTIFIER
    write_json(path.with_suffix(".json"), sidecar)
    if simulated.events:
        rows = [{"onset": e.onset, "duration": e.duration, "trial_type": e.trial_type} for e in simulated.events]
        _write_table(path.with_name(f"{stem}_events.tsv"), rows)
    truth.write_run_truth(out_dir / "derivatives" / "truth" / visit.folder / "func", stem, simulated)
    return _row(visit, stem, simulated)


IDENTIFIER = "phasediff0"


def readout_facts(protocol: Protocol, affine: np.ndarray, towards: str) -> dict[str, object]:
    """Return the sidecar fields of phase encoding."""
    direction = phase_axis(affine, phase_direction(protocol, towards))
    return {
        "PhaseEncodingDirection": direction,
        "TotalReadoutTime": protocol.readout,
        "EffectiveEchoSpacing": protocol.readout / (protocol.matrix[1] - 1),
    }


def write_fieldmaps(out_dir: Path, visit: Visit, runs: list[str]) -> None:
    """Write a session's fieldmaps; ``pepolar`` uses ``IntendedFor``, ``phasediff`` uses ``B0FieldIdentifier``."""
    protocol, field = visit.protocol, visit.field
    assert field is not None
    folder = out_dir / visit.folder / "fmap"
    # position of the head in the first run
    boldref_to_t1w = random_boldref_to_t1w(rng_for(*visit.keys, visit.plan.states[0], 0, "coregistration"))
    if visit.plan.fieldmaps == "pepolar":
        _, affine = protocol.grid()
        for towards, series in simulate_epi_pair(
            visit.head_shape(), protocol, field, (*visit.keys, "fmap"), boldref_to_t1w
        ).items():
            stored, slope = _as_integers(series)
            path = folder / f"{visit.stem}_dir-{towards}_epi"
            truth.save_image(path.with_suffix(".nii.gz"), stored, affine, 8.0, slope)
            sidecar = {**_machine(), "RepetitionTime": 8.0, "EchoTime": SPIN_ECHO_TE}
            sidecar |= readout_facts(protocol, affine, towards)
            write_json(path.with_suffix(".json"), {**sidecar, "IntendedFor": [f"bids::{name}" for name in runs]})
        return
    scan = simulate_phase_difference(visit.head_shape(), protocol, field, (*visit.keys, "fmap"), boldref_to_t1w)
    for number, magnitude in enumerate(scan.magnitudes):
        stored, slope = _as_integers(magnitude)
        path = folder / f"{visit.stem}_magnitude{number + 1}"
        truth.save_image(path.with_suffix(".nii.gz"), stored, scan.affine, slope=slope)
        write_json(path.with_suffix(".json"), {**_machine(), "EchoTime": ECHO_TIMES[number]})
    path = folder / f"{visit.stem}_phasediff"
    truth.save_image(path.with_suffix(".nii.gz"), scan.phase, scan.affine)
    facts = {**_machine(), "EchoTime1": ECHO_TIMES[0], "EchoTime2": ECHO_TIMES[1], "B0FieldIdentifier": IDENTIFIER}
    write_json(path.with_suffix(".json"), facts)


INSTRUCTIONS = {
    "rest": "Lie still with your eyes open.",
    "lefthand": "Tap the fingers of your left hand while the word is shown.",
    "righthand": "Tap the fingers of your right hand while the word is shown.",
    "visual": "Look at the flickering checkerboard.",
}


def _row(visit: Visit, stem: str, run: SimulatedRun) -> dict[str, object]:
    protocol = run.protocol
    return {
        "participant_id": visit.label,
        "session": f"ses-{visit.session + 1:02d}" if visit.plan.sessions > 1 else "n/a",
        "filename": (visit.folder / "func" / f"{stem}_bold.nii.gz").as_posix(),
        "state": run.state,
        "tr": protocol.tr,
        "volumes": protocol.n_volumes,
        "nonsteady_volumes": run.reference,
        "orientation": protocol.orientation,
        "oblique_deg": " ".join(str(v) for v in protocol.oblique_deg),
        "slab_mm": round(protocol.matrix[2] * protocol.voxel_mm[2], 1),
        "motion_mm": round(float(np.abs(run.motion[:, :3, 3]).max()), 3),
    }


def _as_integers(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Convert an image to int16, using half of the range; return it with its scaling slope."""
    slope = float(np.float32(image.max() / 16_000))
    return np.round(image / np.float32(slope)).astype(np.int16), slope


def _machine(visit: Visit | None = None) -> dict[str, object]:
    maker = visit.kind.vendor if visit and visit.kind else "NeuroSTORM"
    return {"Manufacturer": maker, "ManufacturersModelName": "Simulated scanner", "MagneticFieldStrength": 3}


def _write_texts(out_dir: Path, plan: DatasetPlan) -> None:
    """Write the descriptions of the dataset, of its participants and of its truth."""
    made_by = {"Name": "neurostorm-phantom", "Version": __version__}
    common = {"BIDSVersion": BIDS_VERSION, "License": "CC0", "Authors": ["NeuroSTORM developers"]}
    write_json(
        out_dir / "dataset_description.json",
        {"Name": "Simulated heads in four states", "DatasetType": "raw", **common, "GeneratedBy": [made_by]},
    )
    (out_dir / "README.md").write_text(_readme(plan))
    (out_dir / "CHANGES").write_text("1.0.0 2026-01-01\n  - Simulated.\n")
    _write_people(out_dir, plan)
    folder = out_dir / "derivatives" / "truth"
    folder.mkdir(parents=True)
    write_json(
        folder / "dataset_description.json",
        {
            "Name": "Ground truth of the simulated scans",
            "DatasetType": "derivative",
            **common,
            "GeneratedBy": [made_by],
        },
    )
    (folder / "README.md").write_text(truth.README)
    (folder / ".bidsignore").write_text("states.tsv\n*_xfm.*\n*_boldmap.*\n*_timeseries.*\n*_desc-truth.json\n")


def _readme(plan: DatasetPlan) -> str:
    heads = f" The participants' kinds, in turn: {', '.join(plan.kinds)}." if plan.kinds else ""
    return f"""# Simulated heads in four states

These scans are simulated; no person was scanned. `neurostorm-phantom` {__version__} simulated them from nilearn's
embedded template with random smooth warps, head motion, physiological noise and thermal noise (seed {plan.seed}).
During a run the participant rests, taps the fingers of the left or right hand in blocks, or views a checkerboard in
blocks. The ground truth is in `derivatives/truth`.{heads}
"""


def _write_people(out_dir: Path, plan: DatasetPlan) -> None:
    rows = []
    for participant in range(plan.participants):
        rng = rng_for(plan.seed, plan.label(participant), "person")
        rows.append(
            {
                "participant_id": plan.label(participant),
                "age": int(rng.integers(20, 80)),
                "sex": "FM"[int(rng.integers(2))],
                "handedness": "L" if rng.random() < 0.1 else "R",
            }
        )
    _write_table(out_dir / "participants.tsv", rows)
    write_json(
        out_dir / "participants.json",
        {
            "age": {"Description": "Age", "Units": "year"},
            "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
            "handedness": {"Description": "Preferred hand", "Levels": {"L": "left", "R": "right"}},
        },
    )


def _write_table(path: Path, rows: Iterable[dict[str, object]]) -> None:
    rows = list(rows)
    lines = ["\t".join(rows[0]), *("\t".join(str(v) for v in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
