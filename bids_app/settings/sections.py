"""Sections of the settings: each field is defined together with its option."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.errors import UsageError
from bids_app.settings.machine import default_cpus, default_memory_gb
from bids_app.settings.option import Option, flag, number, option, whole_number
from bids_app.settings.values import (
    DEFAULT_MODEL,
    absolute_path,
    file_or_name,
    files_or_names,
    key_values,
    labels,
    memory_gb,
    named_paths,
    output_spaces,
    read_filters,
    write_filters,
    write_memory,
    write_named_paths,
)

ATTRIBUTIONS = ("occlusion", "gradients", "reconstruction")
ATTRIBUTION_CONTROLS = ("random", "permuted")
OUT_OF_DOMAIN = ("warn", "refuse")
"""Actions on out-of-distribution scans."""
DENOISING = ("simple", "scrubbing", "compcor")
"""Values of ``--denoise``."""
CLIP_NORMALISATIONS = ("voxel", "global")
"""Values of ``--output-clips``: entries of `bids_app.clips.NORMALISATIONS`, which needs torch."""
CLIP_MB_PER_MINUTE = 17
"""Size of the clips of a run: int8, 229,724 voxels of the brain every 0.8 s."""
IGNORABLE = ("fieldmaps", "slicetiming")
"""Values of ``--ignore``."""

FIRST, AVERAGE, SESSIONWISE = ANATOMICAL_REFERENCES = ("first", "average", "sessionwise")
"""Values of ``--subject-anatomical-reference``."""
REFERENCE_NAMES = {"first-lex": FIRST, "unbiased": AVERAGE}
"""fMRIPrep's names for them."""

DATA, PREPROCESSING, MODEL, RESOURCES, ACTIONS = GROUPS = (
    "data selection",
    "preprocessing",
    "model",
    "resources",
    "actions",
)
"""Headings of the help, in order."""

SESSIONS_PER_REPORT = 4
"""Default of ``--aggregate-session-reports``, as in fMRIPrep."""

MAX_SEED = 2**31 - 1000
"""Largest seed: ANTs reads a signed integer of 32 bits, and steps add small numbers to the seed."""

MAX_PROCESSES = 1024
"""Maximum of ``--nprocs`` and ``--omp-nthreads``: more than any machine runs, and less than what systems refuse."""
MAX_DEFAULT_THREADS = 8
"""Maximum number of threads of one step when ``--omp-nthreads`` is not given."""


@dataclass(frozen=True)
class QuerySettings:
    """Selection of runs.

    Labels are stored without their prefix (``01``, not ``sub-01``); an empty tuple means all.
    """

    participants: tuple[str, ...] = option(
        "--participant-label",
        "--participant-labels",
        default=(),
        group=DATA,
        many=True,
        metavar="LABEL",
        help="participants to process, with or without sub-",
        parse=labels("sub-"),
        write=list,
        everyday=True,
    )
    sessions: tuple[str, ...] = option(
        "--session-label",
        "--session-id",
        default=(),
        group=DATA,
        many=True,
        metavar="LABEL",
        help="sessions to process, with or without ses-",
        parse=labels("ses-"),
        write=list,
        everyday=True,
    )
    tasks: tuple[str, ...] = option(
        "-t",
        "--task-id",
        default=(),
        group=DATA,
        many=True,
        metavar="TASK",
        help="tasks to process, with or without task-",
        parse=labels("task-"),
        write=list,
        everyday=True,
    )
    filters: dict[str, dict[str, Any]] = option(
        "--bids-filter-file",
        default_factory=dict,
        group=DATA,
        metavar="FILE",
        help="JSON file with PyBIDS filters for each type of file",
        parse=read_filters,
        write=write_filters,
        everyday=True,
    )
    """Entities by query name (``bold``, ``t1w``, ...); ``neurostorm.toml`` stores them instead of the file name."""
    database_dir: Path | None = option(
        "--bids-database-dir",
        default=None,
        group=DATA,
        metavar="DIR",
        help="PyBIDS database folder to use; created if missing",
        parse=absolute_path,
        write=str,
    )
    skip_bids_validation: bool = flag(
        "--skip-bids-validation",
        group=DATA,
        help="continue without a readable dataset_description.json",
    )
    derivatives: dict[str, Path] = option(
        "-d",
        "--derivatives",
        default_factory=dict,
        group=DATA,
        many=True,
        metavar="NAME=PATH",
        help="outputs of fMRIPrep, XCP-D, HCP or UK Biobank to ingest; runs that they lack are preprocessed from raw "
        "data",
        parse=named_paths,
        write=write_named_paths,
        everyday=True,
    )
    echo: int | None = option(
        "--echo-idx",
        default=None,
        group=DATA,
        type=whole_number,
        metavar="N",
        help="use only this echo of multi-echo runs (default: combine three or more echoes by T2*)",
    )
    """Label of the echo to use; None: echoes are combined."""
    anatomical_reference: str = option(
        "--subject-anatomical-reference",
        default=SESSIONWISE,
        group=DATA,
        choices=(*ANATOMICAL_REFERENCES, *REFERENCE_NAMES),
        help="T1w image of participants with several sessions: that of the first session, the average over sessions, "
        "or that of each session (default: sessionwise)",
        parse=lambda name: REFERENCE_NAMES.get(name, name),
    )
    """An entry of `ANATOMICAL_REFERENCES`."""


