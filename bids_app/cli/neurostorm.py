"""The command ``neurostorm``: arguments in, `Settings` out, and the exit code at the end.

Nothing heavy is imported before the arguments are parsed, so that ``--help`` and ``--version`` answer at once.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.cli.boutiques import VARIANTS, describe
from bids_app.errors import (
    EXIT_CODES,
    EXIT_SOFTWARE,
    AnalysisLevelError,
    InputOutputError,
    NeurostormError,
    UsageError,
)
from bids_app.settings import (
    ATTRIBUTIONS,
    CACHES,
    GROUP,
    IGNORABLE,
    OUT_OF_DOMAIN,
    PARTICIPANT,
    ModelSettings,
    PreprocessSettings,
    QuerySettings,
    ResourceSettings,
    Settings,
    default_cpus,
    default_memory_gb,
    default_work_dir,
)

LOGGER = logging.getLogger("bids_app")
SIZE_UNITS_GB = {"MB": 1 / 1000, "MIB": 1 / 953.674, "GB": 1.0, "GIB": 1.073742, "TB": 1000.0}

CACHES_OF_LIBRARIES = ("MPLCONFIGDIR", "NIPYPE_CONFIG_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Where libraries would write into HOME; a user's own setting stays."""

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
"""What the system says of a disk, wherever it is met, is no defect of ours."""

EPILOG = f"""exit codes: {"; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())}.
NeuroSTORM is a research tool, not a medical device."""


