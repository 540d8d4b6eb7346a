"""Viewer of the participant report in a browser with WebGL computed by the processor."""

import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from bids_app.reports.participant import build_participant_report
from bids_app.reports.viewer import ASSETS, NIIVUE
from tests.helpers.browser import needs_browser
from tests.helpers.scripts import load_benchmark
from tests.reports.conftest import EFFECT_MM, REGIONS

pytestmark = [pytest.mark.slow, needs_browser]
chromium = partial(load_benchmark, "chromium")
PLACE = "document.querySelector('.viewer')"
VIEWER = f"{PLACE}.viewer"
FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""Waits until what was changed is drawn."""


def control(label):
    """Return the script of the control with a label."""
    labels = "[...document.querySelectorAll('.viewer label')]"
    return f"{labels}.find((one) => one.textContent.startsWith('{label}')).control"


def choose(browser, label, value):
    """Set a control, and wait for its effect."""
    events = "".join(f"one.dispatchEvent(new Event('{name}'));" for name in ("input", "change"))
    browser.run(f"{{ const one = {control(label)}; one.value = '{value}'; {events} }}")
    browser.run(FRAMES)


def press_open(browser, page):
    browser.open(page.as_uri())
    browser.run(f"{PLACE}.querySelector('button').click()")


def open_viewer(browser, page):
    press_open(browser, page)
    browser.wait(f"{PLACE}.dataset.ready !== undefined")


def canvas_box(browser):
    """Scroll to the canvas, and return its left, top, right and bottom edge, pixels."""
    browser.run(f"{PLACE}.scrollIntoView()")
    box = browser.run(f"{PLACE}.querySelector('canvas').getBoundingClientRect().toJSON()")
    return [round(box[name]) for name in ("left", "top", "right", "bottom")]


def colours(browser, tmp_path):
    """Return the picture of the canvas, (rows, columns, 3)."""
    box, path = canvas_box(browser), tmp_path / "page.png"
    browser.run(FRAMES)
    browser.screenshot(path)
    return np.asarray(Image.open(path).convert("RGB").crop(box)).astype(int)


def position(browser, point):
    """Return where the viewer draws a point (mm) in the axial view: column and row of the canvas."""
    return browser.run(f"[...{VIEWER}.frac2canvasPos({VIEWER}.mm2frac({list(point)}))].slice(0, 2)")


def is_warm(pixels):
    """Return which pixels are orange or yellow."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    return (red > 180) & (green > 90) & (blue < 110)


def text_of(browser):
    return browser.run(f"{PLACE}.textContent")


