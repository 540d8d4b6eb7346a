"""Group report: escaped, small for large cohorts, and self-contained."""

import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bids_app.reports.figures.group_charts import (
    Cloud,
    Distribution,
    Pairs,
    plot_clouds,
    plot_distributions,
    plot_identity,
    plot_pairs,
    plot_similarities,
    plot_sites,
)
from bids_app.reports.group import (
    BAD,
    GOOD,
    MAX_REMARKS,
    MAX_ROWS,
    WARN,
    Cell,
    Figure,
    GroupPage,
    Remark,
    Section,
    Table,
    render,
)
from bids_app.reports.run_table import RunTable

REPORTS = {"sub-01.html"}
render_page = partial(render, reports=REPORTS)
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words += data

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def page_of(*sections, **properties):
    counts = [("Runs", Cell("3"))]
    table = RunTable(["sub-01_task-rest"], ["sub-01.html"], [])
    return GroupPage(name="Study", lead="2 participants.", counts=counts, sections=sections, table=table, **properties)


def section(rows, **properties):
    return Section("quality", "Quality", tables=[Table("Runs", ("Run", "Value"), rows, "group_runs.tsv")], **properties)


def test_long_tables_are_truncated_with_a_link_to_the_file():
    rows = [(Cell(f"sub-{i}", f"sub-{i}.html"), Cell(str(i))) for i in range(5000)]
    text = render_page(page_of(section(rows)))
    found = Elements(text)
    assert len(found.of("tr")) == MAX_ROWS + 1
    assert f"First {MAX_ROWS} of 5,000 rows" in found.words
    assert any(link.get("href") == "group_runs.tsv" for link in found.of("a"))
    assert len(text) < 60_000


def test_remarks_are_limited_and_sorted_by_severity():
    levels = [GOOD] * 5 + [WARN] * 10 + [BAD] * 2
    remarks = [Remark(level, f"{level} {i}.") for i, level in enumerate(levels)]
    text = render_page(page_of(section([], remarks=remarks)))
    shown = re.findall(r'<li class="(\w+)">', text)
    assert shown == [BAD] * 2 + [WARN] * 10
    assert len(shown) == MAX_REMARKS
    assert "5 more in the sections below" in text


def test_text_from_files_is_escaped():
    cell = Cell(EVIL, level=WARN)
    figure = Figure("a.svg", EVIL, EVIL, EVIL, Path.touch)
    evil = Section("x", EVIL, [EVIL], [figure], [Table(EVIL, (EVIL,), [(cell, cell)])], [Remark(BAD, EVIL)])
    found = Elements(render_page(page_of(evil, notes=(EVIL,), research_only=(EVIL,))))
    assert [element.get("type") for element in found.of("script")] == ["application/json", None]
    assert [image["src"] for image in found.of("img")] == ["a.svg"]
    assert not any("onerror" in attributes for _, attributes in found.found)


def test_the_page_works_offline_and_has_the_disclaimers():
    text = render_page(page_of(section([]), demonstration=True))
    found = Elements(text)
    addresses = [a.get("href") or a.get("src") or "" for tag in ("a", "img", "link", "script") for a in found.of(tag)]
    assert not [address for address in addresses if re.match(r"(https?:)?//", address)]
    policy = next(meta["content"] for meta in found.of("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in policy
    assert "not a medical device" in found.words.lower()
    assert "Demonstration model." in found.words


def test_untrained_encoders_are_named_at_the_top():
    words = Elements(render_page(page_of(section([]), untrained=("brainmarkstiny",)))).words
    assert words.index("Untrained model: brainmarkstiny. Weights") < words.index("Summary", words.index("Untrained"))
    assert "Untrained" not in Elements(render_page(page_of(section([])))).words


def test_sections_tables_and_figures_are_accessible():
    figures = [Figure("a.svg", "A", "What it shows", "A chart of it", Path.touch)]
    found = Elements(
        render_page(page_of(Section("x", "X", figures=figures, tables=[Table("T", ("H",), [(Cell("1"),)])])))
    )
    assert [image["alt"] for image in found.of("img")] == ["A chart of it"]
    (scroll,) = [attributes for attributes in found.of("div") if attributes.get("class") == "scroll"]
    assert (scroll["tabindex"], scroll["role"], scroll["aria-label"]) == ("0", "region", "T")
    assert {link.get("href") for link in found.of("a")} >= {"#summary", "#x", "#about"}


@pytest.fixture(scope="module")
def many():
    """Values of 20,000 runs."""
    return np.random.default_rng(0).normal(size=(20_000, 2))


PLOTS = {
    "distributions": lambda many, path: plot_distributions(
        [Distribution(f"measure {i}", many[:, 0], many[:, 0] > 3, (2.0,)) for i in range(8)], path
    ),
    "pairs": lambda many, path: plot_pairs(
        [Pairs("age", many[:, 0], many[:, 1], ("x", "y"), "r = 0", "trend") for _ in range(6)], path, title="Pairs"
    ),
    "clouds": lambda many, path: plot_clouds(
        [Cloud("site", many, [f"s{i % 11}" for i in range(len(many))]), Cloud("all", many, [""] * len(many))],
        path, title="Map", columns=3,
    ),
    "sites": lambda many, path: plot_sites(
        {"tSNR": [many[i::12, 0] for i in range(12)]}, [f"s{i}" for i in range(12)], path
    ),
    "identity": lambda many, path: plot_identity(
        dict.fromkeys(("global", "voxel"), (np.corrcoef(many[:400].reshape(200, 4)), [f"s{i}" for i in range(200)])),
        path, title="Identity", description="200 runs",
    ),
    "similarities": lambda many, path: plot_similarities(
        {"global": (np.arange(80), np.arange(80)[::-1])}, np.linspace(-1, 1, 81), path, title="Similarities"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLOTS)
def test_figures_of_many_runs_are_small_and_described(name, many, tmp_path):
    path = PLOTS[name](many, tmp_path / f"{name}.svg")
    text = path.read_text()
    assert len(text) < 1_000_000
    assert re.search(r"<title>[^<]+</title><desc>[^<]+</desc>", text)
    assert "prefers-color-scheme: dark" in text


def test_figures_are_reproducible(many, tmp_path):
    clouds = [Cloud("site", many[:50], ["a", "b"] * 25)]
    one, two = (plot_clouds(clouds, tmp_path / f"{i}.svg", title="Map", columns=1).read_bytes() for i in range(2))
    assert one == two


@pytest.mark.parametrize(("n_people", "labelled"), [(4, True), (60, False)])
def test_participants_of_a_similarity_matrix_have_labels_if_they_are_few(tmp_path, n_people, labelled):
    people = [f"sub-{i:02d}" for i in range(n_people) for _ in range(2)]
    matrix = np.eye(len(people))
    text = plot_identity({"voxel": (matrix, people)}, tmp_path / "x.svg", title="t", description="d").read_text()
    assert ("sub-03" in text) == labelled
    assert ("runs of 60 participants" in text) != labelled


def test_reports_that_do_not_exist_are_not_linked():
    rows = [(Cell("sub-01_task-a", "sub-01.html"),), (Cell("sub-02_task-a", "sub-02.html"),)]
    text = render_page(page_of(section(rows)))
    assert '<a href="sub-01.html">sub-01_task-a</a>' in text
    assert "sub-02.html" not in text
    assert "sub-02_task-a" in text


def test_a_table_without_rows_is_not_shown():
    assert "T-title" not in render_page(page_of(Section("x", "X", tables=[Table("T-title", ("H",), [])])))