def build_parser() -> argparse.ArgumentParser:
    """The argument parser, from which the help and the Boutiques descriptor are made."""
    parser = argparse.ArgumentParser(
        prog="neurostorm",
        description="A foundation model for functional MRI: raw BIDS in; embeddings, predictions and reports out.",
        epilog=EPILOG,
        allow_abbrev=False,
    )

    def add(group: Any, *names: str, **options: Any) -> None:
        """Add an option under both its spellings, with dashes and with underscores."""
        spelled = [*names]
        spelled += [n for n in ("--" + n[2:].replace("-", "_") for n in names if n.startswith("--")) if n not in names]
        group.add_argument(*spelled, **options)

    parser.add_argument("bids_dir", type=Path, help="the BIDS dataset: raw, or fMRIPrep's, XCP-D's or HCP's outputs")
    parser.add_argument("output_dir", type=Path, help="where the derivatives go; made when missing")
    parser.add_argument("analysis_level", metavar="{participant,group}", help="which level of the analysis to run")
    parser.add_argument("--version", action="version", version=f"neurostorm {__version__}")
    add(parser, "--list-models", action=ListModels, help="list the models and adapters that can be named, and exit")
    add(
        parser, "--self-test", action=SelfTest,
        help="check within seconds that this installation computes what it should, on the GPU too, and exit",
    )  # fmt: skip
    add(
        parser, "--bids-exec-spec", action=PrintDescriptor, choices=VARIANTS,
        help="print the Boutiques descriptor, for the CPU image or for cuda, and exit",
    )  # fmt: skip

    group = parser.add_argument_group("which data")
    add(group, "--participant-label", nargs="+", default=[], metavar="LABEL", help="participants, with or without sub-")
    add(
        group, "--session-label", "--session-id", nargs="+", default=[], metavar="LABEL",
        help="sessions, with or without ses-",
    )  # fmt: skip
    add(group, "-t", "--task-id", nargs="+", default=[], metavar="TASK", help="tasks")
    add(group, "--bids-filter-file", type=Path, metavar="FILE", help="JSON with pybids filters per kind of file")
    add(group, "--bids-database-dir", type=Path, metavar="DIR", help="a pybids database to use, or to make")
    add(group, "--skip-bids-validation", action="store_true", help="accept a dataset that breaks rules we do not need")
    add(
        group, "-d", "--derivatives", nargs="+", default=[], metavar="NAME=PATH",
        help="outputs of fMRIPrep, XCP-D or HCP to take runs over from; the others come from raw",
    )  # fmt: skip

    group = parser.add_argument_group("preprocessing")
    add(group, "--dummy-scans", type=int, metavar="N", help="volumes to drop at the start (default: detected)")
    add(group, "--fd-spike-threshold", type=float, default=0.5, metavar="MM", help="framewise displacement of a spike")
    add(
        group, "--output-spaces", nargs="+", default=[], metavar="SPACE",
        help="also write the preprocessed BOLD series at 2 mm in this space (MNI152NLin6Asym, MNI152NLin2009aSym)",
    )  # fmt: skip
    add(
        group, "--ignore", nargs="+", default=[], choices=IGNORABLE, metavar="WHAT",
        help="parts of the dataset not to use: slicetiming, fieldmaps",
    )  # fmt: skip
    add(
        group, "--use-syn-sdc", action="store_true",
        help="where there is no fieldmap, correct distortion towards the T1w image (experimental)",
    )  # fmt: skip
    add(group, "--random-seed", type=int, default=20_060_101, metavar="N", help="seed of everything that draws")

    group = parser.add_argument_group("model")
    add(
        group,
        "--model",
        default="neurostorm-5ds",
        help="name in the catalog, or a checkpoint file (default: %(default)s)",
    )
    add(group, "--adapter", nargs="+", default=[], help="adapters: names or files (default: those of the model)")
    add(group, "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add(
        group, "--level", choices=["minimal", "full"], default="full",
        help="minimal stops at the embeddings: no predictions, no figures",
    )  # fmt: skip
    add(
        group, "--attribution", default="", choices=ATTRIBUTIONS, metavar="METHOD",
        help="also say which regions the answers depend on (occlusion, gradients), or how well each is guessed from "
        "the rest of the brain (reconstruction)",
    )  # fmt: skip
    add(
        group, "--atlas", default="aal3", metavar="ATLAS",
        help="regions for --attribution: name in the catalog, or a label image (default: %(default)s)",
    )  # fmt: skip
    add(
        group, "--on-out-of-domain", choices=OUT_OF_DOMAIN, default="warn",
        help="what becomes of an answer about a scan that is unlike those that its adapter learned from: a warning "
        "beside it, or no answer (default: %(default)s)",
    )  # fmt: skip
    add(
        group, "--acknowledge-research-use", action="store_true",
        help="apply adapters of a diagnosis too: for research on groups, never a statement about a person",
    )  # fmt: skip

    group = parser.add_argument_group("resources")
    add(
        group,
        "--nprocs",
        "--nthreads",
        "--n-cpus",
        dest="nprocs",
        type=int,
        metavar="N",
        help="processors to use (default: all allowed)",
    )
    add(group, "--omp-nthreads", type=int, metavar="N", help="threads of one step")
    add(group, "--mem", type=memory_gb, metavar="SIZE", help="memory to use, with its unit: 8GB, 8000MB")
    add(group, "--mem-mb", type=float, metavar="MB", help="the same in megabytes")
    add(group, "--low-mem", action="store_true", help="trade time for memory")
    add(group, "--use-plugin", type=Path, metavar="FILE", help="nipype plugin file (SLURM, SGE, ...)")
    add(group, "-w", "--work-dir", type=Path, metavar="DIR", help="scratch folder; keep it, and a second run is short")
    add(group, "--clean-workdir", action="store_true", help="delete this run's scratch when all went well")

    group = parser.add_argument_group("what to do")
    add(
        group,
        "--check",
        action="store_true",
        help="examine inputs, weights, templates, disk and memory, print the plan, write nothing",
    )
    add(group, "--reports-only", action="store_true", help="make the reports again from the derivatives")
    add(group, "--boilerplate-only", action="store_true", help="write the methods text only")
    add(group, "--stop-on-first-crash", action="store_true", help="start nothing more after the first failure")
    add(
        group,
        "--config-file",
        type=Path,
        metavar="FILE",
        help="TOML with options, such as a run's neurostorm.toml; the command line wins",
    )
    add(group, "--notrack", action="store_true", help="accepted for compatibility: there is no tracking")
    add(group, "-v", "--verbose", action="count", default=0, help="say more; twice: everything")
    return parser


class AnswerAndExit(argparse.Action):
    """Base of the options that answer and exit, as ``--version`` does, without the positional arguments."""

    def __init__(self, option_strings: Sequence[str], dest: str, nargs: int | str = 0, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=nargs, default=argparse.SUPPRESS, **options)


class ListModels(AnswerAndExit):
    """Print the catalog."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from bids_app.cli.models import main as models

        models(["list"])
        parser.exit()


class SelfTest(AnswerAndExit):
    """Check the installation."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from bids_app.cli.selftest import run_self_test

        run_self_test()
        parser.exit()