def test_the_overlay_is_where_the_simulated_effect_is(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    with chromium().Browser(1300, 1000, webgl=True) as browser:
        open_viewer(browser, page)
        assert not [event for event in browser.events if event.get("method") == "Runtime.exceptionThrown"]
        choose(browser, "View", "axial")
        pixels = colours(browser, tmp_path)
        rows, columns = np.nonzero(is_warm(pixels))
        assert len(rows) > 300
        assert [columns.mean(), rows.mean()] == pytest.approx(position(browser, EFFECT_MM), abs=5)
        assert columns.max() < pixels.shape[1] / 2  # left is left
        choose(browser, "Opacity", "0")
        assert is_warm(colours(browser, tmp_path)).sum() == 0  # so that the test can fail


def test_a_region_shows_its_name_time_course_and_contribution(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    with chromium().Browser(1300, 1000, webgl=True) as browser:
        open_viewer(browser, page)
        choose(browser, "View", "axial")
        left, top, *_ = canvas_box(browser)
        across, down = position(browser, (40, -20, 50))
        for kind, buttons in (("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 0)):
            options = {"x": left + across, "y": top + down, "button": "left", "buttons": buttons, "clickCount": 1}
            browser.call("Input.dispatchMouseEvent", type=kind, **options)
        browser.wait(f"{PLACE}.textContent.includes('{REGIONS[1]}:')")
        found = text_of(browser)
        assert "contribution to left <i>hand</i> -0.0200 log-odds (SD over clips 0.00200, p = -0.002)" in found
        assert f"Time course of {REGIONS[1]}: 60 points in 120 s, -0.500 to 0.500 % of the mean." in found
        assert len(browser.run(f"{PLACE}.querySelector('polyline').getAttribute('points').split(' ')")) == 60
        assert browser.run(f"{PLACE}.querySelectorAll('b, i').length") == 0  # names are text


def test_the_keyboard_moves_the_crosshair(derivatives):
    page = build_participant_report(derivatives.out, "01")
    with chromium().Browser(1300, 1000, webgl=True) as browser:
        open_viewer(browser, page)
        before = text_of(browser)
        assert "x = -40, y = -20, z = 50 mm" in before  # the largest contribution
        browser.run(f"{PLACE}.querySelector('canvas').focus()")
        for key in ("ArrowRight", "ArrowRight", "PageDown"):
            browser.press(key)
        assert "x = -36, y = -20, z = 48 mm" in text_of(browser)
        labelled = "(one) => one.getAttribute('aria-label') ?? one.labels[0].textContent"
        names = browser.run(f"[...document.querySelectorAll('.viewer :is(select, input, canvas)')].map({labelled})")
        assert all(names)


def test_other_runs_and_backgrounds_are_shown(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    with chromium().Browser(1300, 1000, webgl=True) as browser:
        open_viewer(browser, page)
        ready = int(browser.run(f"{PLACE}.dataset.ready"))
        for n, (label, value) in enumerate([("Run", "1"), ("Background", "template"), ("Background", "bold")], 1):
            choose(browser, label, value)
            browser.wait(f"{PLACE}.dataset.ready === '{ready + n}'")
            assert colours(browser, tmp_path).max() > 200
        choose(browser, "Contributions", "")
        browser.wait(f"{PLACE}.dataset.ready === '{ready + 4}'")
        assert browser.run(f"{VIEWER}.volumes.length") == 4
        assert is_warm(colours(browser, tmp_path)).sum() == 0


def test_without_webgl_one_line_says_so_and_the_figures_stay(derivatives):
    page = build_participant_report(derivatives.out, "01")
    with chromium().Browser() as browser:
        source = "HTMLCanvasElement.prototype.getContext = () => null;"
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=source)
        browser.open(page.as_uri())
        assert browser.run(f"{PLACE}.querySelector('button').hidden")
        assert "no WebGL 2" in text_of(browser)
        assert browser.run("document.querySelectorAll('figure img').length") > 10


def test_missing_files_are_named(out):
    page = build_participant_report(out, "01")
    for path in out.glob("sub-01/figures/*run-1_desc-viewer_bold.js"):
        path.unlink()
    with chromium().Browser(webgl=True) as browser:
        press_open(browser, page)
        browser.wait(f"{PLACE}.textContent.includes('run-1_desc-viewer_bold.js could not be loaded')")
        (out / ASSETS / NIIVUE).unlink()
        press_open(browser, page)
        browser.wait(f"{PLACE}.textContent.includes('{NIIVUE} could not be loaded')")
        assert not browser.run(f"{PLACE}.querySelector('button').disabled")


def test_after_a_damaged_file_no_other_run_is_shown_in_its_place(out):
    page = build_participant_report(out, "01")
    damaged = next(out.glob("sub-01/figures/*run-2_desc-viewer_bold.js"))
    damaged.write_text(damaged.read_text()[:4000])
    with chromium().Browser(webgl=True) as browser:
        open_viewer(browser, page)
        choose(browser, "Run", "1")
        browser.wait(f"{PLACE}.textContent.includes('{damaged.name} is damaged')")
        assert browser.run(f"{VIEWER}.volumes.length") == 0
        assert "log-odds" not in text_of(browser)
        choose(browser, "Background", "bold")
        choose(browser, "Run", "0")
        browser.wait(f"{PLACE}.dataset.ready === '2'")
        assert browser.run(f"{VIEWER}.volumes.length") == 5


def test_without_t1w_the_template_is_the_background(out):
    for path in out.glob("sub-01/figures/sub-01_desc-viewer_T1w.js"):
        path.unlink()
    page = build_participant_report(out, "01")
    with chromium().Browser(webgl=True) as browser:
        open_viewer(browser, page)
        assert browser.run(f"[...{control('Background')}.options].map((one) => one.value)") == ["template", "bold"]


@pytest.mark.parametrize("width", [320, 768, 1400])
def test_the_open_viewer_does_not_widen_the_page(derivatives, width):
    page = build_participant_report(derivatives.out, "01")
    with chromium().Browser(width, 800, webgl=True) as browser:
        open_viewer(browser, page)
        client, scroll = browser.run("[document.documentElement.clientWidth, document.documentElement.scrollWidth]")
        assert scroll <= client


def test_the_viewer_is_not_printed(derivatives):
    page = build_participant_report(derivatives.out, "01")
    with chromium().Browser(webgl=True) as browser:
        open_viewer(browser, page)
        browser.call("Emulation.setEmulatedMedia", media="print")
        time.sleep(0.1)
        assert browser.run("getComputedStyle(document.getElementById('viewer')).display") == "none"
