"""The group's page in a real browser: it fits narrow screens, its figures load, and its tables sort."""

import html
import json
import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--allow-file-access-from-files", "--virtual-time-budget=8000",
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs chromium")]

FRAME = """<body><iframe id="f" width="%d" height="900" src="%s"></iframe><pre id="out"></pre><script>
document.getElementById("f").onload = async (event) => {
  const inner = event.target.contentDocument, look = async () => { %s };
  document.getElementById("out").textContent = JSON.stringify({ found: await look() });
};
</script></body>"""


@pytest.fixture
def in_browser(finished, tmp_path):
    """A function that returns what a script says of the page (``inner``), shown in a frame of so many pixels."""

    def look(script, width=1400):
        frame = tmp_path / "frame.html"
        frame.write_text(FRAME % (width, (finished.out / "group.html").as_uri(), script))
        command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", frame.as_uri()]
        output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        return json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', output, re.DOTALL)[1]))["found"]

    return look


@pytest.mark.parametrize("width", [320, 400, 768, 1400])
def test_nothing_sticks_out_of_the_page(in_browser, width):
    client, scroll = in_browser("const e = inner.documentElement; return [e.clientWidth, e.scrollWidth];", width)
    assert client > 0.9 * width
    assert scroll <= client


def test_every_figure_is_loaded_and_described(in_browser):
    script = """const images = [...inner.images];
        for (const image of images) image.loading = "eager";
        await Promise.all(images.map((image) => image.decode().catch(() => null)));
        return images.map((image) => [image.naturalWidth, image.alt]);"""
    found = in_browser(script)
    assert len(found) == 8
    assert all(width > 100 and alt for width, alt in found)


def test_tables_sort_by_numbers_and_by_words(in_browser):
    script = """const table = [...inner.querySelectorAll("#sites table")][0], column = (i) =>
            [...table.tBodies[0].rows].map((row) => row.cells[i].textContent);
        const heads = table.tHead.rows[0].cells, found = [];
        for (const i of [1, 1, 0, 0]) { heads[i].querySelector("button").click(); found.push(column(i)); }
        return found;"""
    falling, rising, last_first, first_first = in_browser(script)
    numbers = [float(text) for text in falling]
    assert numbers == sorted(numbers, reverse=True)
    assert [float(text) for text in rising] == sorted(numbers)
    assert first_first == last_first[::-1]
    assert first_first == sorted(first_first, key=str.lower)
