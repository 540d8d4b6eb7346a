"""Command ``neurostorm``: parses the arguments, runs the analysis level and returns the exit code.

Heavy packages are imported after the arguments are parsed, so that ``--help`` and ``--version`` stay fast.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bids_app import __version__
from bids_app.cli.boutiques import VARIANTS, describe
from bids_app.cli.config_file import read_config_file
from bids_app.cli.options import CONFIG_FILE, DESCRIPTION, all_options
from bids_app.cli.other_pipelines import refuse_foreign_options
from bids_app.cli.outcome import exit_code_of, hide_warnings_of_resource_trackers, leave, raise_when_terminated
from bids_app.errors import EXIT_CODES, EXIT_UNKNOWN_OPTION, UsageError
from bids_app.preprocess.registration.ants_program import PROCESSORS
from bids_app.settings import CACHES, GROUP, GROUPS, PARTICIPANT, Option, Settings, refuse_empty, settings_from
from bids_app.terminal import escaped_output, terminal_log
from bids_app.workflow.supervisor import supervise

LOGGER = logging.getLogger("bids_app.cli.neurostorm")  # also where this module is run by python -m

CACHES_OF_LIBRARIES = ("MPLCONFIGDIR", "NIPYPE_CONFIG_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Environment variables of folders that libraries would otherwise put in HOME; existing values are kept."""

NO_CACHE = "/proc"
"""A folder that always exists, in which nobody can create a file."""

EPILOG = f"""exit codes: {"; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())}.
NeuroSTORM is a research tool, not a medical device."""