@dataclass(frozen=True)
class PreprocessSettings:
    """Preprocessing of raw runs, and the spaces to write."""

    dummy_scans: int | None = option(
        "--dummy-scans",
        default=None,
        group=PREPROCESSING,
        type=whole_number,
        metavar="N",
        help="volumes to drop at the start of each run (default: detected)",
    )
    """Volumes dropped from the start of each run; None: detected."""
    fd_spike_threshold: float = option(
        "--fd-spike-threshold",
        "--fd-thresh",
        "--fd-thres",
        default=0.5,
        group=PREPROCESSING,
        type=number,
        metavar="MM",
        help="framewise displacement above which a volume is a motion spike",
    )
    """Framewise displacement above which a volume counts as a spike, mm."""
    output_spaces: tuple[str, ...] = option(
        "--output-spaces",
        default=(),
        group=PREPROCESSING,
        many=True,
        metavar="SPACE",
        help="also write the preprocessed BOLD series at 2 mm in this space (MNI152NLin6Asym, MNI152NLin2009aSym, "
        "MNI152NLin2009cAsym, T1w), or on its own grid (func)",
        parse=output_spaces,
        write=list,
        everyday=True,
    )
    """Spaces in which the BOLD series is written: template spaces, `T1W_SPACE`, `FUNC_SPACE`; empty: none."""
    denoise: str | None = option(
        "--denoise",
        default=None,
        group=PREPROCESSING,
        choices=DENOISING,
        metavar="STRATEGY",
        help="regress confounds out of a copy of the series of --output-spaces, and out of those of --timeseries, by "
        "this strategy of nilearn (simple, scrubbing, compcor; ica_aroma is not available)",
        everyday=True,
    )
    """Strategy of nilearn's ``load_confounds_strategy``, from `DENOISING`; None: no denoised series."""
    timeseries: tuple[str, ...] = option(
        "--timeseries",
        default=(),
        group=PREPROCESSING,
        many=True,
        metavar="ATLAS",
        help="also write the mean series of the regions of these atlases (denoised with --denoise) and their "
        "correlations: names in the catalog, or label images in MNI space",
        parse=files_or_names,
        write=list,
        everyday=True,
    )
    """Atlases of tables by region: names in the catalog, or label images in the model's space; empty: none."""
    output_clips: tuple[str, ...] = option(
        "--output-clips",
        default=(),
        group=PREPROCESSING,
        many=True,
        choices=CLIP_NORMALISATIONS,
        metavar="NORM",
        help="also keep each run on the model grid for neurostorm-train, which then reads the output folder: "
        "normalised by voxel (voxel, default of adapt) or over the brain (global, default of pretrain); about "
        f"{CLIP_MB_PER_MINUTE} MB per minute of a run for each",
        parse=tuple,
        write=list,
        everyday=True,
    )
    """Normalisations of the clips that are kept for training; empty: none."""
    ignore: tuple[str, ...] = option(
        "--ignore",
        default=(),
        group=PREPROCESSING,
        many=True,
        choices=IGNORABLE,
        metavar="WHAT",
        help="parts of the dataset to ignore: slicetiming, fieldmaps",
        parse=tuple,
        write=list,
        everyday=True,
    )
    """Ignored parts of the dataset, from `IGNORABLE`."""
    use_syn_sdc: bool = flag(
        "--use-syn-sdc",
        group=PREPROCESSING,
        help="correct susceptibility distortion of runs without a fieldmap by registration to the T1w (experimental)",
        everyday=True,
    )
    """Fieldmap-less distortion correction of runs that have no fieldmap."""
    fail_without_t1w: bool = flag(
        "--fail-without-t1w",
        group=PREPROCESSING,
        help="stop a run whose T1w image cannot be used (default: direct registration to the template, with a warning)",
    )
    """Raise an error for a T1w image that cannot be read or aligned."""
    random_seed: int = option(
        "--random-seed",
        default=20_060_101,
        group=PREPROCESSING,
        type=whole_number,
        metavar="N",
        help="seed of the random number generators",
    )

    def __post_init__(self) -> None:
        if self.dummy_scans is not None and self.dummy_scans < 0:
            raise UsageError(
                f"Invalid value for --dummy-scans: {self.dummy_scans} is below 0.",
                "Give a number of volumes, 0 or more.",
            )
        if not 0 < self.fd_spike_threshold < math.inf:
            raise UsageError(
                f"Invalid value for --fd-spike-threshold: {self.fd_spike_threshold:g} is not above 0.",
                "Give a framewise displacement in mm; a large one, such as 100, marks no volume.",
            )
        if not 0 <= self.random_seed <= MAX_SEED:
            raise UsageError(
                f"Invalid value for --random-seed: {self.random_seed} is not between 0 and {MAX_SEED}.",
                "Give another whole number.",
            )
        unknown = [name for name in self.ignore if name not in IGNORABLE]
        if unknown:
            raise UsageError(
                f"Invalid value for --ignore: {' '.join(unknown)}.", f"Choose among {' and '.join(IGNORABLE)}."
            )


