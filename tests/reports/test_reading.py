"""How to read the figures: every figure has a guide, with the same text in the report and in the documentation."""

import re

from PIL import Image

from bids_app.reports.contents import spec
from bids_app.reports.participant import build_participant_report
from bids_app.reports.reading import EXAMPLES, EXAMPLES_URL, FOLDER, guides
from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_script

KINDS = {f"{section}-{entry['desc']}" for section, entries in spec()["figures"].items() for entry in entries}
PICTURES = {name for guide in guides().values() for name in guide.examples}
LIMIT_BYTES = 15_000


def test_every_figure_of_the_report_has_a_guide():
    assert set(guides()) == KINDS
    assert all(len(text) > 20 for guide in guides().values() for text in guide.parts.values())


def test_every_brain_and_carpet_has_a_good_and_a_bad_example():
    drawn = {kind: guide for kind, guide in guides().items() if kind.startswith(("anatomy", "functional", "grid"))}
    assert len(drawn) == 10
    for guide in drawn.values():
        good, bad = guide.examples.items()
        assert good[0].endswith("-good")
        assert good[1].startswith("good: ")
        assert bad[1].startswith(("bad: ", "moved: ", "misaligned: ", "cut: "))


def test_example_pictures_are_small_and_complete():
    paths = list((FOLDER / EXAMPLES).glob("*"))
    assert {path.name for path in paths} == {f"{name}.webp" for name in PICTURES}
    for path in paths:
        assert path.stat().st_size < LIMIT_BYTES
        with Image.open(path) as image:
            assert image.size == (192, 192)


def test_the_documentation_has_the_same_text():
    page = load_script("reading_guide").page_text()
    assert (ROOT / "docs" / "reading-reports.md").read_text() == page
    for path in re.findall(r"\((\S+\.webp)\)", page):
        assert (ROOT / "docs" / path).is_file()


def test_each_figure_of_the_report_has_a_guide_and_each_kind_its_text_once(derivatives):
    text = build_participant_report(derivatives.out, "01").read_text()
    shown = re.findall(r'<details class="guide" id="guide-([\w-]+)"', text)
    assert len(shown) == len(set(shown)) == 9
    others = re.findall(r'<figure [^>]* data-guide="([\w-]+)"', text)
    assert set(others) < set(shown)
    assert len(others) + len(shown) == text.count("<figure ")
    for kind in shown:
        assert text.count(f"<dd>{guides()[kind].parts['Good']}</dd>") == 1
    pictures = {path.stem for path in (derivatives.out / EXAMPLES_URL).glob("*.webp")}
    assert set(re.findall(rf'src="{EXAMPLES_URL}/([\w-]+)\.webp"', text)) < pictures == PICTURES