def build_parser() -> Parser:
    """Make the argument parser from the options of the settings."""
    parser = Parser(
        prog="neurostorm",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    options = list(all_options())
    for option in options:
        if option.is_positional:
            add_option(parser, option)
    add_exit_options(parser)
    for heading in GROUPS:
        group = parser.add_argument_group(heading)
        for option in options:
            if option.group == heading:
                add_option(group, option)
    return parser


def add_exit_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that print something and exit."""

    def add(name: str, action: type[argparse.Action], text: str, **options: Any) -> None:
        parser.add_argument(*spellings([name]), action=action, help=f"{text}, and exit", **options)

    parser.add_argument("--version", action="version", version=f"neurostorm {__version__}")
    add("--list-models", ListModels, "list the available models and adapters")
    add(
        "--self-test",
        SelfTest,
        "check in a few seconds that this installation computes correct numbers, on CPU and GPU",
    )
    add(
        "--bids-exec-spec",
        PrintDescriptor,
        "print the Boutiques descriptor of the cpu or cuda image",
        choices=VARIANTS,
    )


def add_option(group: Any, option: Option) -> None:
    """Add an option to a parser or an argument group."""
    shown: dict[str, Any] = {"help": option.text.replace("%", "%%")}
    if option.flag:
        shown["action"] = "store_true"
    elif option.counted:
        shown["action"] = "count"
    else:
        shown |= {"type": option.type, "metavar": option.metavar, "choices": option.choices or None}
        shown |= {"nargs": "+", "action": "extend"} if option.many else {}
    group.add_argument(*spellings(option.names), **shown)


def spellings(names: Sequence[str]) -> list[str]:
    """Return the names of an option, with dashes and with underscores."""
    return list(dict.fromkeys([*names, *("--" + n[2:].replace("-", "_") for n in names if n.startswith("--"))]))


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors take two lines and name an option by one spelling."""

    @property
    def spellings(self) -> Collection[str]:
        """All spellings of all options."""
        return self._option_string_actions

    def error(self, message: str) -> NoReturn:
        code, hint = UsageError.exit_code, "See neurostorm --help."
        value = re.fullmatch(r"argument (\S+): (.*)", message, re.DOTALL)
        unknown = re.fullmatch(r"unrecognized arguments: ((\S+).*)", message, re.DOTALL)
        if value and value[1].startswith("-"):
            names = value[1].split("/")
            message = f"Invalid value for {next((n for n in names if n.startswith('--')), names[0])}: {value[2]}"
        elif unknown:
            import difflib

            code, message = EXIT_UNKNOWN_OPTION, f"unknown arguments: {unknown[1]}"
            similar = difflib.get_close_matches(unknown[2].partition("=")[0], self.spellings, n=1)
            hint = f"Did you mean {similar[0]}? {hint}" if similar else hint
        self.exit(code, f"neurostorm: error: {message}\n  {hint}\n")


class PrintAndExit(argparse.Action):
    """Base of options such as ``--version`` that need no positional arguments."""

    def __init__(self, option_strings: Sequence[str], dest: str, nargs: int | str = 0, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=nargs, **options)


class ListModels(PrintAndExit):
    """Print the catalog."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from bids_app.cli.models import main as models

        models(["list"])
        parser.exit()


class SelfTest(PrintAndExit):
    """Run the self-test."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from bids_app.cli.selftest import run_self_test

        run_self_test()
        parser.exit()


class PrintDescriptor(PrintAndExit):
    """Print the Boutiques descriptor of the command."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs="?", const=VARIANTS[0], **options)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        print(json.dumps(describe(values), indent=2))
        parser.exit()


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Parse arguments to settings; the command line takes precedence over ``--config-file``.

    Raises
    ------
    UsageError, AnalysisLevelError
        Conflicting options, empty values, options of other pipelines, or an unknown analysis level.
    SystemExit
        Unknown options or invalid values, and after ``--help``.
    """
    parser = build_parser()
    words = sys.argv[1:] if arguments is None else arguments
    refuse_foreign_options(words, parser.spellings)
    given = vars(parser.parse_args(words))
    file = {}
    if CONFIG_FILE.key in given:
        refuse_empty(CONFIG_FILE, given[CONFIG_FILE.key])
        file = read_config_file(Path(given[CONFIG_FILE.key]))
    return settings_from(file, given)


@escaped_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the app and return its exit code."""
    return exit_code_of("neurostorm", lambda: run_command(arguments))


def run() -> NoReturn:
    """Run the app and exit with its code."""
    leave(main())


def run_command(arguments: Sequence[str] | None) -> int:
    """Run the app and return its exit code."""
    settings = parse_settings(arguments)
    if arguments is None and settings.level == PARTICIPANT and not settings.check:
        code = supervise((settings.work_dir, settings.out_dir))
        if code is not None:
            return code
    raise_when_terminated()
    prepare_environment(settings)
    # libraries read code and settings from the working folder, which may be a dataset
    with contextlib.chdir("/"), terminal_log(settings.verbosity):
        if not settings.check:
            LOGGER.info("%s", first_line(settings))  # the imports take seconds
        if settings.level == GROUP:
            from bids_app.group import run_group as run
        else:
            from bids_app.workflow.fork_server import start_for

            start_for(settings)
            with without_collection():
                from bids_app.workflow.participant import run_participants as run
        return run(settings)


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Import without collecting garbage, which would take a fifth of the time: modules stay until the end."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def first_line(settings: Settings) -> str:
    """Return what is done, to what, and where the results and logs go."""
    labels = settings.query.participants
    whom = f" of {', '.join(f'sub-{label}' for label in labels)}" if labels else ""
    logs = f"; logs: {settings.out_dir / 'sub-*' / 'log'}" if settings.level == PARTICIPANT else ""
    return f"neurostorm {__version__}, {settings.level} level{whom}: {settings.bids_dir} to {settings.out_dir}{logs}"


def prepare_environment(settings: Settings) -> None:
    """Set the environment of imported libraries: threads, no telemetry, caches outside HOME."""
    threads = str(settings.resources.omp_threads)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = threads
    os.environ[PROCESSORS] = str(settings.resources.n_procs)
    os.environ["NIPYPE_NO_ET"] = os.environ["NO_ET"] = "1"
    os.environ["MPLBACKEND"] = "Agg"
    os.environ["PYTHONSAFEPATH"] = "1"
    hide_warnings_of_resource_trackers()
    os.environ["TEMPLATEFLOW_AUTOUPDATE"] = "off"
    for name in CACHES_OF_LIBRARIES:
        if settings.check:
            os.environ[name] = NO_CACHE  # libraries create these folders when they are imported
        elif os.environ.get(name, NO_CACHE) == NO_CACHE:
            os.environ[name] = str(settings.work_dir / CACHES / name.lower())


if __name__ == "__main__":
    run()
