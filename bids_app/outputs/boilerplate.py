"""The methods text of a run of the app: each step as it was done, with versions and citations.

Steps are named in ``methods.yml``, citations in ``data/boilerplate.bib``; which steps were done, and with which values,
is for the caller to say. The same text is written as Markdown, HTML, TeX and with its BibTeX file.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.bids.writer import write_text
from bids_app.reports import markdown

CITATION = re.compile(r"\s?\[@(\w+)\]")
PACKAGES = ("antspyx", "nibabel", "nilearn", "nipype", "numpy", "pandas", "pybids", "scipy", "torch")

ACCENTS = {r"{\u{a}}": "ă", r"{\"u}": "ü"}
"""Letters of names in the bibliography, as BibTeX writes them."""

TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
"""Characters that a backslash before them would not save."""

INTRODUCTION = (
    "This text was made by NeuroSTORM {neurostorm} from what it did. It may be copied into a manuscript unchanged, and "
    "is released under the CC0 licence for that purpose."
)


@dataclass(frozen=True)
class Sentence:
    """A sentence of the methods text, or several: what was done in a step.

    Parameters
    ----------
    name : str
        Its name in ``methods.yml``.
    values : dict
        What its sentences name: ``{"template": "MNI152NLin6Asym"}``.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """An entry of the bibliography."""

    key: str
    text: str
    """The entry as BibTeX."""
    fields: dict[str, str]

    @property
    def short(self) -> str:
        """As it is cited: ``Avants et al., 2008``."""
        names = [name.partition(",")[0] for name in self.fields["author"].split(" and ")]
        who = names[0] if len(names) == 1 else " & ".join(names) if len(names) == 2 else f"{names[0]} et al."
        if names[1:] == ["others"]:
            who = f"{names[0]} et al."
        return f"{_plain(who)}, {self.fields['year']}"

    @property
    def full(self) -> str:
        """As it stands in the list of references, in Markdown."""
        authors = [_plain(name) for name in self.fields["author"].split(" and ")]
        who = "; ".join("et al." if name == "others" else name for name in authors)
        where = self.fields.get("journal") or self.fields["booktitle"]
        issue = f"({self.fields['number']})" if "number" in self.fields else ""
        parts = [f"*{_plain(where)}*", self.fields.get("volume", "") + issue, self.fields.get("pages", "")]
        place = ", ".join(part.replace("--", "–") for part in parts if part)
        link = f"https://doi.org/{self.fields['doi']}" if "doi" in self.fields else self.fields["url"]
        target = link.replace("(", "%28").replace(")", "%29")
        return f"{who} ({self.fields['year']}). {_plain(self.fields['title'])}. {place}. [{link}]({target})"


@cache
def bibliography() -> dict[str, Reference]:
    """The references that texts may cite, by key."""
    text = files("bids_app.data").joinpath("boilerplate.bib").read_text(encoding="utf-8")
    found = {}
    for entry in re.findall(r"^@\w+\{.*?^\}", text, re.MULTILINE | re.DOTALL):
        key = entry[entry.index("{") + 1 : entry.index(",")]
        fields = dict(re.findall(r"^\s*(\w+) = \{(.*)\},?$", entry, re.MULTILINE))
        found[key] = Reference(key, entry, fields)
    return found


