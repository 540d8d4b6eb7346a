"""Hooks of MkDocs: parts from the package, pages from files outside ``docs``, links, and equations as MathML.

The site has no scripts or fonts of other hosts: equations are converted when the site is built.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from latex2mathml.converter import convert  # noqa: E402
from mkdocs.structure.files import File  # noqa: E402
from pymdownx.slugs import slugify  # noqa: E402
from site_pages import fill  # noqa: E402
from site_pages.dialect import for_python_markdown  # noqa: E402
from site_pages.links import ROOT_PAGES, TEXT_PAGES, site_links  # noqa: E402

EXTERNAL: dict[str, set[str]] = {}
"""Links to other hosts, with the pages that have them."""
EXTERNAL_LIST = ROOT / "build" / "external-links.txt"
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: Any) -> Any:
    """Name anchors as code hosts do, and show the version."""
    from bids_app import REPOSITORY, __version__

    config.mdx_configs["toc"] = {**config.mdx_configs.get("toc", {}), "slugify": slugify(case="lower")}
    config.extra["version_text"] = __version__
    config.copyright = f"NeuroSTORM {__version__}, Apache-2.0. A research tool, not a medical device."
    if REPOSITORY:
        config.repo_url = REPOSITORY
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from files outside ``docs``, and the files that pages show from there."""
    copied: set[str] = set()
    for source, page in {**ROOT_PAGES, **TEXT_PAGES}.items():
        if source != "README.md":
            content = (ROOT / source).read_text(encoding="utf-8")
            if source in TEXT_PAGES:
                content = f"# {Path(page).stem.capitalize()}\n\n```text\n{content.rstrip()}\n```\n"
            files.append(File.generated(config, page.removeprefix("docs/"), content=content))
            copied |= site_links(content, source)[1]
    for file in list(files.documentation_pages()):
        if file.abs_src_path:
            copied |= site_links(Path(file.abs_src_path).read_text(encoding="utf-8"), f"docs/{file.src_uri}")[1]
    for path in sorted(copied):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in the parts from the package, and rewrite links."""
    sources = {page: source for source, page in {**ROOT_PAGES, **TEXT_PAGES}.items() if source != "README.md"}
    path = f"docs/{page.file.src_uri}"
    return for_python_markdown(site_links(fill(markdown), sources.get(path, path))[0])


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Convert equations to MathML, and note links to other hosts."""
    for address in re.findall(r'<a [^>]*href="(https?://[^"]+)"', content):
        EXTERNAL.setdefault(html.unescape(address), set()).add(page.file.src_uri)
    return EQUATION.sub(_as_mathml, content)


def on_post_build(config: Any) -> None:
    """List the links to other hosts, which are not checked."""
    lines = [f"{address}\t{' '.join(sorted(pages))}\n" for address, pages in sorted(EXTERNAL.items())]
    EXTERNAL_LIST.parent.mkdir(exist_ok=True)
    EXTERNAL_LIST.write_text("".join(lines), encoding="utf-8")


def _as_mathml(found: re.Match[str]) -> str:
    is_block = found[1] == "div"
    made = convert(html.unescape(found[2]).strip(), display="block" if is_block else "inline")
    return f'<div class="equation">{made}</div>' if is_block else made
