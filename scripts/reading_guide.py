"""Write docs/reading-reports.md from the texts of the report's fold-outs: ``python scripts/reading_guide.py``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bids_app.reports.reading import EXAMPLES, FOLDER, guide_markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reading-reports.md"


def page_text() -> str:
    """Return the text of the page."""
    return guide_markdown(Path(os.path.relpath(FOLDER / EXAMPLES, PAGE.parent)).as_posix())


def main() -> int:
    """Write the page."""
    PAGE.write_text(page_text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
