"""Accessibility of the participant report: keyboard, screen reader, colour contrast, print."""

import re
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise

import pytest

from bids_app.reports.figures.style import DARK, INK, MUTED, PALETTE
from bids_app.reports.participant import build_participant_report

TEXT, GRAPHICS = 4.5, 3.0
"""Minimum contrast of WCAG 2.2, level AA."""
PAIRS = [
    *[(ink, paper) for ink in ("ink", "quiet", "accent", "warn", "bad") for paper in ("paper", "card")],
    *[(level, f"{level}-paper") for level in ("good", "warn", "bad")],
    ("paper", "accent"),
]
"""Text and background colours used together in style.css."""


def colours(scheme):
    """Return the palette of style.css for a light or dark screen or for print."""
    style = files("bids_app.reports").joinpath("templates/style.css").read_text()
    light, dark, printed = re.findall(r":root\{([^}]*)\}", style)
    found = {}
    for rules in {"light": [light], "dark": [light, dark], "print": [light, printed]}[scheme]:
        found |= dict(re.findall(r"--([\w-]+):(#[0-9a-f]+)", rules))
    return found


def luminance(colour):
    digits = colour.removeprefix("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


class Outline(HTMLParser):
    """Elements with their attributes and ancestors."""

    VOID = {"meta", "img", "input", "br", "link"}

    def __init__(self, source):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes a different element"

    def of(self, *tags):
        return [(tag, attributes, inside) for tag, attributes, inside in self.elements if tag in tags]


@pytest.fixture(scope="module")
def page(derivatives):
    return Outline(build_participant_report(derivatives.out, "01").read_text())


def test_contrast_follows_the_wcag_definition():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
@pytest.mark.parametrize(("text", "behind"), PAIRS)
def test_text_has_sufficient_contrast(scheme, text, behind):
    palette = colours(scheme)
    assert contrast(palette[text], palette[behind]) >= TEXT


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_have_sufficient_contrast(scheme):
    paper = colours(scheme)["paper"]
    assert all(contrast(colour, paper) >= GRAPHICS for colour in PALETTE)
    for ink in (INK, MUTED):
        assert contrast(DARK[ink] if scheme == "dark" else ink, paper) >= TEXT


def test_elements_are_properly_nested(page):
    assert page.open == []


def test_heading_levels_are_not_skipped(page):
    levels = [int(tag[1]) for tag, _, _ in page.of("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_landmarks_are_unique_and_sections_are_labelled(page):
    for tag in ("header", "nav", "main", "footer"):
        assert len(page.of(tag)) == 1
    names = {attributes.get("id") for _, attributes, _ in page.elements}
    for _, attributes, inside in page.of("section"):
        assert "main" in inside
        assert attributes["aria-labelledby"] in names
    html = page.of("html")[0][1]
    assert html["lang"] == "en"


def test_the_first_link_skips_to_the_summary(page):
    _, first, _ = page.of("a")[0]
    assert (first["class"], first["href"]) == ("skip", "#summary")


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_images_meters_and_inputs_have_labels(page):
    for _, attributes, _ in page.of("img"):
        assert len(attributes["alt"]) > 20
    for _, attributes, _ in page.of("meter"):
        assert attributes["aria-label"]
    for _, _, inside in page.of("input"):
        assert "label" in inside


def test_tables_have_headers_and_scroll_regions_are_focusable(page):
    for _, attributes, inside in page.of("th"):
        assert attributes["scope"] in ("row", "col")
        assert "table" in inside
    wide = [attributes for _, attributes, _ in page.of("div") if attributes.get("tabindex") == "0"]
    assert wide
    assert all(attributes["role"] == "region" and attributes["aria-label"] for attributes in wide)


def test_badges_have_text(derivatives):
    source = build_participant_report(derivatives.out, "01").read_text()
    assert all(text.strip() for text in re.findall(r'<span class="badge [^"]*">([^<]*)</span>', source))


def test_focus_is_visible_and_the_page_has_no_animations():
    style = files("bids_app.reports").joinpath("templates/style.css").read_text()
    assert re.search(r":focus-visible\{outline:3px solid var\(--accent\)", style)
    assert "outline:none" not in style
    assert "animation" not in style