@dataclass(frozen=True)
class ModelSettings:
    """Encoder, adapters and device."""

    model: str = option(
        "--model",
        default=DEFAULT_MODEL,
        group=MODEL,
        help="name in the catalog (see --list-models), a checkpoint file, a fetched file of the hub "
        "(hf:owner/name@revision:path), or, as an experiment, an encoder of Brainmarks (brainmarks:NAME)",
        parse=file_or_name,
        everyday=True,
    )
    adapters: tuple[str, ...] = option(
        "--adapter",
        default=(),
        group=MODEL,
        many=True,
        help="adapters: names in the catalog, files, or fetched files of the hub (hf:owner/name@revision:path) "
        "(default: those of the model, or the head in its file)",
        parse=files_or_names,
        write=list,
        everyday=True,
    )
    """Names or paths; empty: those that the catalog lists for the model."""
    device: str = option(
        "--device",
        default="auto",
        group=MODEL,
        help="device of head motion, T1w registration, resampling and model: auto, cpu, cuda or cuda:N",
    )
    embeddings_only: bool = option(
        "--level",
        default=False,
        group=MODEL,
        choices=("minimal", "full"),
        help="minimal: embeddings only, without predictions and figures (default: full)",
        parse="minimal".__eq__,
        write={True: "minimal", False: "full"}.get,
    )
    """Stop at the embeddings (``--level minimal``)."""
    attribution: str = option(
        "--attribution",
        default="",
        group=MODEL,
        choices=ATTRIBUTIONS,
        metavar="METHOD",
        help="also map which regions the predictions depend on (occlusion, gradients), or how well each region is "
        "reconstructed from the rest of the brain (reconstruction)",
        everyday=True,
    )
    """Attribution method, an entry of `ATTRIBUTIONS`; empty: none."""
    attribution_control: str = option(
        "--attribution-control",
        default="",
        group=MODEL,
        choices=ATTRIBUTION_CONTROLS,
        metavar="CONTROL",
        help="also show the map of a control: an encoder with random weights (random), or heads as from training with "
        "permuted labels (permuted)",
        everyday=True,
    )
    """An entry of `ATTRIBUTION_CONTROLS`; empty: none."""
    attribution_clips: int = option(
        "--attribution-clips",
        default=2,
        group=MODEL,
        metavar="N",
        type=whole_number,
        help="number of clips that --attribution analyses, evenly spaced over the run",
    )
    """At least 1; all clips if the run has fewer."""
    atlas: str = option(
        "--atlas",
        default="aal3",
        group=MODEL,
        metavar="ATLAS",
        help="atlas for --attribution: name in the catalog, or a label image in MNI space",
        parse=file_or_name,
        everyday=True,
    )
    """Name in the catalog, or a label image in the model's space."""
    on_out_of_domain: str = option(
        "--on-out-of-domain",
        default="warn",
        group=MODEL,
        choices=OUT_OF_DOMAIN,
        help="what to do with out-of-distribution scans: warn, or refuse, which withholds the prediction",
        everyday=True,
    )
    """An entry of `OUT_OF_DOMAIN`."""
    acknowledge_research_use: bool = flag(
        "--acknowledge-research-use",
        group=MODEL,
        help="also apply adapters that predict a diagnosis: for group research only, not for individual patients",
        everyday=True,
    )
    """Apply adapters that predict a diagnosis."""
    model_options: tuple[str, ...] = option(
        "--model-options",
        default=(),
        group=MODEL,
        many=True,
        metavar="KEY=VALUE",
        help="options of an encoder of Brainmarks, such as ckpt_path=FILE",
        parse=key_values,
        write=list,
    )
    """Sorted by key."""
    allow_untrained: bool = flag(
        "--allow-untrained",
        group=MODEL,
        help="also run an encoder of Brainmarks with random weights, as a control; all outputs say so",
    )

    def __post_init__(self) -> None:
        if self.attribution_clips < 1:
            raise UsageError(
                f"Invalid value for --attribution-clips: {self.attribution_clips} is below 1.",
                "Give a number of clips, 1 or more.",
            )


