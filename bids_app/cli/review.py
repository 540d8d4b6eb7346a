"""Command ``neurostorm-review``: rate the figures of an output folder in a browser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bids_app.cli.outcome import exit_code_of
from bids_app.errors import UsageError
from bids_app.terminal import escaped_output

PROGRAM = "neurostorm-review"


def parser() -> argparse.ArgumentParser:
    """Make the argument parser."""
    p = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Rate the figures of an output folder in a browser, one at a time. Ratings are stored in "
        "OUT/ratings; the group level compares and uses them.",
    )
    p.add_argument("out_dir", type=Path, metavar="OUT", help="output folder of neurostorm")
    p.add_argument("--rater", metavar="LABEL", help="name of the rater, letters and digits; required for the server")
    p.add_argument("--port", type=int, default=0, metavar="N", help="port on 127.0.0.1 (default: a free one)")
    p.add_argument("--browser", action="store_true", help="also open the page in the default browser")
    p.add_argument(
        "--static",
        action="store_true",
        help="write OUT/review.html instead, which works without a server: ratings are kept in the browser, and "
        "downloaded as a file for OUT/ratings",
    )
    return p


@escaped_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parser().parse_args(argv)
    return exit_code_of(PROGRAM, lambda: review(arguments), resume="Ratings are stored.")


def review(arguments: argparse.Namespace) -> None:
    """Serve the review, or write its page.

    Raises
    ------
    UsageError
        The options are not valid together.
    """
    if arguments.static:
        if arguments.rater or arguments.port or arguments.browser:
            raise UsageError(
                "--static cannot be combined with --rater, --port or --browser.",
                "Enter the name of the rater on the page.",
            )
        write_static(arguments.out_dir)
        return
    if arguments.rater is None:
        raise UsageError("--rater is missing.", "Give the name of the rater, such as --rater AB.")
    serve(arguments)


def write_static(out_dir: Path) -> None:
    """Write the page that works without a server."""
    from bids_app.review.figures import find_review
    from bids_app.review.page import write_static_page

    found = find_review(out_dir)
    report_left_out(found.left_out)
    print(f"{len(found.figures)} figures: {write_static_page(found)}")


def serve(arguments: argparse.Namespace) -> None:
    """Serve the review until Ctrl+C, which is its normal end."""
    from bids_app.outputs.ratings import check_rater, ratings_path
    from bids_app.review.figures import find_review

    try:
        from bids_app.review import server
    except ImportError as error:
        raise UsageError(
            f"The server needs starlette and uvicorn ({error}).",
            'Install them: pip install "neurostorm[review]"; or use --static, which needs no server.',
        ) from error

    rater = check_rater(arguments.rater)
    report_left_out(find_review(arguments.out_dir).left_out)

    def announce(address: str) -> None:
        print(f"Open in a browser on this machine: {address}")
        print(f"Ratings: {ratings_path(arguments.out_dir, rater)}. Ctrl+C ends.", flush=True)
        if arguments.browser:
            import webbrowser

            webbrowser.open(address)

    try:
        server.serve(arguments.out_dir, rater, arguments.port, announce)
    except KeyboardInterrupt:
        print("\nEnded; all ratings are stored.")


def report_left_out(names: Sequence[str]) -> None:
    """Warn of figures that are left out."""
    if names:
        first = ", ".join(names[:3])
        print(f"{len(names)} figures without a BIDS name are left out: {first}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
