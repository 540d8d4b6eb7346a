"""The page in a real browser: it fits narrow screens, runs no foreign script, and its buttons work."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bids_app.reports.participant import build_participant_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--allow-file-access-from-files", "--virtual-time-budget=8000",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium"),
]

FRAME = """<body><iframe id="f" width="%d" height="900" src="%s"></iframe><pre id="out"></pre><script>
document.getElementById("f").onload = (event) => {
  const inner = event.target.contentDocument, result = {};
  const look = (action) => { %s };
  result.found = look();
  document.getElementById("out").textContent = JSON.stringify(result);
};
</script></body>"""


def in_browser(page: Path, tmp_path: Path, script: str, width: int = 1400):
    """What a script says of a page (``inner``) shown in a frame of so many pixels."""
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME % (width, page.as_uri(), script))
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", frame.as_uri()]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', output, re.DOTALL)[1]))["found"]


@pytest.mark.parametrize("width", [320, 400, 768, 1400])
def test_nothing_sticks_out_of_the_page(derivatives, tmp_path, width):
    page = build_participant_report(derivatives.out, "01")
    script = "const e = inner.documentElement; return [e.clientWidth, e.scrollWidth];"
    client, scroll = in_browser(page, tmp_path, script, width)
    assert client > 0.9 * width
    assert scroll <= client


def test_every_figure_is_loaded_under_the_pages_own_policy(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    script = """for (const i of inner.images) i.loading = "eager";
        return [...inner.images].map((i) => [i.getAttribute("src"), i.getAttribute("alt")]);"""
    found = in_browser(page, tmp_path, script)
    assert len(found) > 10
    assert all(alt for _, alt in found)


def test_the_buttons_choose_the_image(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    script = """const row = inner.querySelector(".flicker"), image = row.closest("figure").querySelector("img");
        const before = [row.hidden, image.getAttribute("src")];
        row.children[1].click();
        return [...before, image.getAttribute("src"), row.children[1].getAttribute("aria-pressed")];"""
    hidden, before, after, pressed = in_browser(page, tmp_path, script)
    assert not hidden
    assert after == f"{before}#second"
    assert pressed == "true"


def test_scripts_in_names_and_values_do_not_run(derivatives, tmp_path):
    out = Path(shutil.copytree(derivatives.out, tmp_path / "out"))
    evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    log = next(out.glob("sub-01/log/*/summary.json"))
    content = json.loads(log.read_text())
    content["runs"][2] |= {"reason": evil, "hint": evil}
    log.write_text(json.dumps(content))
    (out / "logs/CITATION.md").write_text(evil)
    page = build_participant_report(out, "01")
    assert in_browser(page, tmp_path, "return inner.title;") == "sub-01 | NeuroSTORM"


def test_a_script_that_got_into_the_page_is_stopped_by_its_policy(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    spoiled = tmp_path / "spoiled.html"
    text = page.read_text().replace("<main>", "<main><script>document.title='owned'</script>")
    spoiled.write_text(text)
    assert in_browser(spoiled, tmp_path, "return inner.title;") == "sub-01 | NeuroSTORM"
    spoiled.write_text(re.sub('<meta http-equiv="Content-Security-Policy".*?>', "", text, flags=re.DOTALL))
    assert in_browser(spoiled, tmp_path, "return inner.title;") == "owned"  # so that the test can fail
