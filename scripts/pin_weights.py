"""Add the checksums of a lock file, and of the package's own files, to the catalog of models.

After ``neurostorm-models fetch`` on a machine with internet access: ``python scripts/pin_weights.py weights.lock``.
After a change of the demonstration model: ``python scripts/pin_weights.py``. A value that the catalog already has is
never replaced, except for files of the package.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from bids_app.catalog.fetch import file_sha256
from bids_app.catalog.lock import Checksum, read_lock, source_of
from bids_app.catalog.models import CATALOG, Entry, catalog


def pinned(text: str, entry: Entry, checksum: Checksum) -> str:
    """Return the text of the catalog with the checksum and size of an entry."""
    block = re.search(rf"^  {re.escape(entry.name)}:\n(?:    .*\n)+", text, re.MULTILINE)
    if block is None:
        raise ValueError(f"{entry.name}: not found in the catalog")
    new = block[0]
    for key, value in (("sha256", checksum.sha256), ("size", checksum.size)):
        if value is not None:
            new = re.sub(rf"^    {key}: .*\n", "", new, flags=re.MULTILINE)
            new = re.sub(r"^    file: .*\n", rf"\g<0>    {key}: {value}\n", new, flags=re.MULTILINE)
    return text.replace(block[0], new)


def contradiction(entry: Entry, checksum: Checksum, lock: Path) -> str:
    """Describe how a lock file contradicts the catalog; empty if it does not."""
    for name, old, new in (("size", entry.size, checksum.size), ("sha256", entry.sha256, checksum.sha256)):
        if old and new and old != new:
            return f"{entry.name}: {name} {old} in the catalog, {new} in {lock}"
    return ""


def main() -> int:
    """Write the catalog."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("lock", type=Path, nargs="?", metavar="LOCK")
    p.add_argument("--catalog", type=Path, default=CATALOG)
    arguments = p.parse_args()
    text = arguments.catalog.read_text(encoding="utf-8")
    recorded = read_lock(arguments.lock) if arguments.lock else {}
    for entry in [*catalog("models").values(), *catalog("adapters").values()]:
        checksum = recorded.get(source_of(entry))
        if not entry.repo:
            text = pinned(text, entry, Checksum(file_sha256(entry.path)))
        elif checksum is not None:
            if message := contradiction(entry, checksum, arguments.lock):
                print(message, file=sys.stderr)
                return 1
            text = pinned(text, entry, checksum)
    arguments.catalog.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
