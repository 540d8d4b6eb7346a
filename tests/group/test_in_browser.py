"""Group report in a browser: layout on narrow screens, figures, and sortable tables."""

from functools import partial

import pytest

from tests.helpers.browser import look, needs_browser
from tests.helpers.scripts import load_benchmark

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture
def in_browser(finished, tmp_path):
    """Return a function that runs a script in the page (``inner``) at a given width in pixels."""
    return partial(look, finished.out / "group.html", tmp_path)


@pytest.mark.parametrize("width", [320, 400, 768, 1400])
def test_the_page_does_not_scroll_horizontally(in_browser, width):
    client, scroll = in_browser("const e = inner.documentElement; return [e.clientWidth, e.scrollWidth];", width)
    assert client > 0.9 * width
    assert scroll <= client


def test_figures_load_and_have_alt_text(in_browser):
    script = """const images = [...inner.images];
        for (const image of images) image.loading = "eager";
        await Promise.all(images.map((image) => image.decode().catch(() => null)));
        return images.map((image) => [image.naturalWidth, image.alt]);"""
    found = in_browser(script)
    assert len(found) == 8
    assert all(width > 100 and alt for width, alt in found)


def test_tables_sort_by_number_and_by_text(in_browser):
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


def test_runs_are_filtered_sorted_and_paged(in_browser):
    script = """const set = (name, value, type = "change") => {
          const element = inner.querySelector(`.runs [data-state="${name}"]`);
          element.value = value;
          element.dispatchEvent(new inner.defaultView.Event(type));
        };
        const names = () => [...inner.querySelectorAll("#wall tbody th")].map((cell) => cell.textContent);
        const rows = () => [...inner.querySelectorAll("#wall tbody tr")];
        const column = (i) => rows().map((row) => Number(row.cells[i].textContent));
        const found = [names().length];
        set("q", "sub-03", "input");
        found.push(names());
        set("q", "", "input");
        set("sort", "fd_mean");
        found.push(column(3), inner.querySelector("#wall [aria-sort]").textContent);
        set("from", "0.2");
        found.push(column(3).length, Math.min(...column(3)));
        set("sort", "");
        set("size", "24");
        found.push(inner.querySelector(".count").textContent);
        inner.querySelectorAll(".pages button")[2].click();
        found.push(names().length, inner.defaultView.location.hash);
        return found;"""
    n, searched, falling, title, n_above, least, count, rest, state = in_browser(script)
    assert n == 28
    assert searched == ["sub-03_ses-1_task-rest", "sub-03_ses-2_task-rest"]
    assert falling == sorted(falling, reverse=True)
    assert title == "Mean framewise displacement (mm)"
    assert n_above == sum(value >= 0.2 for value in falling) > 0
    assert least >= 0.2
    assert count == "1 to 24 of 28 runs"
    assert rest == 4
    assert state == "#wall&page=2&size=24"


def test_a_shared_address_shows_the_same_runs(finished):
    with load_benchmark("chromium").Browser() as browser:
        browser.open((finished.out / "group.html").as_uri() + "#wall&q=sub-05&is-ses=2")
        assert browser.run("[...document.querySelectorAll('#wall tbody th')].map((cell) => cell.textContent)") == [
            "sub-05_ses-2_task-rest"
        ]


def test_the_wall_shows_thumbnails_that_open_the_report_at_the_figure(make_group, tmp_path):
    group = make_group(participants=2, sessions=1)
    folder = group.out / "sub-01/figures"
    folder.mkdir()
    body = '<svg viewBox="0 0 9 9"><image width="9" height="9" href="data:image/png;base64,{}"/></svg>'
    (folder / "sub-01_task-rest_desc-norm_bold.svg").write_text(body.format(PIXEL))
    (folder / "sub-01_task-rest_desc-carpet_bold.svg").write_text("<svg>")
    (group.out / "sub-01.html").touch()
    assert group.run() == 0
    script = """const tiles = [...inner.querySelectorAll(".tile")], image = tiles[0].querySelector("img");
        image.loading = "eager";
        await image.decode();
        const [first, second] = tiles.map((tile) => tile.getAttribute("href"));
        const menu = inner.querySelector('[data-state="figure"]'), found = tiles[1].textContent;
        menu.value = "2";
        menu.dispatchEvent(new inner.defaultView.Event("change"));
        return [first, image.naturalWidth, second, found, inner.querySelector(".tile").textContent];"""
    address, width, other, text, damaged = look(group.out / "group.html", tmp_path, script)
    assert address == "sub-01.html#figure-sub-01_task-rest_desc-norm_bold"
    assert width == 4 * 192
    assert other is None  # there is no report
    assert "figure cannot be read" in damaged
    assert text.startswith("no figure")


def test_the_map_names_and_opens_runs_by_pointer_and_keyboard(make_group):
    group = make_group(participants=3)
    for path in group.out.glob("sub-*"):
        path.with_suffix(".html").touch()
    assert group.run() == 0
    with load_benchmark("chromium").Browser() as browser:
        browser.open((group.out / "group.html").as_uri())
        browser.run("document.querySelector('canvas').scrollIntoView({ block: 'center' }); 0")
        browser.run("document.querySelector('canvas').focus()")
        browser.press("ArrowRight")
        first = browser.run("document.querySelector('.map output').textContent")
        assert first.startswith("sub-01_ses-1_task-rest")
        browser.press("ArrowRight")
        second = browser.run("document.querySelector('.map output').textContent")
        assert second.startswith("sub-")
        tip = browser.run("(({ left, top }) => [left, top])(document.querySelector('.tip').getBoundingClientRect())")
        browser.press("Escape")
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=tip[0] - 12, y=tip[1] - 14)  # the point itself
        assert browser.run("document.querySelector('.tip strong').textContent") == second.split(" ")[0]
        browser.run("document.querySelector('canvas').focus()")
        browser.press("Enter")
        browser.wait("location.pathname.includes('sub-')")


def test_hostile_names_are_text_on_the_page(make_group, tmp_path):
    group = make_group(participants=3, sessions=1)
    evil = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
    rows = [f"sub-{i:02d}\t{evil}{i}\t{evil}" for i in (1, 2, 3)]
    (group.raw / "participants.tsv").write_text("\n".join([f"participant_id\tnote\t{evil}", *rows]) + "\n")
    assert group.run() == 0
    script = """inner.querySelector('.runs [data-state="all"]').click();
        return [inner.title, inner.querySelector("#wall tbody").textContent.includes("<img src=x")];"""
    assert look(group.out / "group.html", tmp_path, script) == ["Group report | NeuroSTORM", True]
