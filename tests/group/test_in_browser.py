"""Group report in a browser: layout on narrow screens, figures, and sortable tables."""

from functools import partial

import pytest

from tests.helpers.browser import look, needs_browser

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