@dataclass(frozen=True)
class ResourceSettings:
    """Processors, threads, memory and nipype plugin."""

    n_procs: int = option(
        "--nprocs",
        "--n-procs",
        "--nthreads",
        "--n-cpus",
        default=1,
        group=RESOURCES,
        type=whole_number,
        metavar="N",
        help="processors to use (default: all available)",
        everyday=True,
    )
    omp_threads: int = option(
        "--omp-nthreads",
        "--ants-nthreads",
        default=1,
        group=RESOURCES,
        type=whole_number,
        metavar="N",
        help=f"threads of one step (default: --nprocs minus one, maximum {MAX_DEFAULT_THREADS})",
        everyday=True,
    )
    memory_gb: float = option(
        "--mem",
        default=4.0,
        group=RESOURCES,
        type=memory_gb,
        metavar="SIZE",
        help="memory limit: 8GB, 8000MB, or a number in MB as in fMRIPrep (default: 90 % of the available memory)",
        write=write_memory,
        everyday=True,
        also=(
            Option(
                ("--mem-mb",),
                group=RESOURCES,
                type=number,
                metavar="MB",
                help="memory limit in megabytes",
                parse=lambda megabytes: megabytes / 1000,
            ),
            Option(("--mem-gb",), group=RESOURCES, type=number, metavar="GB", help="memory limit in gigabytes"),
        ),
    )
    low_mem: bool = flag(
        "--low-mem",
        group=RESOURCES,
        help="use less memory: run one step at a time, regardless of --nprocs",
        everyday=True,
    )
    plugin: Path | None = option(
        "--use-plugin",
        "--nipype-plugin-file",
        default=None,
        group=RESOURCES,
        metavar="FILE",
        help="nipype plugin file (SLURM, SGE, ...)",
        parse=absolute_path,
        write=str,
        everyday=True,
    )

    def __post_init__(self) -> None:
        for name, value in (("--nprocs", self.n_procs), ("--omp-nthreads", self.omp_threads)):
            if value < 1:
                raise UsageError(f"Invalid value for {name}: {value} is below 1.", "Give a number, 1 or more.")
            if value > MAX_PROCESSES:
                raise UsageError(
                    f"Invalid value for {name}: {value} is above {MAX_PROCESSES}.",
                    "Give at most the number of processors of this machine.",
                )
        if not 0 < self.memory_gb < math.inf:
            raise UsageError(
                f"Invalid value for --mem: {self.memory_gb:g} GB.",
                "Give a size with its unit, such as 8GB.",
            )

    @classmethod
    def on_this_machine(cls, given: Mapping[str, Any]) -> ResourceSettings:
        """Make settings from the given fields; the defaults of the others are what this process may use."""
        n_procs = given["n_procs"] if "n_procs" in given else default_cpus()
        memory = given["memory_gb"] if "memory_gb" in given else default_memory_gb()
        threads = given.get("omp_threads", min(max(n_procs - 1, 1), MAX_DEFAULT_THREADS))
        return cls(**{**given, "n_procs": n_procs, "memory_gb": memory, "omp_threads": min(threads, n_procs)})