class PrintDescriptor(AnswerAndExit):
    """Print the Boutiques descriptor that is made from this very parser."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs="?", const=VARIANTS[0], **options)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        print(json.dumps(describe(parser, values), indent=2))
        parser.exit()


def from_anywhere(name: str) -> str:
    """A file's path, absolute, since steps run in folders of their own; a name of the catalog as it is."""
    path = Path(name)
    return str(path.absolute()) if path.suffix and path.is_file() else name


def memory_gb(text: str) -> float:
    """Gigabytes of a size such as ``8GB`` or ``8000MB``; a bare number is refused, since apps disagree on its unit."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]i?B)\s*", text, re.IGNORECASE)
    if not match or match[2].upper() not in SIZE_UNITS_GB:
        raise argparse.ArgumentTypeError(f"'{text}' has no unit: write 8GB or 8000MB")
    return float(match[1]) * SIZE_UNITS_GB[match[2].upper()]


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Arguments to settings.

    Raises
    ------
    UsageError, AnalysisLevelError
        Options that cannot be, or an unknown level.
    SystemExit
        As argparse does, for unknown options and after ``--help``.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.config_file:
        parser.set_defaults(**read_config_file(options.config_file, parser))
        options = parser.parse_args(arguments)
    if options.analysis_level not in (PARTICIPANT, GROUP):
        raise AnalysisLevelError(
            f"There is no analysis level '{options.analysis_level}'.", f"The levels are '{PARTICIPANT}' and '{GROUP}'."
        )
    if options.mem is not None and options.mem_mb is not None:
        raise UsageError("--mem and --mem-mb say the same thing twice.", "Give one of them.")
    n_procs = options.nprocs if options.nprocs is not None else default_cpus()
    memory = options.mem if options.mem is not None else (options.mem_mb or 0) / 1000 or default_memory_gb()
    threads = options.omp_nthreads if options.omp_nthreads is not None else min(max(n_procs - 1, 1), 8)
    return Settings(
        bids_dir=options.bids_dir.absolute(),
        out_dir=options.output_dir.absolute(),
        level=options.analysis_level,
        work_dir=(options.work_dir or default_work_dir(options.output_dir)).absolute(),
        query=QuerySettings(
            participants=strip_labels(options.participant_label, "sub-"),
            sessions=strip_labels(options.session_label, "ses-"),
            tasks=strip_labels(options.task_id, "task-"),
            filters=read_filter_file(options.bids_filter_file),
            database_dir=options.bids_database_dir and options.bids_database_dir.absolute(),
            derivatives=named_paths(options.derivatives),
        ),
        preprocess=PreprocessSettings(
            dummy_scans=options.dummy_scans,
            fd_spike_threshold=options.fd_spike_threshold,
            ignore=tuple(options.ignore),
            use_syn_sdc=options.use_syn_sdc,
            output_spaces=tuple(strip_resolution(space) for space in options.output_spaces),
            random_seed=options.random_seed,
        ),
        model=ModelSettings(
            model=from_anywhere(options.model),
            adapters=tuple(map(from_anywhere, options.adapter)),
            device=options.device,
            embeddings_only=options.level == "minimal",
            attribution=options.attribution,
            atlas=from_anywhere(options.atlas),
            on_out_of_domain=options.on_out_of_domain,
            acknowledge_research_use=options.acknowledge_research_use,
        ),
        resources=ResourceSettings(
            n_procs=n_procs,
            omp_threads=min(threads, n_procs),
            memory_gb=memory,
            plugin=options.use_plugin and options.use_plugin.absolute(),
            low_mem=options.low_mem,
        ),
        check=options.check,
        reports_only=options.reports_only,
        boilerplate_only=options.boilerplate_only,
        stop_on_first_crash=options.stop_on_first_crash,
        clean_workdir=options.clean_workdir,
        skip_bids_validation=options.skip_bids_validation,
        verbosity=options.verbose,
    )


def strip_labels(labels: Sequence[str], prefix: str) -> tuple[str, ...]:
    """Labels without their prefix, each once, in the order given."""
    return tuple(dict.fromkeys(label.removeprefix(prefix) for label in labels))


def strip_resolution(space: str) -> str:
    """A space's name without ``:res-2``, the one resolution that is written."""
    name, _, resolution = space.partition(":")
    if resolution not in ("", "res-2", "res-02"):
        raise UsageError(f"--output-spaces {space}: only 2 mm is written.", f"Give {name} or {name}:res-2.")
    return name


