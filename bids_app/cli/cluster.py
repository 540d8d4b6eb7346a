"""Command ``neurostorm-cluster``: process many participants as array jobs of a cluster."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bids_app.cli.outcome import exit_code_of, raise_when_terminated
from bids_app.errors import EXIT_OK, UsageError
from bids_app.settings import Settings
from bids_app.settings.values import memory_gb
from bids_app.terminal import count_of, escaped_output

PROGRAM = "neurostorm-cluster"
SCHEDULERS = ("slurm", "sge", "pbs", "lists")  # as in bids_app.cluster.schedulers
TIME = re.compile(r"(?:\d{1,3}-)?\d{1,4}:[0-5]\d:[0-5]\d")


def parser() -> argparse.ArgumentParser:
    """Make the argument parser."""
    p = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Process many participants as array jobs of a cluster: prepare once, submit, look at the progress, "
        "and submit again what failed or was killed.",
        allow_abbrev=False,
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_prepare(commands)
    submit = commands.add_parser("submit", help="submit all participants that are not done and not in the queue")
    submit.add_argument("out_dir", type=Path, metavar="OUT", help="output folder")
    submit.add_argument("--participants", type=Path, metavar="FILE", help="only these, also if they are done")
    submit.add_argument("--only-killed", action="store_true", help="leave out those that failed by themselves")
    submit.add_argument(
        "--again", action="store_true", help="scheduler lists: also those whose task has not been started"
    )
    status = commands.add_parser("status", help="print the states of the participants, and write OUT/progress.html")
    status.add_argument("out_dir", type=Path, metavar="OUT", help="output folder")
    status.add_argument("--list", metavar="STATE", help="print the labels of the participants in this state instead")
    return p


def _add_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    p = commands.add_parser(
        "prepare",
        help="write down what is to be done; nothing is submitted",
        usage=f"{PROGRAM} prepare [options] BIDS OUT -- [options of neurostorm]",
        allow_abbrev=False,
    )
    p.add_argument("bids_dir", type=Path, metavar="BIDS", help="dataset")
    p.add_argument("out_dir", type=Path, metavar="OUT", help="output folder; the files are in OUT/logs/cluster")
    p.add_argument(
        "--participants",
        type=Path,
        metavar="FILE",
        help="list of participants: participants.tsv, or labels between spaces, commas or lines (default: all)",
    )
    p.add_argument("--shard-size", type=_positive, default=1, metavar="N", help="participants of a task (default: 1)")
    p.add_argument(
        "--scheduler", choices=SCHEDULERS, default="slurm",
        help="lists: write the script and the lists only (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--cpus", type=_positive, default=2, metavar="N", help="processors of a task (default: 2)")
    p.add_argument("--mem", type=memory_gb, default=6.0, metavar="SIZE", help="memory of a task (default: 6GB)")
    p.add_argument("--time", type=_time, default="02:00:00", help="time limit of a task (default: %(default)s)")
    p.add_argument("--max-running", type=_positive, metavar="N", help="maximum number of tasks at the same time")
    p.add_argument(
        "--max-array", type=_positive, default=1000, metavar="N",
        help="maximum number of tasks of one array job; more tasks are several jobs (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--scheduler-options", type=_words, default=(), metavar="WORDS",
        help="further options of sbatch or qsub in one word, such as '--partition=long --account=x'",
    )  # fmt: skip
    p.add_argument(
        "--neurostorm", type=_quoted, default=None, metavar="WORDS",
        help="command that runs the app, such as 'apptainer run --containall -B /data neurostorm.sif' "
        "(default: neurostorm of this installation)",
    )  # fmt: skip


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return value


def _time(text: str) -> str:
    if not TIME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 02:00:00, or 1-00:00:00 for a day")
    return text


def _quoted(text: str) -> str:
    """Return a command as it is, if its quotation marks are closed."""
    _words(text)
    return text


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


@escaped_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    options = words[end + 1 :]
    arguments = parser().parse_args(words[:end])
    if options and arguments.command != "prepare":
        parser().error(f"{arguments.command} takes no options of neurostorm")
    command = {"prepare": lambda: prepare(arguments, options), "submit": lambda: submit(arguments)}
    if argv is None:
        raise_when_terminated()
    return exit_code_of(PROGRAM, command.get(arguments.command, lambda: status(arguments)), resume="")


def prepare(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Check the options, and write down what is to be done."""
    settings = check_options(arguments, options)
    from bids_app.bids.description import check_output_folder
    from bids_app.cluster.cohort import Cohort, Resources, write_cohort
    from bids_app.cluster.participants import find_participants, read_list
    from bids_app.cluster.states import decisive_options
    from bids_app.settings import as_options

    wanted = None if arguments.participants is None else read_list(arguments.participants)
    found = find_participants(settings.bids_dir, wanted)
    check_output_folder(settings.out_dir)
    own = Path(sys.executable).with_name("neurostorm")
    cohort = Cohort(
        bids_dir=str(settings.bids_dir),
        out_dir=str(settings.out_dir),
        participants=tuple(found),
        options=tuple(options),
        decisive=decisive_options(as_options(settings)),
        working_folder=os.getcwd(),
        command=arguments.neurostorm or shlex.quote(str(own) if own.exists() else "neurostorm"),
        scheduler=arguments.scheduler,
        shard_size=arguments.shard_size,
        resources=Resources(
            cpus=arguments.cpus,
            memory_gb=arguments.mem,
            time=arguments.time,
            max_running=arguments.max_running,
            max_array=arguments.max_array,
            scheduler_options=tuple(arguments.scheduler_options),
        ),
    )
    path = write_cohort(cohort)
    n_tasks = -(-len(found) // arguments.shard_size)
    print(f"{count_of(len(found), 'participant')}, {count_of(n_tasks, 'task')}: {path}")
    print(f"Next: {PROGRAM} submit {shlex.quote(str(settings.out_dir))}")
    return EXIT_OK


def check_options(arguments: argparse.Namespace, options: Sequence[str]) -> Settings:
    """Check the options of ``neurostorm`` as that command does.

    Raises
    ------
    UsageError
        Options that choose participants, or that do not process them.
    SystemExit
        Unknown options or invalid values.
    """
    from bids_app.cli.neurostorm import parse_settings

    for name in ("bids_dir", "out_dir"):
        if str(getattr(arguments, name)) in ("", "."):
            raise UsageError(f"{name}: the path is empty, or the current folder.", "Is a variable unset?")
    if arguments.neurostorm is not None and not _words(arguments.neurostorm):
        raise UsageError("--neurostorm is empty.", "Is a variable unset?")
    settings = parse_settings([str(arguments.bids_dir), str(arguments.out_dir), "participant", *options])
    if settings.query.participants:
        raise UsageError("--participant-label is set by the jobs.", "Give a list: --participants FILE, before --.")
    if settings.check or settings.reports_only or settings.boilerplate_only:
        raise UsageError(
            "--check, --reports-only and --boilerplate-only process no participants.", "Give them to neurostorm itself."
        )
    return settings


def submit(arguments: argparse.Namespace) -> int:
    """Submit what is not done."""
    from bids_app.cluster.cohort import read_cohort
    from bids_app.cluster.participants import read_list
    from bids_app.cluster.script import SCRIPT
    from bids_app.cluster.submit import submit as submit_cohort

    cohort = read_cohort(arguments.out_dir)
    wanted = read_list(arguments.participants) if arguments.participants else ()
    submission = submit_cohort(cohort, wanted, arguments.only_killed, arguments.again)
    if submission is None:
        print(f"Nothing to submit. {PROGRAM} status {shlex.quote(cohort.out_dir)} shows the states.")
        return EXIT_OK
    whom, n_tasks = count_of(sum(map(len, submission.shards)), "participant"), len(submission.shards)
    if cohort.scheduler == "lists":
        script = shlex.quote(str(Path(submission.folder) / SCRIPT))
        print(f"{whom}: run bash {script} NUMBER for each NUMBER from 1 to {n_tasks}.")
    else:
        jobs = ", ".join(job.job_id for job in submission.jobs)
        print(f"Submitted: {whom} in {count_of(n_tasks, 'task')}; job {jobs}")
    return EXIT_OK


def status(arguments: argparse.Namespace) -> int:
    """Print the states, and write the page."""
    from bids_app.cluster.cohort import read_cohort, read_submissions
    from bids_app.cluster.progress import as_text, write_page
    from bids_app.cluster.states import STATES, read_progress

    if arguments.list is not None and arguments.list not in STATES:
        raise UsageError(f"Invalid value for --list: {arguments.list}.", f"States are {', '.join(STATES)}.")
    cohort = read_cohort(arguments.out_dir)
    progress = read_progress(cohort, list(read_submissions(cohort)))
    if arguments.list is not None:
        print("\n".join(each.label for each in progress.participants if each.state == arguments.list))
        return EXIT_OK
    print(as_text(cohort, progress))
    print(f"Page: {write_page(cohort, progress)}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
