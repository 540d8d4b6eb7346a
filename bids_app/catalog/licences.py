"""Licence of a container image: of the app, and of the models and atlases that the image includes.

python -m bids_app.catalog.licences                          # print it
python -m bids_app.catalog.licences --check "Apache-2.0"     # exit code 64 if the image has another one
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from bids_app.catalog import atlases
from bids_app.catalog.models import catalog, stored_entries
from bids_app.errors import EXIT_OK, NeurostormError, NoInputError, UsageError

OWN = "Apache-2.0"

SPDX = {
    "GPL": "GPL-1.0-or-later",
    "mit": "MIT",
    "apache-2.0": "Apache-2.0",
    **{f"cc-by{kind}-4.0": f"CC-BY{kind.upper()}-4.0" for kind in ("", "-nc", "-sa", "-nd", "-nc-sa", "-nc-nd")},
    "": "LicenseRef-not-stated",
    "other": "LicenseRef-other",
}
"""SPDX identifiers of licences that the catalog or the hub names otherwise. GPL without a version means any version."""


def licences_here() -> set[str]:
    """Return the licences of the models, adapters and atlases that are on this machine."""
    entries = [*catalog("models").values(), *catalog("adapters").values(), *stored_entries()]
    found = {entry.licence for entry in entries if entry.path.is_file()}
    for name in atlases.catalog():
        try:
            found.add(atlases.find_atlas(name).licence)
        except NoInputError:
            continue
    return found


def licence_expression(licences: Iterable[str]) -> str:
    """Return the SPDX expression for the app together with files under these licences."""
    others = {SPDX.get(name, name) for name in licences} - {OWN}
    return " AND ".join([OWN, *sorted(others)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or check the licence; return the exit code."""
    p = argparse.ArgumentParser(prog="licences", description="Licence of an image with what is on this machine.")
    p.add_argument("--check", metavar="EXPRESSION", help="SPDX expression that is expected")
    expected = p.parse_args(arguments).check
    expression = licence_expression(licences_here())
    try:
        if expected not in (None, expression):
            raise UsageError(
                f"The licence label would be '{expected}', but the image contains files under '{expression}'.",
                f'Set the build argument LICENSES="{expression}".',
            )
    except NeurostormError as error:
        print(f"licences: error: {error}", file=sys.stderr)
        return error.exit_code
    print(expression)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
