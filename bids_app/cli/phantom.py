"""Command ``neurostorm-phantom``: simulates a BIDS dataset."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bids_app.cli.outcome import exit_code_of
from bids_app.settings import default_cpus
from bids_app.terminal import count_of, escaped_output


def parser() -> argparse.ArgumentParser:
    """Make the argument parser."""
    p = argparse.ArgumentParser(
        prog="neurostorm-phantom",
        description="Simulate a BIDS dataset of resting-state, finger-tapping and checkerboard runs, "
        "with the ground truth in derivatives/truth.",
    )
    p.add_argument("out_dir", type=Path, metavar="OUT", help="new folder for the dataset")
    p.add_argument(
        "--participants",
        type=int,
        metavar="N",
        help="number of participants (default: 2, with --kind one of each kind)",
    )
    p.add_argument("--seed", type=int, default=1, metavar="S", help="the same seed gives the same bytes (default: 1)")
    p.add_argument(
        "--sessions", type=int, default=1, metavar="N", help="sessions per participant (default: 1, unnamed)"
    )
    p.add_argument("--runs", type=int, default=1, metavar="N", help="runs per state (default: 1, unnamed)")
    p.add_argument("--states", nargs="+", metavar="STATE", help="rest, lefthand, righthand, visual (default: all)")
    p.add_argument("--volumes", type=int, metavar="N", help="volumes per run (default: about 100 s, 60 to 120 volumes)")
    p.add_argument("--no-t1w", "--no_t1w", action="store_true", help="write no T1w images")
    p.add_argument("--size", choices=("full", "small"), default="full", help="small: coarse and short, for quick tests")
    p.add_argument(
        "--distortion", type=float, metavar="MM", help="maximum EPI distortion (default: 0, with fieldmaps 8)"
    )
    p.add_argument(
        "--kind",
        nargs="+",
        default=(),
        metavar="KIND",
        help="whole heads as difficult as real ones, in turn: adult, flash, mp2rage, multiband, child, old, thick, "
        "wrapped, coarse, stripped, or all (default: simple heads made of the registration template)",
    )
    p.add_argument("--fieldmaps", choices=("pepolar", "phasediff"), help="also write fieldmap scans of this type")
    p.add_argument("--nprocs", type=int, default=default_cpus(), metavar="N", help="scans to simulate in parallel")
    return p


@escaped_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parser().parse_args(argv)
    return exit_code_of("neurostorm-phantom", lambda: simulate(arguments), "Repeat the command.")


def simulate(arguments: argparse.Namespace) -> None:
    """Write the dataset."""
    from bids_app.phantom.activity import STATES  # imported late to keep --help fast
    from bids_app.phantom.dataset import DatasetPlan, write_dataset
    from bids_app.phantom.kinds import KINDS

    kinds = tuple(KINDS) if "all" in arguments.kind else tuple(arguments.kind)
    plan = DatasetPlan(
        participants=(len(kinds) or 2) if arguments.participants is None else arguments.participants,
        seed=arguments.seed,
        sessions=arguments.sessions,
        runs=arguments.runs,
        states=tuple(arguments.states or STATES),
        volumes=arguments.volumes,
        t1w=not arguments.no_t1w,
        size=arguments.size,
        distortion=arguments.distortion if arguments.distortion is not None else 8.0 * bool(arguments.fieldmaps),
        fieldmaps=arguments.fieldmaps,
        kinds=kinds,
    )
    runs = write_dataset(arguments.out_dir, plan, max(1, arguments.nprocs))
    print(f"{count_of(len(runs), 'run')} of {count_of(plan.participants, 'participant')} in {arguments.out_dir}")


if __name__ == "__main__":
    sys.exit(main())
