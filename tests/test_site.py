"""The site of the documentation: navigation, links, and the parts that are made from the package.

Only the slow tests build the site; the build also checks the anchors.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

import bids_app
from bids_app import errors
from bids_app.errors import EXIT_CODES, BadDataError, NeurostormError
from bids_app.group.publish import OPTIONAL_FILES
from bids_app.outputs import schema
from bids_app.settings.values import FILTERED_KINDS, OTHER_KINDS, read_filters
from tests.helpers.browser import look, needs_browser
from tests.helpers.paths import ROOT
from tests.helpers.scripts import SCRIPTS, load_script

sys.path.append(str(SCRIPTS))
import site_pages
from site_pages import columns, links, messages, metrics, options, sidecars
from site_pages.dialect import for_python_markdown
from site_pages.markdown import code, escape, one_line, table

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
READ_WITHOUT_SITE = [*PAGES, *(ROOT / name for name in links.ROOT_PAGES)]
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
CLASSES = messages.classes()
RELEASE_CHECK = load_script("release_check")
INSTALLED = ROOT / "build" / "docs"
"""Where ``make docs`` and ``make test-slow`` install MkDocs."""
needs_mkdocs = pytest.mark.skipif(
    not (INSTALLED / "mkdocs").is_dir() and find_spec("mkdocs") is None, reason="mkdocs is not installed (make docs)"
)


def pages_in(navigation: Any) -> list[str]:
    """Return the pages of a navigation in order."""
    if isinstance(navigation, str):
        return [navigation]
    values = navigation if isinstance(navigation, list) else list(navigation.values())
    return [page for value in values for page in pages_in(value)]


@cache
def text_of(name: str) -> str:
    """Return a page with the parts from the package."""
    return site_pages.fill((DOCS / name).read_text())


def anchors_of(text: str) -> set[str]:
    """Return the anchors of the headings of a page, as code hosts make them."""
    plain = links.CODE.sub(lambda found: found[0].strip("`"), text)
    headings = re.findall(r"^#+ (.+?)(?: \{ #[\w-]+ \})?$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_navigation_has_every_page_once() -> None:
    listed = pages_in(SETTINGS["nav"])
    made = [*links.ROOT_PAGES.values(), *links.TEXT_PAGES.values()]
    assert len(listed) == len(set(listed))
    assert set(listed) == {path.name for path in PAGES} | {Path(page).name for page in made}


def test_a_dead_link_stops_the_build() -> None:
    assert SETTINGS["validation"]["links"] == dict.fromkeys(
        ("not_found", "anchors", "absolute_links", "unrecognized_links"), "warn"
    )
    (build,) = re.findall(r"^\t\$\(MKDOCS\) build (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert build == "--strict"  # with --quiet, warnings would not count


def test_the_site_loads_nothing_from_other_hosts() -> None:
    assert SETTINGS["theme"]["font"] is False
    shipped = [*SETTINGS["extra_css"], *SETTINGS["extra"]["polyfills"]]
    assert [name for name in shipped if not (DOCS / name).is_file()] == []
    assert any("iframe-worker" in name for name in shipped)  # else the theme loads it from another host
    assert "extra_javascript" not in SETTINGS
    assert not re.search(r"url\(|@import", (DOCS / "site.css").read_text())


@pytest.mark.parametrize("path", READ_WITHOUT_SITE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_of_the_repository(path: Path) -> None:
    dead = []
    for target in links.links_of(path.read_text()):
        if not (links.is_relative(target) or target.startswith("#")):
            continue
        name, _, fragment = unquote(target).partition("#")
        goal = path.parent / name if name else path
        if not goal.exists() or (fragment and fragment not in anchors_of(goal.read_text())):
            dead.append(target)
    assert dead == []


def test_links_of_the_site_lead_to_pages_copies_or_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[a](../CONTRIBUTING.md#rules) ![b](../bids_app/x.webp) [c](../Makefile) `[d](../e.md)` [f](hpc.md) [g](#h)"
    found, copied = links.site_links(text, "docs/page.md")
    assert found == "[a](development.md#rules) ![b](bids_app/x.webp) c `[d](../e.md)` [f](hpc.md) [g](#h)"
    assert copied == {"bids_app/x.webp"}
    assert links.site_links("[t](docs/tutorial.md), [b](benchmarks/README.md)", "CONTRIBUTING.md")[0] == (
        "[t](tutorial.md), [b](benchmarks.md)"
    )
    assert links.site_links("[h](../docs/hpc.md)", "benchmarks/README.md")[0] == "[h](hpc.md)"
    monkeypatch.setattr(links, "REPOSITORY", "https://host/owner/name")
    assert links.site_links("[c](../Makefile)", "docs/page.md")[0] == "[c](https://host/owner/name/blob/main/Makefile)"


def test_every_part_is_on_exactly_one_page_and_has_a_text_where_there_is_no_site() -> None:
    marked = [name for path in PAGES for name in site_pages.parts_of(path.read_text())]
    assert sorted(marked) == sorted(site_pages.PARTS)
    for path in PAGES:
        assert path.read_text().count("<!-- generated:") == len(site_pages.parts_of(path.read_text()))
        for found in site_pages.MARKED.finditer(path.read_text()):
            assert found[2].strip()
    with pytest.raises(KeyError, match="no such part"):
        site_pages.fill("<!-- generated: no such part -->\ntext\n<!-- end -->\n")


@pytest.mark.parametrize("command", options.COMMANDS)
def test_every_option_is_on_its_page(command: str) -> None:
    page = {"neurostorm": "usage.md", "neurostorm-train": "training.md"}.get(command, "commands.md")
    text = text_of(page)
    todo = [options.parser_of(command)]
    seen = 0
    while todo:
        parser = todo.pop()
        todo += [each for each, _ in options.subcommands(parser).values()]
        for action in options.arguments_of(parser):
            shown = one_line(code(options.usage(parser, action)))
            assert shown in text, f"{parser.prog}: {shown}"
            assert one_line(escape(options.help_of(parser, action))) in text
            seen += 1
    assert seen >= 5


def test_options_show_defaults_and_no_placeholders() -> None:
    text = text_of("usage.md") + text_of("training.md") + text_of("commands.md")
    assert "%(" not in text
    assert "(default: neurostorm-5ds)" in text
    assert "{ #neurostorm-participant-label }" in text
    assert "--participant_label" not in text


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_of_errors_has_a_cause_and_a_remedy_on_the_page(kind: type[NeurostormError]) -> None:
    assert {"cause", "remedy"} <= set(vars(kind))
    for text in (kind.cause, kind.remedy):
        assert text[0].isupper() or text[0] == "`"
        assert text.endswith(".")
        assert escape(text) in text_of("errors.md")
    assert f"`{kind.__name__}`" in text_of("errors.md")
    assert kind.exit_code in EXIT_CODES


def test_all_classes_of_errors_are_listed() -> None:
    named = re.findall(r"^class (\w+Error)\(", Path(errors.__file__).read_text(), re.MULTILINE)
    assert [kind.__name__ for kind in CLASSES] == named[1:]
    assert named[0] == "NeurostormError"


@pytest.mark.parametrize("page", [*RELEASE_CHECK.PAGES, "docs/usage.md"])
def test_commands_of_the_pages_are_accepted_by_their_parsers(page: str) -> None:
    commands = RELEASE_CHECK.commands_of((ROOT / page).read_text())
    assert len(commands) >= 4
    for command in commands:
        program, *words = shlex.split(command)
        if program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
        else:
            options.parser_of(program).parse_args(words)


def test_the_release_check_knows_the_parsers_of_all_commands() -> None:
    assert set(RELEASE_CHECK.PARSERS) == set(options.COMMANDS)


def test_the_filter_file_of_the_page_is_read_by_the_command() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", text_of("usage.md"), re.DOTALL)
    assert set(read_filters(example)) == {"bold", "t1w", "fmap"}
    for kind in (*FILTERED_KINDS, *OTHER_KINDS):
        assert f"`{kind}`" in text_of("usage.md")


def test_exit_codes_of_the_page_are_those_of_the_command() -> None:
    table = text_of("usage.md").partition("## Exit codes")[2].partition("\n## ")[0]
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == list(EXIT_CODES)


def test_messages_are_read_with_their_hints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids" / "module.py").write_text(
        "HINT = 'Remove it.'\n"
        "def read(path, n):\n"
        "    what = 'long' if n else 'short'\n"
        "    if n:\n"
        "        raise BadDataError(f'{path.name}: {n:d} are too {what}.', HINT)\n"
        "    raise UsageError('Nothing given.', hint='Give ' + 'one.')\n"
    )
    monkeypatch.setattr(messages, "PACKAGE", tmp_path)
    found = {(each.kind, each.text, each.hint, each.topic) for each in messages.messages.__wrapped__()}  # not cached
    topic = "Dataset and output folder"
    assert found == {
        (BadDataError, "{path}: {n} are too {what}.", "Remove it.", topic),
        (errors.UsageError, "Nothing given.", "Give one.", topic),
    }


def test_all_messages_of_the_package_have_a_hint() -> None:
    found = messages.messages()
    assert len(found) > 500
    assert {each.kind for each in found} >= set(CLASSES) - {errors.AnalysisLevelError}
    assert [each.text for each in found if not each.hint] == []
    page = text_of("errors.md")
    assert [each.text for each in found if one_line(escape(each.text)) not in page] == []


def test_every_key_of_sidecars_and_logs_has_a_meaning() -> None:
    kinds = [*sidecars.FILES, schema.Summary, schema.Manifest]
    kinds += [nested for kind in kinds for nested in sidecars._all_nested(kind)]
    page = text_of("outputs.md")
    for kind in kinds:
        for key, meaning in sidecars.keys_of(kind).items():
            assert meaning, f"{kind.__name__}: {key}"
            assert f"| `{key}` |" in page or key == "(column)"
    used = {key for kind in kinds for key in sidecars.keys_of(kind)}
    assert set(sidecars.meanings()) <= used


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "golden" / "sidecars").glob("*.json")), ids=lambda p: p.stem)
def test_keys_of_written_sidecars_are_on_the_page_of_outputs(path: Path) -> None:
    listed = set(re.findall(r"^\| `([^`]+)` \|", text_of("outputs.md"), re.MULTILINE))
    listed |= {name.replace("XX", f"{number:02d}") for name in listed for number in range(100) if "XX" in name}
    listed |= {name.replace("NNNN", "0000") for name in listed}
    written = json.loads(path.read_text())
    assert [key for key in written if key not in listed] == []
    assert [key for key in written.get("quality", ()) if key not in listed] == []


def patterns_of_files() -> list[str]:
    """Return the patterns of files on the page of outputs."""
    rows = re.findall(r"^\| (`.+?) \|", (DOCS / "outputs.md").read_text(), re.MULTILINE)
    return [pattern for row in rows for pattern in re.findall(r"`([^`]+)`", row)]


def golden_files() -> list[str]:
    """Return the files of simulated participants, and those of the group level."""
    golden = ROOT / "tests" / "golden"
    return [
        *(golden / "participant_without_t1w.txt").read_text().split(),
        *(path.name for path in (golden / "sidecars").glob("sub-*")),
        *OPTIONAL_FILES,
        "group_runs.tsv",
    ]


@pytest.mark.parametrize("name", golden_files())
def test_every_file_of_the_app_is_on_the_page_of_outputs(name: str) -> None:
    names = {name, Path(name).name} if not name.startswith("sub-01/figures") else {name}
    as_image = {re.sub(r"\.json$", suffix, each) for each in names for suffix in (".tsv", ".nii.gz", ".h5", ".txt")}
    specific = [pattern for pattern in patterns_of_files() if pattern != "sub-*/log/*/*"]
    assert any(fnmatch(each, pattern) for each in names | as_image for pattern in specific), name


def test_columns_are_those_of_the_data_dictionaries() -> None:
    tables = columns.all_tables()
    page = text_of("outputs.md")
    assert set(tables) == set(columns.HEADINGS)
    for name, found in tables.items():
        assert found, name
        for column, entry in found.items():
            assert entry.get("Description") or entry.get("LongName"), f"{name}: {column}"
            assert f"| `{column}` |" in page
    assert {
        "framewise_displacement",
        "trans_x",
        "a_comp_cor_XX",
        "t_comp_cor_XX",
        "cosineXX",
        "motion_outlierXX",
    } <= set(tables["confounds"])


def test_quality_metrics_and_checks_are_those_of_the_report() -> None:
    page = text_of("quality.md")
    for name in metrics.spec()["quality"]:
        assert f"| `{name}` |" in page
    for name in metrics.spec()["checks"]:
        assert f"| `{name}` |" in page
        assert f"`{name}`" in (DOCS / "verdicts.md").read_text()
    assert "| `fd_mean` | Mean framewise displacement | mm | ≤ 0.55 mm | high |" in page


def test_models_are_listed_with_their_cards() -> None:
    from bids_app.catalog.models import catalog

    page = text_of("models.md")
    for entry in [*catalog("models").values(), *catalog("adapters").values()]:
        anchor = site_pages.catalog.card_anchor(entry)
        assert f"(#{anchor})" in page
        assert f"{{ #{anchor} }}" in page
    assert page.count("**Not a medical device.**") == len(catalog("models")) + len(catalog("adapters"))


def test_the_page_on_python_has_the_public_interface() -> None:
    found = re.findall(r"^::: (\S+)\.(\w+)$", text_of("python.md"), re.MULTILINE)
    assert {name for _, name in found} == set(bids_app.__all__) - {"__version__"}
    for module, name in found:
        assert getattr(import_module(module), name).__doc__


def test_references_of_the_methods_are_in_the_bibliography() -> None:
    sources = [(ROOT / name).read_text() for name in ("bids_app/data/boilerplate.bib", "paper.bib")]
    known = set(re.findall(r"^\s*(?:doi|url) = \{(.+?)\}", "\n".join(sources), re.MULTILINE))
    for name in ("methods.md", "comparison.md", "quality.md"):
        cited = [unquote(link) for link in links.links_of((DOCS / name).read_text()) if link.startswith("http")]
        assert cited
        assert [link for link in cited if link.removeprefix("https://doi.org/") not in known] == []


def test_images_of_the_pages_have_the_version_of_the_package() -> None:
    texts = [path.read_text() for path in READ_WITHOUT_SITE]
    assert {tag for text in texts for tag in re.findall(r"neurostorm:(\d[\w.]*\d)", text)} == {bids_app.__version__}


def test_lists_are_indented_for_the_site() -> None:
    text = "Words:\n- one\n  more\n- two\n  ```\n  code\n    in\n  ```\n  - in\n\n1. first\n\n   second\n"
    assert for_python_markdown(text) == (
        "Words:\n\n-   one\n    more\n-   two\n    ```\n    code\n      in\n    ```\n    -   in\n\n"
        "1.  first\n\n    second\n"
    )
    text = "1. a\n\n   b\n2. c\n"  # a paragraph in an item does not end at the next item
    assert for_python_markdown(text) == "1.  a\n\n    b\n\n2.  c\n"
    assert for_python_markdown("```\n- no\n  list\n```\n| a |\n") == "```\n- no\n  list\n```\n\n| a |\n"


def test_cells_of_tables_are_plain_text() -> None:
    assert table(["a"], [[code("x|y")], [escape("*_<b> `c_d`")]]) == (
        "| a |\n| --- |\n| `x\\|y` |\n| \\*\\_&lt;b&gt; `c_d` |"
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; a warning is a failure."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "site")]
    paths = [str(INSTALLED), str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "NO_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "site"


@needs_mkdocs
@pytest.mark.slow
def test_the_built_site_has_all_pages_and_loads_nothing_from_other_hosts(site: Path) -> None:
    pages = {path.stem: path.read_text() for path in site.glob("*.html")}
    assert set(pages) == {Path(name).stem for name in pages_in(SETTINGS["nav"])} | {"404"}
    for name, text in pages.items():
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]* src="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]* rel="(?:stylesheet|preload|icon|preconnect)"[^>]* href="([^"]+)"', text)
        assert [link for link in loaded if re.match(r"(https?:)?//", link)] == [], name
        own = [link for link in loaded if name != "404" and not link.startswith("data:")]
        assert [link for link in own if not (site / link.partition("?")[0]).is_file()] == [], name
        assert "<!-- generated" not in text
    assert pages["methods"].count("<math") > 40
    assert not re.search(r'\\\(|\$\$|class="arithmatex"|<m(text|i|o)>\\', pages["methods"])
    assert pages["python"].count('class="doc doc-heading"') == len(bids_app.__all__) - 1


@needs_mkdocs
@needs_browser
@pytest.mark.slow
def test_the_search_works_from_disk(site: Path, tmp_path: Path) -> None:
    script = """
      const query = inner.querySelector("[data-md-component=search-query]");
      query.focus(); query.value = "framewise"; query.dispatchEvent(new Event("keyup", {bubbles: true}));
      for (let turn = 0; turn < 60; turn++) {
        const found = [...inner.querySelectorAll(".md-search-result__item h1")].map((each) => each.textContent);
        if (found.length) return found;
        await new Promise((done) => setTimeout(done, 100));
      }
      return [];"""
    assert {"Outputs", "Quality metrics"} <= set(look(site / "index.html", tmp_path, script))
