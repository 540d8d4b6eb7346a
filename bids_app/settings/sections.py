"""The sections of the settings: each field is defined together with the option that fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.errors import UsageError
from bids_app.settings.machine import default_cpus, default_memory_gb
from bids_app.settings.option import Option, flag, number, option, whole_number
from bids_app.settings.values import (
    absolute_path,
    file_or_name,
    files_or_names,
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
OUT_OF_DOMAIN = ("warn", "refuse")
"""What can be done with an answer about a scan that is unlike those of its adapter's cohort."""
IGNORABLE = ("fieldmaps", "slicetiming")
"""What ``--ignore`` takes."""

DATA, PREPROCESSING, MODEL, RESOURCES, ACTIONS = GROUPS = (
    "which data",
    "preprocessing",
    "model",
    "resources",
    "what to do",
)
"""Headings of the help, in its order."""

MAX_DEFAULT_THREADS = 8
"""Threads of one step where ``--omp-nthreads`` is not given."""


@dataclass(frozen=True)
class QuerySettings:
    """Which runs of the dataset are wanted.

    Labels come without their prefix (``01``, not ``sub-01``); an empty tuple means all.
    """

    participants: tuple[str, ...] = option(
        "--participant-label",
        default=(),
        group=DATA,
        many=True,
        metavar="LABEL",
        help="participants, with or without sub-",
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
        help="sessions, with or without ses-",
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
        help="tasks",
        parse=labels("task-"),
        write=list,
        everyday=True,
    )
    filters: dict[str, dict[str, Any]] = option(
        "--bids-filter-file",
        default_factory=dict,
        group=DATA,
        metavar="FILE",
        help="JSON with pybids filters per kind of file",
        parse=read_filters,
        write=write_filters,
        everyday=True,
    )
    """Query name (``bold``, ``t1w``, ...) to entities; a run's ``neurostorm.toml`` holds them, not the file's name."""
    database_dir: Path | None = option(
        "--bids-database-dir",
        default=None,
        group=DATA,
        metavar="DIR",
        help="a pybids database to use, or to make",
        parse=absolute_path,
        write=str,
    )
    skip_bids_validation: bool = flag(
        "--skip-bids-validation",
        group=DATA,
        help="go on without a readable dataset_description.json",
    )
    derivatives: dict[str, Path] = option(
        "-d",
        "--derivatives",
        default_factory=dict,
        group=DATA,
        many=True,
        metavar="NAME=PATH",
        help="outputs of fMRIPrep, XCP-D or HCP to take runs over from; the others come from raw",
        parse=named_paths,
        write=write_named_paths,
        everyday=True,
    )


@dataclass(frozen=True)
class PreprocessSettings:
    """How a run is brought onto the model's grid."""

    dummy_scans: int | None = option(
        "--dummy-scans",
        default=None,
        group=PREPROCESSING,
        type=whole_number,
        metavar="N",
        help="volumes to drop at the start (default: detected)",
    )
    """Volumes dropped from the start of each run; None: detected."""
    fd_spike_threshold: float = option(
        "--fd-spike-threshold",
        default=0.5,
        group=PREPROCESSING,
        type=number,
        metavar="MM",
        help="framewise displacement of a spike",
    )
    """Framewise displacement above which a volume counts as a spike, mm."""
    output_spaces: tuple[str, ...] = option(
        "--output-spaces",
        default=(),
        group=PREPROCESSING,
        many=True,
        metavar="SPACE",
        help="also write the preprocessed BOLD series at 2 mm in this space (MNI152NLin6Asym, MNI152NLin2009aSym)",
        parse=output_spaces,
        write=list,
        everyday=True,
    )
    """Spaces in which the 2 mm BOLD series is written; empty: none."""
    ignore: tuple[str, ...] = option(
        "--ignore",
        default=(),
        group=PREPROCESSING,
        many=True,
        choices=IGNORABLE,
        metavar="WHAT",
        help="parts of the dataset not to use: slicetiming, fieldmaps",
        parse=tuple,
        write=list,
        everyday=True,
    )
    """Parts of the dataset that are not used, of `IGNORABLE`."""
    use_syn_sdc: bool = flag(
        "--use-syn-sdc",
        group=PREPROCESSING,
        help="where there is no fieldmap, correct distortion towards the T1w image (experimental)",
        everyday=True,
    )
    """Whether distortion of runs without a fieldmap is estimated from their T1w image."""
    random_seed: int = option(
        "--random-seed",
        default=20_060_101,
        group=PREPROCESSING,
        type=whole_number,
        metavar="N",
        help="seed of everything that draws",
    )

    def __post_init__(self) -> None:
        if self.dummy_scans is not None and self.dummy_scans < 0:
            raise UsageError(
                f"Invalid value for --dummy-scans: {self.dummy_scans} is below 0.",
                "Give a number of volumes, 0 or more.",
            )
        if not self.fd_spike_threshold > 0:
            raise UsageError(
                f"Invalid value for --fd-spike-threshold: {self.fd_spike_threshold} is not above 0.",
                "Give a framewise displacement in mm.",
            )
        unknown = [name for name in self.ignore if name not in IGNORABLE]
        if unknown:
            raise UsageError(
                f"Invalid value for --ignore: {' '.join(unknown)}.", f"Choose among {' and '.join(IGNORABLE)}."
            )


