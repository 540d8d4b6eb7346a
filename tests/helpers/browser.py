"""HTML pages in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--allow-file-access-from-files", "--virtual-time-budget=8000",
)  # fmt: skip
FRAME = """<body><iframe id="f" width="%d" height="900" src="%s"></iframe><pre id="out"></pre><script>
document.getElementById("f").onload = async (event) => {
  const inner = event.target.contentDocument, look = async () => { %s };
  document.getElementById("out").textContent = JSON.stringify({ found: await look() });
};
</script></body>"""
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium")


def look(page: Path, tmp_path: Path, script: str, width: int = 1400) -> Any:
    """Run a script on a page (its variable ``inner``) in a frame of a given width (pixels); return its result."""
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME % (width, page.as_uri(), script))
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", frame.as_uri()]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', output, re.DOTALL)[1]))["found"]
