"""Replace the NiiVue that the package ships by another version: ``python scripts/update_niivue.py 0.69.0``.

The package is fetched with npm, which checks it against the registry's checksum. The file, its checksum and its name
in the code and in NOTICE are replaced. Afterwards: compare the licences of its dependencies with
bids_app/reports/assets/niivue-LICENSE.txt, and run the tests of the viewer in a browser
(``pytest -m slow tests/reports/test_viewer_in_browser.py``).
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "bids_app" / "reports" / "assets"
SOURCE = "package/dist/niivue.umd.js"
"""File of the npm package that defines the global ``niivue``."""
MENTIONS = ("bids_app/reports/viewer.py", "bids_app/reports/assets/niivue-LICENSE.txt", "NOTICE")
"""Files that name the version."""


def fetch(version: str) -> bytes:
    """Return the script of a version of NiiVue."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, f"@niivue/niivue@{version}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as package:
            member = package.extractfile(SOURCE)
            if member is None:
                raise SystemExit(f"{SOURCE} is not in the package.")
            return member.read()


def main() -> int:
    """Replace the file and its mentions."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("version", metavar="VERSION")
    version = p.parse_args().version
    content = fetch(version)
    for old in ASSETS.glob("niivue-*.js"):
        old.unlink()
    (ASSETS / f"niivue-{version}.js").write_bytes(content)
    for name in MENTIONS:
        path = ROOT / name
        text = re.sub(r"(?i)(niivue[- ])\d+\.\d+\.\d+", rf"\g<1>{version}", path.read_text(encoding="utf-8"))
        digest = hashlib.sha256(content).hexdigest()
        text = re.sub(r'NIIVUE_SHA256 = "[0-9a-f]*"', f'NIIVUE_SHA256 = "{digest}"', text)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