@dataclass(frozen=True)
class ModelSettings:
    """Which encoder and adapters are applied, and where."""

    model: str = option(
        "--model",
        default="neurostorm-5ds",
        group=MODEL,
        help="name in the catalog (see --list-models), or a checkpoint file",
        parse=file_or_name,
        everyday=True,
    )
    adapters: tuple[str, ...] = option(
        "--adapter",
        default=(),
        group=MODEL,
        many=True,
        help="adapters: names or files (default: those of the model)",
        parse=files_or_names,
        write=list,
        everyday=True,
    )
    """Names or paths; empty: those that the catalog lists for the model."""
    device: str = option("--device", default="auto", group=MODEL, help="auto, cpu, cuda or cuda:N")
    embeddings_only: bool = option(
        "--level",
        default=False,
        group=MODEL,
        choices=("minimal", "full"),
        help="minimal stops at the embeddings: no predictions, no figures (default: full)",
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
        help="also say which regions the answers depend on (occlusion, gradients), or how well each is guessed from "
        "the rest of the brain (reconstruction)",
        everyday=True,
    )
    """How answers are attributed to regions, an entry of `ATTRIBUTIONS`; empty: not at all."""
    atlas: str = option(
        "--atlas",
        default="aal3",
        group=MODEL,
        metavar="ATLAS",
        help="regions for --attribution: name in the catalog, or a label image",
        parse=file_or_name,
        everyday=True,
    )
    """Name in the catalog, or a label image in the model's space."""
    on_out_of_domain: str = option(
        "--on-out-of-domain",
        default="warn",
        group=MODEL,
        choices=OUT_OF_DOMAIN,
        help="what to do with out-of-distribution scans: warn beside the prediction, or withhold it",
        everyday=True,
    )
    """An entry of `OUT_OF_DOMAIN`."""
    acknowledge_research_use: bool = flag(
        "--acknowledge-research-use",
        group=MODEL,
        help="apply adapters of a diagnosis too: for research on groups, never a statement about a person",
        everyday=True,
    )
    """Whether adapters of a diagnosis are applied."""


@dataclass(frozen=True)
class ResourceSettings:
    """What the run may use of the machine."""

    n_procs: int = option(
        "--nprocs",
        "--nthreads",
        "--n-cpus",
        default=1,
        group=RESOURCES,
        type=whole_number,
        metavar="N",
        help="processors to use (default: all allowed)",
        everyday=True,
    )
    omp_threads: int = option(
        "--omp-nthreads",
        default=1,
        group=RESOURCES,
        type=whole_number,
        metavar="N",
        help=f"threads of one step (default: one less than --nprocs, {MAX_DEFAULT_THREADS} at most)",
        everyday=True,
    )
    memory_gb: float = option(
        "--mem",
        default=4.0,
        group=RESOURCES,
        type=memory_gb,
        metavar="SIZE",
        help="memory to use, with its unit: 8GB, 8000MB (default: nine tenths of what is allowed)",
        write=write_memory,
        everyday=True,
        also=(
            Option(
                ("--mem-mb",),
                group=RESOURCES,
                type=number,
                metavar="MB",
                help="the same in megabytes",
                parse=lambda megabytes: megabytes / 1000,
            ),
        ),
    )
    low_mem: bool = flag(
        "--low-mem",
        group=RESOURCES,
        help="trade time for memory: one step at a time, however many processors there are",
        everyday=True,
    )
    plugin: Path | None = option(
        "--use-plugin",
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
        if not self.memory_gb > 0:
            raise UsageError(
                f"Invalid value for --mem: {self.memory_gb:g} GB is not above 0.",
                "Give a size with its unit, such as 8GB.",
            )

    @classmethod
    def on_this_machine(cls, given: Mapping[str, Any]) -> ResourceSettings:
        """What was given, by fields, and for the rest what this process may use; threads never exceed processors."""
        n_procs = given["n_procs"] if "n_procs" in given else default_cpus()
        memory = given["memory_gb"] if "memory_gb" in given else default_memory_gb()
        threads = given.get("omp_threads", min(max(n_procs - 1, 1), MAX_DEFAULT_THREADS))
        return cls(**{**given, "n_procs": n_procs, "memory_gb": memory, "omp_threads": min(threads, n_procs)})
