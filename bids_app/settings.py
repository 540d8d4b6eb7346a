"""What was asked for, as frozen dataclasses that check themselves, and the defaults that the machine gives."""

from __future__ import annotations

import hashlib
import os
import resource
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bids_app.errors import UsageError

SCRATCH_VARIABLE = "NEUROSTORM_SCRATCH"
"""Environment variable: the folder under which scratch goes when ``--work-dir`` is not given."""

CACHES = "caches"
"""Folder in scratch for what libraries would write into HOME."""

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux tells the limits of control groups, and the group of this process."""

PARTICIPANT, GROUP = "participant", "group"
ATTRIBUTIONS = ("occlusion", "gradients", "reconstruction")
OUT_OF_DOMAIN = ("warn", "refuse")
"""What can happen to an answer about a scan that is unlike those of its adapter's cohort."""
IGNORABLE = ("fieldmaps", "slicetiming")
"""What ``--ignore`` takes."""


@dataclass(frozen=True)
class QuerySettings:
    """Which runs of the dataset are wanted.

    Labels come without their prefix (``01``, not ``sub-01``); an empty tuple means all.
    """

    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    filters: dict[str, dict[str, object]] = field(default_factory=dict)
    """Content of ``--bids-filter-file``: query name (``bold``, ``t1w``, ...) to entities."""
    database_dir: Path | None = None
    derivatives: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class PreprocessSettings:
    """How a run is brought onto the model's grid."""

    dummy_scans: int | None = None
    """Volumes dropped from the start of each run; None: detected."""
    fd_spike_threshold: float = 0.5
    """Framewise displacement above which a volume counts as a spike, mm."""
    output_spaces: tuple[str, ...] = ()
    """Spaces in which the 2 mm BOLD series is written; empty: none."""
    ignore: tuple[str, ...] = ()
    """Parts of the dataset that are not used, of `IGNORABLE`."""
    use_syn_sdc: bool = False
    """Whether distortion of runs without a fieldmap is estimated from their T1w image."""
    random_seed: int = 20_060_101

    def __post_init__(self) -> None:
        if self.dummy_scans is not None and self.dummy_scans < 0:
            raise UsageError(f"--dummy-scans is {self.dummy_scans}.", "Give a number of volumes, 0 or more.")
        if self.fd_spike_threshold <= 0:
            raise UsageError(f"--fd-spike-threshold is {self.fd_spike_threshold}.", "Give millimetres above 0.")
        unknown = [name for name in self.ignore if name not in IGNORABLE]
        if unknown:
            raise UsageError(f"--ignore {' '.join(unknown)}: not known.", f"Choose among {' and '.join(IGNORABLE)}.")


@dataclass(frozen=True)
class ModelSettings:
    """Which encoder and adapters are applied, and where."""

    model: str = "neurostorm-5ds"
    adapters: tuple[str, ...] = ()
    """Names or paths; empty: those that the catalog lists for the model."""
    device: str = "auto"
    embeddings_only: bool = False
    """Stop at the embeddings (``--level minimal``)."""
    attribution: str = ""
    """How answers are attributed to regions, an entry of `ATTRIBUTIONS`; empty: not at all."""
    atlas: str = "aal3"
    """Name in the catalog, or a label image in the model's space."""
    on_out_of_domain: str = "warn"
    """An entry of `OUT_OF_DOMAIN`."""
    acknowledge_research_use: bool = False
    """Whether adapters of a diagnosis are applied."""


@dataclass(frozen=True)
class ResourceSettings:
    """What the run may use of the machine."""

    n_procs: int = 1
    omp_threads: int = 1
    memory_gb: float = 4.0
    plugin: Path | None = None
    """A nipype plugin file (``--use-plugin``)."""
    low_mem: bool = False

    def __post_init__(self) -> None:
        if self.n_procs < 1 or self.omp_threads < 1:
            raise UsageError(
                "The numbers of processes and threads must be 1 or more.", "See --nprocs and --omp-nthreads."
            )
        if self.memory_gb <= 0:
            raise UsageError(f"--mem is {self.memory_gb} GB.", "Give a size with its unit, such as 8GB.")


@dataclass(frozen=True)
class Settings:
    """One invocation of ``neurostorm``."""

    bids_dir: Path
    out_dir: Path
    level: str
    work_dir: Path
    query: QuerySettings = field(default_factory=QuerySettings)
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    check: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    stop_on_first_crash: bool = False
    clean_workdir: bool = False
    skip_bids_validation: bool = False
    verbosity: int = 0


def default_cpus() -> int:
    """Processors that this process may use, by its affinity and its control groups."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for line in _limits("cpu.max"):
        quota = line.split()
        if len(quota) == 2 and quota[0].isdigit():
            allowed = min(allowed, max(1, int(quota[0]) // int(quota[1])))
    return allowed


def default_memory_gb() -> float:
    """Nine tenths of the memory that this process may use, GB, by the machine, its control groups and ``ulimit``."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        limit, _ = resource.getrlimit(kind)
        total = total if limit == resource.RLIM_INFINITY else min(total, limit)
    for text in (*_limits("memory.max"), _first_line(CGROUPS / "memory" / "memory.limit_in_bytes")):
        if text.isdigit():
            total = min(total, int(text))
    return round(0.9 * total / 1e9, 2)


def home_dir() -> Path:
    """The user's home; for a user whom the system does not know (as in containers) a folder that does not exist."""
    return Path(os.path.expanduser("~"))


def own_scratch() -> Path:
    """Scratch of this user where no place is named: under a known name among the temporary files of all users."""
    return Path(tempfile.gettempdir()) / f"neurostorm-{os.getuid()}"


def default_work_dir(out_dir: Path) -> Path:
    """A scratch folder that the same output folder finds again."""
    return (
        Path(os.environ.get(SCRATCH_VARIABLE) or own_scratch())
        / hashlib.sha256(str(out_dir.absolute()).encode()).hexdigest()[:16]
    )


def _limits(name: str) -> Iterator[str]:
    """What a control file says in this process's control group and in all above it; a job of SLURM has its own."""
    own = _first_line(OWN_CGROUP)
    folder = CGROUPS / own.removeprefix("0::").strip("/") if own.startswith("0::") else CGROUPS
    while folder.is_relative_to(CGROUPS):
        yield _first_line(folder / name)
        folder = folder.parent


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
