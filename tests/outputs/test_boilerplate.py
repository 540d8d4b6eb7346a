"""Methods text: performed steps with citations, in every format."""

import importlib.metadata
import platform
import re

import pytest

from bids_app import __version__
from bids_app.outputs.boilerplate import (
    CITATION,
    Sentence,
    _texts,
    as_markdown,
    as_tex,
    bibliography,
    compose,
    write_methods,
)
from bids_app.reports import markdown

VALUES = {
    "template": "MNI152NLin2009aSym",
    "template_cite": "mni2009",
    "accuracy": "exact",
    "atlas": "AAL3",
    "atlases": "AAL3",
    "min_coverage": "50 %",
    "pipeline": "fMRIPrep 24.1",
    "cite": " [@fmriprep]",
    "way": "MNI152NLin6Asym, the model's own space",
    "rule": "dropped",
    "fd_spike_mm": 0.5,
    "n_echoes": 3,
    "spaces": "MNI152NLin6Asym",
    "strategy": "simple",
    "model": "demo",
    "weights_sha256": "0123abcd",
    "weights": "without weights",
    "version": "0.1.1",
    "inputs": "brain voxels",
    "normalisations": "both normalisations",
    "methods": "a phase difference",
    "target": "Age",
    "clip_volumes": 20,
    "clip_seconds": 16.0,
    "adapter": "age_1",
    "average": "mean of the predictions over clips",
    "cohort": "100 people & 50 %",
    "seed": 20060101,
    "out_of_domain": "flagged with a warning",
    "share": "99.0%",
    "scans": 120,
    "source": " of site {A}",
    "kind": "Sets of labels",
    "level": "90%",
    "coverage": "The coverage holds for new participants.",
    "by_class": ", and a second set calibrated within each class [@mondrian]",
    "other": "global",
}
EVERY_STEP = [
    *(Sentence(name, VALUES) for name in _texts()["steps"]),
    *(Sentence("derivatives", VALUES | {"cite": f" [@{key}]"}) for key in ("hcp", "xcpd", "ukb")),
]


def test_every_step_is_in_a_section():
    listed = [name for names in _texts()["sections"].values() for name in names]
    assert sorted(listed) == sorted(_texts()["steps"])


def test_citations_and_references_match():
    paragraphs = compose([*EVERY_STEP, Sentence("t1w_template", VALUES | {"template_cite": "mni6"})])
    cited = {key for _, text in paragraphs for key in CITATION.findall(text)}
    assert cited == set(bibliography())


@pytest.mark.parametrize("key", sorted(bibliography()))
def test_references_are_complete(key):
    fields = bibliography()[key].fields
    assert {"author", "title", "year"} <= set(fields)
    assert "doi" in fields or "url" in fields
    assert re.fullmatch(r"\d{4}", fields["year"])
    assert re.match(r".*\((19|20)\d\d\)\. .+\. \*.+\*", bibliography()[key].full)
    assert "{" not in bibliography()[key].full


def test_only_performed_steps_are_described_in_order():
    text = as_markdown(compose([Sentence("resample"), Sentence("motion")]))
    assert "Gauss-Newton steps (Baker & Matthews, 2004)" in text
    assert text.index("Head motion") < text.index("model grid")
    assert "T1w" not in text
    assert f"NeuroSTORM {__version__}" in text
    assert "[@" not in text
    assert "Avants" not in text


def test_the_same_step_of_several_runs_is_described_once():
    text = as_markdown(compose([Sentence("motion"), Sentence("motion"), Sentence("adapter", VALUES)]))
    assert text.count("Head motion was estimated") == 1


def test_a_demonstration_model_is_named():
    assert "not valid for real participants" in as_markdown(compose([Sentence("query")], demonstration="demo"))


def test_unknown_steps_and_missing_values_are_errors():
    with pytest.raises(KeyError, match="no step dance"):
        compose([Sentence("dance")])
    with pytest.raises(KeyError, match="template"):
        compose([Sentence("t1w_template")])


def test_all_formats_are_written(tmp_path):
    paths = write_methods(tmp_path, EVERY_STEP, demonstration="demo")
    assert [path.name for path in paths] == [f"CITATION.{kind}" for kind in ("md", "html", "tex", "bib")]
    html = (tmp_path / "logs/CITATION.html").read_text()
    assert "<h2>Functional data</h2>" in html
    assert "100 people &amp; 50 %" in html
    assert 'href="https://doi.org/10.1016/S1053-8119%2809%2970884-5"' in html
    bib = (tmp_path / "logs/CITATION.bib").read_text()
    assert bib.count("@") == len(bibliography())


def test_the_versions_of_the_engines_are_named():
    text = as_markdown(compose([Sentence("seed", {"seed": 7}), Sentence("model", VALUES)]))
    assert f"NumPy {importlib.metadata.version('numpy')}" in text
    assert f"Python {platform.python_version()}" in text
    assert f"PyTorch {importlib.metadata.version('torch').partition('+')[0]}" in text
    assert "seed 7" in text


def test_tex_is_valid():
    """Without a TeX installation: groups are closed, commands known, special characters escaped."""
    tex = as_tex(compose(EVERY_STEP, demonstration="demo"))
    body = tex[tex.index(r"\begin{document}") :]
    assert set(re.findall(r"\\([A-Za-z]+)", tex)) <= {
        "documentclass", "usepackage", "begin", "end", "section", "subsection", "citep", "bibliographystyle",
        "bibliography", "textbackslash", "textasciitilde", "textasciicircum",
    }  # fmt: skip
    plain = re.sub(r"\\[&%$#_{}]", "", body)
    depth = 0
    for mark in re.findall(r"[{}]", plain):
        depth += {"{": 1, "}": -1}[mark]
        assert depth in (0, 1)
    assert depth == 0
    assert not re.search(r"[&%$#_]", re.sub(r"\\citep\{\w+\}", "", plain))
    assert (tex.count(r"\begin{document}"), tex.count(r"\end{document}")) == (1, 1)


@pytest.mark.parametrize("key", sorted(bibliography()))
def test_entries_of_the_bibliography_are_complete(key):
    text = bibliography()[key].text
    assert text.count("{") == text.count("}")
    assert not re.search(r"(?<!\\)[%$#]", text)


def test_special_characters_are_preserved_in_tex():
    told = [("", "a~b ^2 \\x 100 % & #1 $ _ {c}")]
    assert r"a\textasciitilde{}b \textasciicircum{}2 \textbackslash{}x 100 \% \& \#1 \$ \_ \{c\}" in as_tex(told)


def test_tex_commands_are_escaped():
    tex = as_tex(compose(EVERY_STEP))
    assert r"100 people \& 50 \%" in tex
    assert r"age\_1" in tex
    assert r"~\citep{syn}" in tex
    assert "[@" not in tex
    cited = set(re.findall(r"\\citep\{(\w+)\}", tex))
    assert cited == set(bibliography())


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("# A <b>", "<h1>A &lt;b&gt;</h1>"),
        ("one\ntwo", "<p>one two</p>"),
        ("- a\n- b *c*", "<ul><li>a</li><li>b <em>c</em></li></ul>"),
        ("**x** `<y> *z*`", "<p><strong>x</strong> <code>&lt;y&gt; *z*</code></p>"),
        ("[a&b](https://x.org/?q=1&r=2)", '<p><a href="https://x.org/?q=1&amp;r=2">a&amp;b</a></p>'),
        ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>"),
        ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
        ("## H\ntext", "<h2>H</h2>\n<p>text</p>"),
        ("", ""),
    ],
)
def test_markdown_becomes_escaped_html(text, html):
    assert markdown.to_html(text) == html
