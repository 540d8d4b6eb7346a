"""Take the screenshots of the documentation: viewer of a report, index, group report, and review.

After `make demo`, with an attribution for the viewer, the group level and the static page of the review:

    neurostorm demo/dataset demo/out participant --model demo --attribution gradients --work-dir demo/work
    neurostorm demo/dataset demo/out group --work-dir demo/work
    neurostorm-review demo/out --static
    python scripts/screenshots.py demo/out

Needs Chromium; the viewer is drawn by the processor.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
SIZE = (1280, 800)
"""Of the page, CSS pixels."""
QUALITY = 82
SETTLE_S = 1.5
"""Time for images to load and be drawn."""
OPEN_VIEWER = "document.querySelector('.viewer button').click()"
READY = "document.querySelector('.viewer').dataset.ready !== undefined"


@dataclass(frozen=True)
class Shot:
    """Screenshot: its name, the page, an expression to wait for after a script, and what is scrolled to."""

    name: str
    page: str
    script: str = ""
    until: str = "true"
    place: str = ""


SHOTS = (
    Shot("report", "sub-01.html", OPEN_VIEWER, READY, "#viewer"),
    Shot("index", "index.html"),
    Shot("group", "group.html", place="#wall"),
    Shot("review", "review.html"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the screenshots."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--images", type=Path, default=IMAGES)
    given = p.parse_args(arguments)
    sys.path.append(str(ROOT / "benchmarks"))
    from chromium import Browser

    given.images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Browser(*SIZE, webgl=True) as browser:
        for shot in SHOTS:
            browser.open((given.out / shot.page).resolve().as_uri())
            if shot.script:
                browser.run(shot.script)
                browser.wait(shot.until, 60)
            if shot.place:
                browser.run(f"document.querySelector('{shot.place}').scrollIntoView()")
            time.sleep(SETTLE_S)
            picture = Path(folder) / "page.png"
            browser.screenshot(picture)
            Image.open(picture).convert("RGB").save(given.images / f"{shot.name}.webp", quality=QUALITY, method=6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
