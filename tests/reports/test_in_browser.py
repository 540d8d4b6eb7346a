"""Participant report in a browser: layout on narrow screens, scripts, and buttons."""

import json
import re
import shutil
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from bids_app.reports.participant import build_participant_report
from tests.helpers.browser import look, needs_browser
from tests.helpers.scripts import load_benchmark

pytestmark = [pytest.mark.slow, needs_browser]
chromium = partial(load_benchmark, "chromium")


class Quiet(SimpleHTTPRequestHandler):
    """Server of a folder that writes no log."""

    def log_message(self, *_):
        pass


@contextmanager
def serve(folder):
    """Serve a folder on this machine; the value is the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("width", [320, 400, 768, 1400])
def test_the_page_does_not_scroll_horizontally(derivatives, tmp_path, width):
    page = build_participant_report(derivatives.out, "01")
    script = "const e = inner.documentElement; return [e.clientWidth, e.scrollWidth];"
    client, scroll = look(page, tmp_path, script, width)
    assert client > 0.9 * width
    assert scroll <= client


@pytest.mark.parametrize("width", [320, 768])
def test_the_index_does_not_scroll_horizontally(derivatives, tmp_path, width):
    build_participant_report(derivatives.out, "01")
    script = """const e = inner.documentElement;
        return [e.clientWidth, e.scrollWidth, inner.querySelectorAll("#wall tbody tr").length];"""
    client, scroll, n_runs = look(derivatives.out / "index.html", tmp_path, script, width)
    assert scroll <= client
    assert n_runs == 3


@pytest.mark.parametrize("size", ["Infinity", "-5", "96"])
def test_an_address_with_any_page_size_shows_the_runs(derivatives, tmp_path, size):
    build_participant_report(derivatives.out, "01")
    script = """inner.defaultView.location.hash = "#wall&size=%s";
        await new Promise((done) => setTimeout(done, 200));
        return inner.querySelectorAll("#wall tbody tr").length;"""
    assert look(derivatives.out / "index.html", tmp_path, script % size) == 3


def test_nothing_moves_on_paper(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    script = """inner.defaultView.dispatchEvent(new Event("beforeprint"));
        return [[...inner.images].filter((image) => image.src.includes("#flicker")).length,
            inner.querySelectorAll("details:not([open], .guide)").length];"""
    assert look(page, tmp_path, script) == [0, 0]


def test_figures_load_under_the_content_security_policy(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    script = """for (const i of inner.images) i.loading = "eager";
        return [...inner.images].map((i) => [i.getAttribute("src"), i.getAttribute("alt")]);"""
    found = look(page, tmp_path, script)
    assert len(found) > 10
    assert all(alt for _, alt in found)


def test_flicker_buttons_switch_the_image(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    script = """const row = inner.querySelector(".flicker"), image = row.closest("figure").querySelector("img");
        const before = [row.hidden, image.getAttribute("src")];
        row.children[1].click();
        return [...before, image.getAttribute("src"), row.children[1].getAttribute("aria-pressed")];"""
    hidden, before, after, pressed = look(page, tmp_path, script)
    assert not hidden
    assert before.endswith(".svg#flicker")  # moves by itself
    assert after == before.replace("#flicker", "#second")
    assert pressed == "true"


def test_one_button_pauses_all_figures_that_move(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    script = """const images = [...inner.querySelectorAll("img[data-second]")], button = inner.querySelector(".pause");
        const moving = () => images.filter((image) => image.src.endsWith("#flicker")).length;
        const found = [images.length, moving()];
        button.click();
        found.push(moving(), button.textContent);
        button.click();
        return [...found, moving()];"""
    n, moving, paused, text, again = look(page, tmp_path, script)
    assert n == moving == again > 3
    assert paused == 0
    assert "Alternate" in text


def test_each_figure_has_a_link_and_a_download(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    script = """return [...inner.querySelectorAll("figure[id]")].map((figure) => [figure.id,
        ...[...figure.querySelectorAll(".save a")].map((link) => link.getAttribute("href")),
        figure.querySelector(".save button")?.textContent]);"""
    found = look(page, tmp_path, script)
    assert len(found) > 10
    for identifier, link, file, png in found:
        assert link == f"#{identifier}"
        assert (derivatives.out / file).stem == identifier.removeprefix("figure-")
        assert png == "PNG"


def test_every_figure_unfolds_how_to_read_it(derivatives):
    page = build_participant_report(derivatives.out, "01")
    with chromium().Browser() as browser:
        browser.open(page.as_uri())
        browser.run("for (const place of document.querySelectorAll('.guide')) place.open = true;")
        assert browser.run("document.querySelectorAll('figure').length") == 16
        headings = "(one) => one.querySelectorAll('.guide dt').length"
        assert browser.run(f"[...document.querySelectorAll('figure')].map({headings})") == [4] * 16
        assert browser.run("document.querySelectorAll('.guide[id]').length") == 9  # each text has one address
        browser.run("for (const image of document.querySelectorAll('.examples img')) image.loading = 'eager';")
        browser.wait("[...document.querySelectorAll('.examples img')].every((image) => image.naturalWidth === 192)")
        assert browser.run("document.querySelectorAll('.examples img').length") == 2 * 12


def test_the_section_bar_is_not_cut(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    for width in (800, 1100, 1300):
        script = "const bar = inner.querySelector('nav'); return [bar.scrollWidth, bar.clientWidth];"
        scroll, client = look(page, tmp_path, script, width)
        assert scroll <= client


def test_print_has_the_figures_but_no_controls(derivatives):
    page = build_participant_report(derivatives.out, "01")
    with chromium().Browser() as browser:
        browser.open(page.as_uri())
        browser.call("Emulation.setEmulatedMedia", media="print")
        shown = "(one) => getComputedStyle(one).display !== 'none'"
        hidden = ".guide, #viewer, nav, .flicker, .save"
        assert browser.run(f"[...document.querySelectorAll('{hidden}')].filter({shown}).length") == 0
        assert browser.run(f"[...document.querySelectorAll('figure')].filter({shown}).length") == 16


@pytest.mark.parametrize("way", ["button", "keys"])
def test_printing_waits_for_figures_that_were_not_on_the_screen(derivatives, tmp_path, way):
    page = build_participant_report(derivatives.out, "01")
    lost = derivatives.out / "sub-01" / "figures" / "sub-01_task-rest_run-1_desc-coreg_bold.svg"
    shutil.copy2(lost, tmp_path)
    lost.unlink()  # does not stop it
    with chromium().Browser() as browser:
        browser.open(page.as_uri())
        browser.run(
            """window.print = () => { window.paper = [...document.querySelectorAll("figure > a img, figure .sheet img")]
              .filter((one) => !one.naturalWidth || one.src.includes("#")).map((one) => one.src); }; 0"""
        )
        press = {
            "button": "[...document.querySelectorAll('nav button')].find((one) => one.textContent === 'Print').click()",
            "keys": "dispatchEvent(new KeyboardEvent('keydown', { key: 'p', ctrlKey: true }))",
        }
        browser.run(f"{press[way]}; 0")
        browser.wait("window.paper !== undefined")
        found = browser.run("window.paper")
    shutil.copy2(tmp_path / lost.name, lost)
    assert found == [lost.as_uri()]


def test_the_slider_steps_through_the_volumes(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    script = """const box = inner.querySelector(".trace"), slider = box.querySelector("input");
        const first = box.querySelector("output").textContent, cursor = inner.querySelector(".cursor");
        const before = parseFloat(cursor.style.left);
        slider.value = 21;
        slider.dispatchEvent(new Event("input"));
        return [box.hidden, first, slider.getAttribute("aria-valuetext"), before, parseFloat(cursor.style.left)];"""
    hidden, first, after, left, moved = look(page, tmp_path, script)
    assert not hidden
    assert first.startswith("Volume 21 of 60, 40.0 to 42.0 s: FD 0.90 mm, std. DVARS ")  # the maximum FD
    assert after.startswith("Volume 22 of 60, 42.0 to 44.0 s: FD ")
    assert 0 < left < moved < 100


def test_the_pointer_on_the_figure_moves_the_slider(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    script = """const box = inner.querySelector(".trace"), sheet = box.closest("figure").querySelector(".sheet");
        const area = sheet.getBoundingClientRect(), slider = box.querySelector("input");
        const { left, right } = box.dataset, values = [];
        for (const share of [Number(left), (Number(left) + Number(right)) / 2, Number(right) - 0.001, 0.999]) {
          sheet.dispatchEvent(new PointerEvent("pointermove", { clientX: area.left + share * area.width + 0.5 }));
          values.push(Number(slider.value));
        }
        return values;"""
    assert look(page, tmp_path, script) == [0, 30, 59, 59]


def test_column_headings_sort_the_table(out, tmp_path):
    table = out / "sub-01/func/sub-01_task-rest_run-1_seg-AAL3_desc-demostate_attribution.tsv"
    rows = ["name\tattribution\tstd\tvoxels\ttokens", "a\t3\t1\t5\t1", "b\t2\t1\t50\t2", "c\t1\t1\t7\t0"]
    table.write_text("\n".join(rows) + "\n")
    page = build_participant_report(out, "01")
    script = """const table = inner.querySelector("table.sortable"), heads = table.tHead.rows[0].cells;
        const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join("");
        const sorts = () => [...heads].map((head) => head.getAttribute("aria-sort"));
        const found = [names(), sorts()];
        heads[3].querySelector("button").click();
        found.push(names(), sorts());
        heads[3].querySelector("button").click();
        found.push(names(), sorts());
        return found;"""
    none = [None] * 5
    found = look(page, tmp_path, script)
    assert found[:2] == ["abc", [None, "descending", None, None, None]]
    assert found[2:4] == ["bca", [*none[:3], "descending", None]]
    assert found[4:] == ["acb", [*none[:3], "ascending", None]]


def test_interactive_elements_are_focusable(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    script = """const acting = [...inner.querySelectorAll("a[href], button, input, summary, [tabindex]")];
        const missed = acting.filter((element) => { element.focus(); return inner.activeElement !== element; });
        return [acting.length, missed.filter((e) => !e.closest("details:not([open])")).map((e) => e.outerHTML)];"""
    acting, missed = look(page, tmp_path, script)
    assert acting > 30
    assert missed == []


def test_scripts_in_names_and_values_are_not_executed(out, tmp_path):
    evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    log = next(out.glob("sub-01/log/*/summary.json"))
    content = json.loads(log.read_text())
    content["runs"][2] |= {"reason": evil, "hint": evil}
    log.write_text(json.dumps(content))
    (out / "logs/CITATION.md").write_text(evil)
    card = next(out.glob("sub-01/func/*run-1*_predictions.json"))
    check = {"Check": evil, "Level": evil, "Value": evil, "Limits": evil, "Message": evil}
    view = {"Answer": evil, "Probabilities": {evil: 1}}
    spoiled = {
        "Verdict": {"Level": "warn", "Checks": [check]},
        "Views": {"Other": view},
        "Limits": evil,
        "Target": evil,
    }
    card.write_text(json.dumps(spoiled))
    page = build_participant_report(out, "01")
    assert look(page, tmp_path, "return inner.title;") == "sub-01 | NeuroSTORM"


def test_the_content_security_policy_blocks_injected_scripts(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    spoiled = tmp_path / "spoiled.html"
    text = page.read_text().replace("<main>", "<main><script>document.title='owned'</script>")
    spoiled.write_text(text)
    assert look(spoiled, tmp_path, "return inner.title;") == "sub-01 | NeuroSTORM"
    spoiled.write_text(re.sub('<meta http-equiv="Content-Security-Policy".*?>', "", text, flags=re.DOTALL))
    assert look(spoiled, tmp_path, "return inner.title;") == "owned"  # so that the test can fail


def test_a_figure_is_saved_as_png_where_the_browser_allows_it(derivatives, tmp_path):
    page = build_participant_report(derivatives.out, "01")
    with serve(derivatives.out) as address, chromium().Browser(downloads=tmp_path) as browser:
        browser.open(f"{address}/{page.name}#figure-sub-01_task-rest_run-1_desc-coreg_bold")
        browser.run("document.querySelector('#figure-sub-01_task-rest_run-1_desc-coreg_bold .save button').click()")
        path = tmp_path / "sub-01_task-rest_run-1_desc-coreg_bold.png"
        wait_for(path.is_file)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 2800


def test_the_page_says_so_where_the_browser_refuses_a_png(derivatives):
    page = build_participant_report(derivatives.out, "01")
    with chromium().Browser() as browser:
        browser.open(page.as_uri())
        browser.run("document.querySelector('.save button').click()")
        browser.wait("document.querySelector('.save [role=status]') !== null")
        assert "copy the image" in browser.run("document.querySelector('.save [role=status]').textContent")


def test_reports_lead_to_their_neighbours(out):
    build_participant_report(out, "01")
    for label in ("02", "10"):
        shutil.copytree(out / "sub-01", out / f"sub-{label}")
        build_participant_report(out, label)
    with chromium().Browser() as browser:
        browser.open((out / "sub-02.html").as_uri())
        browser.run("document.querySelector('.around [rel=next]').click()")
        browser.wait("location.pathname.endsWith('/sub-10.html')")
        browser.run("document.querySelector('.around [rel=next]').click()")
        browser.wait("location.pathname.endsWith('/index.html') && location.hash === '#wall'")  # there is none
        browser.open((out / "sub-02.html").as_uri())
        browser.run("document.querySelector('.around [rel=prev]').click()")
        browser.wait("location.pathname.endsWith('/sub-01.html')")


def test_no_figure_moves_for_people_who_want_no_motion(derivatives):
    page = build_participant_report(derivatives.out, "01")
    with chromium().Browser() as browser:
        feature = {"name": "prefers-reduced-motion", "value": "reduce"}
        browser.call("Emulation.setEmulatedMedia", features=[feature])
        browser.open(page.as_uri())
        assert browser.run("[...document.images].filter((image) => image.src.includes('#flicker')).length") == 0
