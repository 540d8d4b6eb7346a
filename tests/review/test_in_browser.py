"""Page of the review in a browser: keyboard, undo, other windows, and the page without a server."""

import subprocess
import sys
import time

import pytest

from bids_app.outputs.ratings import Rating, ratings_path, read_ratings, store_rating
from bids_app.review.figures import find_review
from bids_app.review.page import write_static_page
from tests.helpers.browser import needs_browser
from tests.helpers.scripts import load_benchmark

pytestmark = needs_browser
FIRST = "sub-01_desc-norm_T1w"
SECOND = "sub-01_task-go_desc-coreg_bold"
SHOWN = "location.hash.slice(1)"
READY = "document.getElementById('figure').getAttribute('aria-busy') === 'false'"
NOTE = 'tab\there\n"two" <b>lines</b> \\n ñ 🧠\n<img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests, with a folder for downloads."""
    downloads = tmp_path_factory.mktemp("downloads")
    with load_benchmark("chromium").Browser(downloads=downloads) as opened:
        opened.downloads = downloads
        yield opened


@pytest.fixture
def address(out):
    """Address of a running server of the rater AB."""
    call = [sys.executable, "-m", "bids_app.cli.review", str(out), "--rater", "AB"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def start(browser, address):
    browser.open(address)
    browser.wait(READY)


def press(browser, *keys):
    for key in keys:
        browser.press(key)
        browser.wait(READY)


def wait_for_rating(out, name, rating):
    deadline = time.monotonic() + 20
    while True:
        path = ratings_path(out, "AB")
        found = read_ratings(path).get(name) if path.exists() else None
        if (found.rating if found else None) == rating:
            return found
        assert time.monotonic() < deadline, f"{name}: {found}"
        time.sleep(0.02)


def text_of(browser, name):
    return browser.run(f"document.getElementById('{name}').textContent")


def errors_of(browser):
    kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Page.javascriptDialogOpening")
    return [event for event in browser.events if event.get("method") in kinds]


def test_figures_are_rated_with_the_keyboard_alone(browser, address, out):
    start(browser, address)
    assert browser.run(SHOWN) == FIRST
    press(browser, "m", "w", "f")
    assert browser.run(SHOWN) == SECOND
    press(browser, "2", "ArrowLeft", "ArrowLeft")
    first = wait_for_rating(out, FIRST, "fail")
    assert first.tags == ("motion", "wrong alignment")
    wait_for_rating(out, SECOND, "doubtful")
    assert browser.run("document.querySelector('[data-rating=fail]').getAttribute('aria-pressed')") == "true"
    assert text_of(browser, "count") == "2 of 14 figures rated"
    press(browser, "n")
    browser.write(NOTE)
    press(browser, "Escape", "u")
    browser.wait("!waiting")
    assert read_ratings(ratings_path(out, "AB"))[SECOND].note == ""
    assert read_ratings(ratings_path(out, "AB"))[FIRST].note == NOTE
    assert browser.run(SHOWN) == "sub-01_task-go_desc-norm_bold"
    press(browser, "ArrowLeft", "ArrowLeft")
    assert browser.run("document.getElementById('note').value") == NOTE
    assert not errors_of(browser)


def test_next_and_previous_go_by_run_by_kind_and_by_what_is_not_rated(browser, address):
    start(browser, address)
    press(browser, "ArrowRight", "r")
    assert browser.run(SHOWN) == "sub-01_task-rest_desc-coreg_bold"
    press(browser, "k", "R")
    assert browser.run(SHOWN) == "sub-01_task-go_desc-norm_bold"
    press(browser, "K", "p", "ArrowLeft", "ArrowLeft", "u")
    assert browser.run(SHOWN) == "sub-01_task-go_desc-norm_bold"
    press(browser, "U")
    assert browser.run(SHOWN) == FIRST
    press(browser, "U")  # after the first comes the last
    assert browser.run(SHOWN) == "sub-02_task-rest_desc-carpet_bold"
    press(browser, "u", "u")
    browser.run("const s = document.getElementById('order'); s.value = 'kind'; s.dispatchEvent(new Event('change'))")
    press(browser, "ArrowRight")
    assert browser.run(SHOWN) == "sub-01_task-rest_desc-norm_bold"


def test_undo_takes_back_ratings_one_by_one(browser, address, out):
    start(browser, address)
    press(browser, "f", "f")
    wait_for_rating(out, SECOND, "fail")
    press(browser, "z")
    wait_for_rating(out, SECOND, None)
    assert browser.run(SHOWN) == SECOND
    press(browser, "z")
    wait_for_rating(out, FIRST, None)
    assert browser.run("document.getElementById('undo').disabled")


def test_keys_pressed_faster_than_figures_load_lose_nothing(browser, address, out):
    start(browser, address)
    for key in "pfd" * 5:  # one more than there are figures
        browser.press(key)
    browser.wait("!waiting")
    assert text_of(browser, "count") == "14 of 14 figures rated"
    found = read_ratings(ratings_path(out, "AB"))
    assert [found[figure.name].rating[0] for figure in find_review(out).figures] == [*"pfdpfdpfdpfdp", "d"]
    press(browser, "u")
    assert text_of(browser, "saved") == "all of them are rated"


def test_a_rating_of_another_window_is_shown_and_replaced_only_on_request(browser, address, out):
    start(browser, address)
    store_rating(out, "AB", Rating(FIRST, "doubtful"))
    press(browser, "p")
    browser.wait("!document.getElementById('problem').hidden")
    assert "another window" in text_of(browser, "problem")
    press(browser, "ArrowLeft")
    assert browser.run("document.querySelector('[data-rating=doubtful]').getAttribute('aria-pressed')") == "true"
    wait_for_rating(out, FIRST, "doubtful")
    press(browser, "p")
    wait_for_rating(out, FIRST, "pass")


def test_a_server_that_has_ended_is_reported(browser, out):
    call = [sys.executable, "-m", "bids_app.cli.review", str(out), "--rater", "AB"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
    start(browser, process.stdout.readline().split()[-1])
    process.terminate()
    process.communicate(timeout=30)
    press(browser, "p")
    browser.wait("!document.getElementById('problem').hidden")
    assert text_of(browser, "problem").startswith(f"Not saved, {FIRST.split('_')[0]}_T1w")
    assert text_of(browser, "count") == "0 of 14 figures rated"


def test_shortcuts_can_be_switched_off_and_are_not_read_in_fields(browser, address, out):
    start(browser, address)
    browser.run("document.getElementById('keys').click()")
    press(browser, "p")
    browser.run("document.getElementById('keys').click(); document.getElementById('go').focus()")
    press(browser, "p")
    assert browser.run(SHOWN) == FIRST
    assert not ratings_path(out, "AB").exists()


def test_the_page_without_a_server_saves_a_table_of_the_same_format(browser, out):
    page = write_static_page(find_review(out)).as_uri()
    start(browser, page)
    press(browser, "f")
    assert "name of the rater" in text_of(browser, "problem")
    browser.run("const r = document.getElementById('rater'); r.value = 'AB'; r.dispatchEvent(new Event('change'))")
    press(browser, "ArrowLeft", "m", "f", "p", "ArrowLeft", "ArrowLeft", "n")
    browser.write(NOTE)
    press(browser, "Escape")
    start(browser, page)  # the browser has kept the ratings
    assert text_of(browser, "count") == "2 of 14 figures rated"
    browser.run("document.getElementById('download').click()")
    table = browser.downloads / "rater-AB_ratings.tsv"
    deadline = time.monotonic() + 20
    while not table.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    ratings_path(out, "AB").parent.mkdir()
    table.rename(ratings_path(out, "AB"))
    found = read_ratings(ratings_path(out, "AB"))
    assert {name: each.rating for name, each in found.items()} == {FIRST: "fail", SECOND: "pass"}
    assert (found[FIRST].note, found[FIRST].tags) == (NOTE, ("motion",))
    before = ratings_path(out, "AB").read_text()
    same = store_rating(out, "AB", found[SECOND], found[SECOND].rated_at)
    after = ratings_path(out, "AB").read_text()
    assert after == before.replace(found[SECOND].rated_at, same.rated_at)  # byte by byte as the server writes it
    assert not errors_of(browser)


@pytest.mark.parametrize("width", [320, 400, 768, 1400])
def test_the_page_does_not_scroll_horizontally(browser, out, width):
    browser.resize(width, 900)
    try:
        start(browser, write_static_page(find_review(out)).as_uri())
        client, scroll = browser.run("[document.documentElement.clientWidth, document.documentElement.scrollWidth]")
    finally:
        browser.resize(1400, 900)
    assert scroll <= client


def test_dark_colours_follow_the_system(browser, out):
    page = write_static_page(find_review(out)).as_uri()
    colour = "getComputedStyle(document.body).backgroundColor"
    start(browser, page)
    assert browser.run(colour) == "rgb(255, 255, 255)"
    browser.dark()
    dark = browser.run(colour)
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert sum(int(part) for part in dark[4:-1].split(",")) < 150


def test_a_table_is_loaded_into_the_page_without_a_server(browser, out, tmp_path):
    """Written by Python, read by the browser, and written again."""
    store_rating(out, "CD", Rating(FIRST, "fail", ("ghost", "other"), NOTE))
    store_rating(out, "CD", Rating("sub-99_desc-norm_T1w", "pass", note="n/a"))  # of a figure that is not here
    table = ratings_path(out, "CD")
    start(browser, write_static_page(find_review(out)).as_uri())
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    field = browser.call("DOM.querySelector", nodeId=root, selector="#upload")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=field, files=[str(table)])
    browser.wait("shown.size === 2")
    assert browser.run("document.getElementById('rater').value") == "CD"
    assert text_of(browser, "count") == "1 of 14 figures rated"
    assert browser.run("formatTable()") == table.read_text()
    damaged = tmp_path / "rater-CD_ratings.tsv"
    damaged.write_text(table.read_text()[:-30])
    browser.call("DOM.setFileInputFiles", nodeId=field, files=[str(damaged)])
    browser.wait("!document.getElementById('problem').hidden")
    assert "was not read: the last line is not complete" in text_of(browser, "problem")
    assert browser.run("shown.size") == 2


def test_a_figure_that_cannot_be_shown_is_not_rated(browser, address, out):
    (out / "sub-01" / "figures" / f"{SECOND}.svg").write_text("<svg")
    start(browser, address)
    press(browser, "ArrowRight", "p")
    assert browser.run(SHOWN) == SECOND
    assert "cannot be shown" in text_of(browser, "problem")
    press(browser, "ArrowLeft", "p")
    wait_for_rating(out, FIRST, "pass")
    assert SECOND not in read_ratings(ratings_path(out, "AB"))