def compose(steps: Sequence[Sentence], *, demonstration: str = "") -> list[tuple[str, str]]:
    """The text as headings and paragraphs, with ``[@key]`` where something is cited.

    Parameters
    ----------
    steps : sequence of Sentence
        What was done; a step may come several times with other values.
    demonstration : str
        Name of the demonstration model that was used, if it was one.

    Raises
    ------
    KeyError
        A step that ``methods.yml`` does not have, or a value that its sentences need.
    """
    content = _texts()
    versions = {"neurostorm": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    unknown = {step.name for step in steps} - set(content["steps"])
    if unknown:
        raise KeyError(f"methods.yml has no step {', '.join(sorted(unknown))}")
    found = [("", INTRODUCTION.format_map(versions))]
    for section, names in content["sections"].items():
        done = [step for name in names for step in steps if step.name == name]
        sentences = dict.fromkeys(content["steps"][step.name].format_map(versions | dict(step.values)) for step in done)
        if sentences:
            found.append((section, " ".join(sentences)))
    if demonstration:
        found.append(("Demonstration", content["demonstration"].format(model=demonstration)))
    return found


def as_markdown(paragraphs: Sequence[tuple[str, str]]) -> str:
    """Composed paragraphs as Markdown, with a list of references."""
    known, keys = bibliography(), _cited(paragraphs)

    def cite(match: re.Match[str]) -> str:
        return f" ({known[match[1]].short})"

    body = "\n\n".join(
        (f"## {heading}\n\n" if heading else "") + _merge_citations(CITATION.sub(cite, text))
        for heading, text in paragraphs
    )
    references = "\n".join(sorted(f"- {known[key].full}" for key in keys))
    return f"# Methods\n\n{body}\n\n## References\n\n{references}\n"


def as_tex(paragraphs: Sequence[tuple[str, str]]) -> str:
    """Composed paragraphs as TeX, to be used with the BibTeX file and natbib."""
    lines = [
        r"\documentclass{article}",
        r"\usepackage[utf8]{inputenc}",
        r"\usepackage[round]{natbib}",
        r"\begin{document}",
        r"\section*{Methods}",
    ]
    for heading, text in paragraphs:
        lines += ["", rf"\subsection*{{{_tex(heading)}}}"] if heading else [""]
        pieces = re.split(r"(\s?\[@\w+\])", text)
        lines.append("".join(CITATION.sub(r"~\\citep{\1}", p) if CITATION.fullmatch(p) else _tex(p) for p in pieces))
    lines += ["", r"\bibliographystyle{plainnat}", r"\bibliography{CITATION}", r"\end{document}", ""]
    return "\n".join(lines)


def write_methods(out_dir: Path, steps: Sequence[Sentence], *, demonstration: str = "") -> list[Path]:
    """Write ``logs/CITATION.md``, ``.html``, ``.tex`` and ``.bib``.

    Parameters
    ----------
    out_dir : pathlib.Path
        Root of the derivatives.
    steps : sequence of Sentence
        What was done.
    demonstration : str
        Name of the demonstration model that was used, if it was one.
    """
    paragraphs = compose(steps, demonstration=demonstration)
    text = as_markdown(paragraphs)
    known = bibliography()
    contents = {
        "md": text,
        "html": markdown.page(text, "Methods"),
        "tex": as_tex(paragraphs),
        "bib": "\n".join(known[key].text for key in _cited(paragraphs)) + "\n",
    }
    return [write_text(out_dir / "logs" / f"CITATION.{kind}", content) for kind, content in contents.items()]


def _cited(paragraphs: Sequence[tuple[str, str]]) -> list[str]:
    return list(dict.fromkeys(key for _, text in paragraphs for key in CITATION.findall(text)))


@cache
def _texts() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(files("bids_app.outputs").joinpath("methods.yml").read_text(encoding="utf-8"))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _merge_citations(text: str) -> str:
    """``(A, 2008) (B, 2003)`` becomes ``(A, 2008; B, 2003)``."""
    return re.sub(r"(\([^()]+, \d{4})\) \((?=[^()]+, \d{4}\))", r"\1; ", text)


def _plain(text: str) -> str:
    """A BibTeX field without its braces and accents."""
    for accent, letter in ACCENTS.items():
        text = text.replace(accent, letter)
    return re.sub(r"[{}]", "", text)


def _tex(text: str) -> str:
    """Text whose characters mean themselves in TeX."""
    return re.sub(r"[&%$#_{}~^\\]", lambda match: TEX.get(match[0], "\\" + match[0]), text)