def named_paths(items: Sequence[str]) -> dict[str, Path]:
    """``NAME=PATH`` items as a dictionary; a bare path is named after its folder."""
    found: dict[str, Path] = {}
    for item in items:
        name, separator, path = item.partition("=")
        if not separator:
            name, path = Path(item).absolute().name, item
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name == "raw" or name in found:
            raise UsageError(
                f"--derivatives {item}: '{name}' cannot be its name.",
                "Write NAME=PATH; names are letters, digits, - and _, differ from each other, and are not 'raw'.",
            )
        found[name] = Path(path).absolute()
    return found


def read_filter_file(path: Path | None) -> dict[str, dict[str, object]]:
    """Content of a ``--bids-filter-file``."""
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: not a readable JSON file ({error}).", "See --bids-filter-file in the README."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(filters, dict) for filters in content.values()):
        raise UsageError(
            f"{path}: a filter file is an object of objects.", 'For example: {"bold": {"task": "rest"}, "t1w": {}}'
        )
    return content


def read_config_file(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Options of a TOML file, as defaults for the parser."""
    import tomllib

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: not a readable TOML file ({error}).", "Start from a run's neurostorm.toml."
        ) from error
    options = content.get("options", {})
    if not isinstance(options, dict):
        raise UsageError(f"{path}: its options are no table.", "Start from a run's neurostorm.toml.")
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    unknown = sorted(set(options) - set(actions))
    if unknown:
        raise UsageError(f"{path}: unknown options {', '.join(unknown)}.", "See neurostorm --help.")
    defaults: dict[str, Any] = {}
    for name, value in options.items():
        try:
            defaults[name] = _as_option(actions[name], value)
        except (argparse.ArgumentTypeError, TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"{path}: {name} = {value!r} cannot be ({error}).", "See neurostorm --help.") from error
    return defaults


def _as_option(action: argparse.Action, value: Any) -> Any:
    """A value of a TOML file as the command line would give it."""
    if action.nargs == 0:
        if not isinstance(value, bool | int):
            raise TypeError("true or false is wanted")
        return value
    if (action.nargs == "+") != isinstance(value, list):
        raise TypeError("a list is wanted" if action.nargs == "+" else "one value is wanted")
    number = action.type in (int, float)
    items = value if isinstance(value, list) else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | float if number else str):
            raise TypeError("a number is wanted" if number else "text is wanted")
        if action.choices is not None and item not in action.choices:
            raise ValueError(f"choose among {', '.join(map(str, action.choices))}")
    found = [action.type(item) if callable(action.type) else item for item in items]
    return found if action.nargs == "+" else found[0]


def set_up_logging(verbosity: int) -> None:
    """Our own messages on stderr; those of the libraries only when asked for."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING, stream=sys.stderr)
    LOGGER.setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)
    if verbosity < 2:
        logging.getLogger("nipype").setLevel(logging.CRITICAL)
        logging.captureWarnings(True)
        logging.getLogger("py.warnings").setLevel(logging.ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the app; the returned number is the exit code."""
    try:
        settings = parse_settings(arguments)
        set_up_logging(settings.verbosity)
        prepare_environment(settings)
        if settings.level == GROUP:
            from bids_app.group import run_group as run
        else:
            from bids_app.workflow.participant import run_participants as run
        return run(settings)
    except NeurostormError as error:
        print(f"neurostorm: error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("neurostorm: interrupted. What is done is kept: the same command goes on from there.", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            print(f"neurostorm: error: {error.filename or 'a file'}: {error.strerror}.", file=sys.stderr)
            print("  Check the disk, its quota and its mount. What is done is kept.", file=sys.stderr)
            return InputOutputError.exit_code
        LOGGER.exception("neurostorm: a defect of the program; please report it with the lines below.")
        return EXIT_SOFTWARE


def prepare_environment(settings: Settings) -> None:
    """Set what libraries read when they are imported: threads, no telemetry, no writing to HOME."""
    threads = str(settings.resources.omp_threads)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = threads
    os.environ["NIPYPE_NO_ET"] = os.environ["NO_ET"] = "1"
    os.environ["MPLBACKEND"] = "Agg"
    os.environ["TEMPLATEFLOW_AUTOUPDATE"] = "off"
    if not settings.check:
        for name in CACHES_OF_LIBRARIES:
            os.environ.setdefault(name, str(settings.work_dir / CACHES / name.lower()))


if __name__ == "__main__":
    sys.exit(main())
