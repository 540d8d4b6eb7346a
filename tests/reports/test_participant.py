"""Participant report: complete, built from derivatives only, escaped, small, and self-contained."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from bids_app.errors import NoInputError
from bids_app.reports.contents import format_metrics, quality_columns, rate_metric
from bids_app.reports.figures.connectivity import plot_connectivity
from bids_app.reports.participant import build_participant_report
from tests.helpers.odd_files import ODD_FILES

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text = [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] not in ("style", "script"):
            self.text += data + " "

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self):
        return " ".join(self.text.split())


def test_the_summary_shows_predictions_spread_quality_and_failures(derivatives):
    page = Page(build_participant_report(derivatives.out, "01"))
    assert "3 BOLD runs, 2 completed, 1 failed" in page.words
    assert re.search(r"state demonstration left hand left hand \d\d % ", page.words)
    assert "of 9 clips predict left hand" in page.words
    assert "Mean framewise displacement 0.12 mm" in page.words
    assert "Brain coverage 93 %" in page.words
    assert "The field of view cuts the cerebellum." in page.words
    assert "Not a medical device" in page.text
    assert "Demonstration model." in page.text


def test_errors_are_shown_with_hints(derivatives):
    page = Page(build_participant_report(derivatives.out, "sub-01"))
    assert "sub-01_task-rest_run-3_bold.nii.gz: ends after 12 of 60 volumes." in page.words
    assert "What to do: Copy the file again." in page.words
    assert "Exit code 65" in page.words
    assert any("crash-sub-01_task-rest_run-3-examine.txt" in link.get("href", "") for link in page.of("a"))


def test_sections_are_in_the_standard_order(derivatives):
    page = Page(build_participant_report(derivatives.out, "01"))
    sections = [section["id"] for section in page.of("section")]
    assert sections == [
        "summary", "viewer", "anatomy", "functional", "grid", "predictions", "embeddings", "cards", "methods", "about",
        "errors",
    ]  # fmt: skip
    links = [link["href"] for link in page.of("a") if link["href"].startswith("#")]
    assert {f"#{section}" for section in sections} <= set(links)


def test_methods_versions_command_and_notes_are_shown(derivatives):
    page = Page(build_participant_report(derivatives.out, "01"))
    assert "Gauss-Newton steps (Baker & Matthews, 2004)" in page.words
    assert "python 3.11.7" in page.words
    assert "neurostorm raw out participant" in page.words
    assert "Of 3 echoes, echo 2 was taken" in page.words
    assert "odd one n/a" in page.words
    assert "Name demo SHA-256 of the weights 0123abcd Demonstration yes Device cpu" in page.words
    assert "The template MNI152NLin2009aSym is mapped to the model's space by a fixed affine: " in page.words


def test_figures_exist_and_have_a_text_alternative(derivatives):
    page = Page(build_participant_report(derivatives.out, "01"))
    images = [image for image in page.of("img") if not image["src"].startswith("report_assets/")]
    assert len({image["src"] for image in images}) == len(list((derivatives.out / "sub-01/figures").glob("*.svg")))
    for image in images:
        path = derivatives.out / unquote(image["src"])
        assert path.is_file()
        assert path.stat().st_size < 1_000_000
        assert len(image["alt"]) > 20


def test_all_links_are_valid(derivatives):
    page = Page(build_participant_report(derivatives.out, "01"))
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for link in page.of("a"):
        target, _, fragment = link["href"].partition("#")
        if target.startswith("https://"):
            assert "doi.org" in target or "arxiv.org" in target
        elif target:
            assert (derivatives.out / unquote(target)).exists(), target
        else:
            assert fragment in anchors


def test_the_page_is_small_and_works_offline(derivatives):
    page = Page(build_participant_report(derivatives.out, "01"))
    assert len(page.source) < 350_000
    assert not page.of("link")
    assert not page.of("iframe")
    assert all(not attributes.get("src", "").startswith(("http", "//", "data:")) for _, attributes in page.elements)
    assert "@import" not in page.source
    assert "url(" not in page.source
    policy = next(meta["content"] for meta in page.of("meta") if meta.get("http-equiv"))
    assert "default-src 'none'" in policy


def test_a_page_with_forty_runs_is_small(out):
    for path in [*out.glob("sub-01/func/*run-1_*"), *out.glob("sub-01/figures/*run-1_*")]:
        for run in range(4, 42):
            (path.parent / path.name.replace("run-1", f"run-{run}")).symlink_to(path)
    page = Page(build_participant_report(out, "01"))
    assert "41 BOLD runs" in page.words
    assert page.source.count('class="trace"') == 40
    assert len(page.source) < 380_000


def test_the_page_can_be_rebuilt_and_moved(derivatives, out, tmp_path):
    first = build_participant_report(out, "01").read_bytes()
    shutil.rmtree(derivatives.raw, ignore_errors=True)
    moved = shutil.move(out, tmp_path / "elsewhere")
    assert build_participant_report(Path(moved), "01").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_text_from_files_is_escaped(out):
    log = next(out.glob("sub-01/log/*/summary.json"))
    content = json.loads(log.read_text())
    content["runs"][2] |= {"reason": EVIL, "hint": EVIL, "step": EVIL, "exit_code": 65}
    content |= {"finished": EVIL, "command": [EVIL], "versions": {EVIL: EVIL}}
    log.write_text(json.dumps(content))
    description = out / "dataset_description.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"Name": EVIL}))
    metrics = {
        "quality": {EVIL: EVIL, "dice": EVIL},
        "route": EVIL,
        "template": EVIL,
        "warnings": [EVIL],
        "notes": [EVIL],
    }
    next(out.glob("sub-01/func/*run-1_desc-quality_metrics.json")).write_text(json.dumps(metrics))
    checks = [{"Check": EVIL, "Level": "warn", "Value": EVIL, "Limits": EVIL, "Message": EVIL}]
    card = {"Target": EVIL, "Demonstration": True, EVIL: {EVIL: [EVIL]}}
    card |= {"Verdict": {"Level": "warn", "Checks": checks, "NotKnown": {EVIL: EVIL}}}
    card |= {"Uncertainty": {"Level": 0.9, "LabelSet": [EVIL], "LabelSetByClass": [EVIL], "Calibration": EVIL}}
    view = {"Answer": EVIL, "Probabilities": {EVIL: 1}}
    card |= {"Views": {"Normalisation": EVIL, "Other": view, "MeanImageOnly": view, "Note": EVIL}}
    card |= {"TrainingCohort": {EVIL: EVIL}, "Limits": EVIL, "Ranges": {EVIL: EVIL}, "Adapter": EVIL}
    table = next(out.glob("sub-01/func/*run-1*_predictions.tsv"))
    table.with_suffix(".json").write_text(json.dumps(card))
    cell = EVIL.replace('"', "")
    table.write_text(table.read_text().replace("left hand", cell))
    (out / "logs/CITATION.md").write_text(f"# Methods\n\n{EVIL}\n\n- {EVIL}\n\n[{EVIL}](https://x.org/{EVIL})\n")
    shutil.copy(next(out.glob("sub-01/figures/*grid*")), out / "sub-01/figures/sub-01_task-a'b<i>_desc-grid_bold.svg")
    embeddings = next(out.glob("sub-01/func/*run-1*_embeddings.json"))
    embeddings.write_text(
        json.dumps({"Model": EVIL, "SplitHalf": {EVIL: 0.5}, "ModelCard": {EVIL: EVIL, "Model": EVIL}})
    )
    confounds = next(out.glob("sub-01/func/*run-1*_timeseries.tsv"))
    confounds.write_text(f"framewise_displacement\tstd_dvars\n{cell}\t1\n")
    page = Page(build_participant_report(out, "01"))
    assert page.words.count("alert('x')") > 35
    assert [script.get("type") for script in page.of("script")] == ["application/json", None]
    assert "<script>alert" not in page.source
    assert all(not any(name.startswith("on") for name in attributes) for _, attributes in page.elements)
    assert all("alert" not in attributes.get("src", "") for attributes in page.of("img"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("func/sub-01_task-rest_run-1_desc-quality_metrics.json", "{"),
        ("func/sub-01_task-rest_run-1_desc-demostate_predictions.tsv", "clip\tonset\n"),
        ("func/sub-01_task-rest_run-1_desc-demostate_predictions.tsv", "clip\tlabel\tp_a\nmean\ta\tx\n"),
        ("func/sub-01_task-rest_run-1_desc-demostate_predictions.json", "[]"),
        ("func/sub-01_task-rest_run-1_desc-demostate_predictions.json", b"\xff"),
        ("log/20260101-120000_0d5e/neurostorm.toml", "= 1"),
    ],
)
def test_unreadable_outputs_are_listed(out, name, content):
    path = out / "sub-01" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    page = Page(build_participant_report(out, "01"))
    assert "could not be read" in page.words
    assert path.name in page.text[page.text.index("could not be read") :]
    assert "run-2" in page.words


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
@pytest.mark.parametrize(
    "name",
    [
        "log/20260101-120000_0d5e/summary.json",
        "log/20260101-120000_0d5e/neurostorm.toml",
        "func/sub-01_task-rest_run-1_desc-demostate_predictions.tsv",
        "func/sub-01_task-rest_run-1_desc-quality_metrics.json",
        "func/sub-01_task-rest_run-1_desc-confounds_timeseries.tsv",
    ],
)
def test_an_odd_file_among_outputs_is_listed(out, name, kind):
    path = out / "sub-01" / name
    path.unlink(missing_ok=True)
    make, words = ODD_FILES[kind]
    make(path)
    page = Page(build_participant_report(out, "01"))
    assert words in page.text[page.text.index("could not be read") :]


@pytest.mark.parametrize("spoil", [{"runs": "x"}, {"runs": [1, {"stem": "../../etc"}]}, {"versions": 1, "command": 2}])
def test_malformed_logs_are_tolerated(out, spoil):
    log = next(out.glob("sub-01/log/*/summary.json"))
    log.write_text(json.dumps(json.loads(log.read_text()) | spoil))
    assert "etc" not in Page(build_participant_report(out, "01")).text


@pytest.mark.parametrize("name", ["20260102-080000_1a", "20260101-120000_00"])
def test_the_most_recent_log_gives_the_status_of_a_run(out, name):
    """Of two logs of the same second, the one that was written later."""
    old = next(out.glob("sub-01/log/*"))
    new = shutil.copytree(old, old.with_name(name))
    content = json.loads((new / "summary.json").read_text())
    content["runs"] = [content["runs"][2] | {"status": "ok", "reason": "", "hint": ""}]
    (new / "summary.json").write_text(json.dumps(content))
    page = Page(build_participant_report(out, "01"))
    assert "3 BOLD runs, 3 completed" in page.words
    assert "No errors to report" in page.words


def test_earlier_predictions_of_a_failed_run_are_not_shown(out):
    log = next(out.glob("sub-01/log/*/summary.json"))
    content = json.loads(log.read_text())
    content["runs"][0] |= {"status": "failed", "reason": "no space", "hint": "free some", "exit_code": 74}
    log.write_text(json.dumps(content))
    page = Page(build_participant_report(out, "01"))
    assert page.words.count("clips predict left hand") == 1


def test_an_untrained_encoder_is_named_at_the_top_of_the_report(out):
    before = Page(build_participant_report(out, "01")).text
    assert "Untrained model." not in before
    for path in out.glob("sub-01/func/*_embeddings.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"Untrained": True}))
    text = Page(build_participant_report(out, "01")).text
    assert text.index("Untrained model.") < text.index("Summary", text.index("Untrained model."))
    assert text.index("Untrained model.") < text.index("BOLD runs")
    assert "Use its embeddings as a control only." in text


def test_a_demonstration_encoder_is_marked_without_predictions(out):
    for path in out.glob("sub-01/func/*_predictions.*"):
        path.unlink()
    assert "Demonstration model." in Page(build_participant_report(out, "01")).text


def test_a_report_without_logs_and_figures(out):
    shutil.rmtree(out / "sub-01/log")
    shutil.rmtree(out / "sub-01/figures")
    page = Page(build_participant_report(out, "01"))
    assert "2 BOLD runs, 2 completed" in page.words
    assert not page.of("img")


def test_runs_of_sessions_are_found(out):
    (out / "sub-01/ses-b").mkdir()
    shutil.move(out / "sub-01/func", out / "sub-01/ses-b/func")
    for path in list(out.glob("sub-01/ses-b/func/*")) + list(out.glob("sub-01/figures/*_bold.svg")):
        path.rename(path.with_name(path.name.replace("sub-01_", "sub-01_ses-b_")))
    shutil.rmtree(out / "sub-01/log")
    page = Page(build_participant_report(out, "01"))
    assert "2 BOLD runs in 1 session, 2 completed" in page.words
    assert "ses-b, task-rest, run-1" in page.words
    assert len(page.of("img")) > 10


def test_a_missing_participant_is_reported(tmp_path):
    with pytest.raises(NoInputError, match="no derivatives of sub-07"):
        build_participant_report(tmp_path, "07")


def test_metrics_are_shown_with_limit_and_rating(derivatives):
    page = Page(build_participant_report(derivatives.out, "01"))
    assert "Mean framewise displacement 0.12 mm pass 0.12 mm pass ≤ 0.55 mm" in page.words
    assert "Standardised DVARS 1.70 warn 1.70 warn ≤ 1.5" in page.words
    assert "Brain coverage 93 % pass 93 % pass ≥ 90 %" in page.words


@pytest.mark.parametrize(
    ("key", "value", "verdict"),
    [
        ("tsnr", 25.0, "pass"),
        ("tsnr", 24.9, "warn"),
        ("fd_perc", 20.1, "warn"),
        ("brain_ml", 800.0, "warn"),
        ("brain_ml", 1500.0, "pass"),
        ("brain_ml", 2200.0, "warn"),
        ("fwhm_avg", 6.0, ""),
        ("unheard_of", 1.0, ""),
    ],
)
def test_metrics_are_rated_by_minimum_and_maximum(key, value, verdict):
    assert rate_metric(key, value) == verdict
    assert format_metrics({key: value})[0].verdict == verdict


def test_columns_are_described_with_units_and_limits():
    columns = quality_columns({"fd_mean": 0.1, "coverage": 0.9, "size_x": 64, "spacing_z": 3.3, "odd": 1})
    assert columns["fd_mean"]["Units"] == "mm"
    assert columns["fd_mean"]["Maximum"] == 0.55
    assert columns["coverage"]["Units"] == "1"
    assert columns["size_x"]["LongName"] == "Voxels along x"
    assert columns["spacing_z"]["Units"] == "mm"
    assert columns["odd"] == {}


def test_metrics_are_formatted_with_label_and_unit():
    shown = {
        m.label: m.value
        for m in format_metrics({"coverage": 0.934, "size_t": 156, "x_y": 1.23456, "coreg_dice": float("nan")})
    }
    assert shown == {
        "Brain coverage": "93 %", "Brain overlap (Dice)": "n/a", "Volumes": "156", "x y": "1.235",
    }  # fmt: skip


def test_the_outputs_pass_the_bids_validator(derivatives):
    build_participant_report(derivatives.out, "01")
    (derivatives.out / "sub-01/func/.neurostorm-12-host-0123abcd-sub-01_task-rest_bold.nii.gz").write_bytes(b"half")
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("needs bids-validator-deno")
    result = subprocess.run(
        [validator, "--format", "json", derivatives.out], capture_output=True, text=True, check=False
    )
    issues = json.loads(result.stdout)["issues"]["issues"]
    errors = [issue for issue in issues if issue["severity"] == "error"]
    assert errors == []
    assert result.returncode == 0


def in_sessions(out, n_sessions):
    """Give the first run of the derivatives a session, and copy it to others."""
    for path in [*out.glob("sub-01/func/*run-1_*"), *out.glob("sub-01/figures/*run-1_*")]:
        for session in range(1, n_sessions + 1):
            name = path.name.replace("sub-01_task-rest_run-1", f"sub-01_ses-{session}_task-rest")
            folder = path.parent if path.parent.name == "figures" else out / f"sub-01/ses-{session}/func"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path)


def test_many_sessions_have_a_report_each_and_an_overview(out):
    in_sessions(out, 3)
    overview = Page(build_participant_report(out, "01", max_sessions=2))
    assert sorted(path.name for path in out.glob("sub-01*.html")) == [
        "sub-01.html", "sub-01_ses-1.html", "sub-01_ses-2.html", "sub-01_ses-3.html",
    ]  # fmt: skip
    assert "6 BOLD runs in 3 sessions, 5 completed, 1 failed" in overview.words
    links = {link["href"] for link in overview.of("a")}
    assert "sub-01_ses-2.html#run-sub-01_ses-2_task-rest" in links
    page = Page(out / "sub-01_ses-2.html")
    assert "1 BOLD run in 1 session" in page.words
    assert {image["src"] for image in page.of("img") if "ses-" in image["src"]} == {
        image["src"] for image in page.of("img") if "ses-2" in image["src"]
    }
    identifiers = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert "figure-sub-01_ses-2_task-rest_desc-coreg_bold" in identifiers
    assert "run-sub-01_ses-2_task-rest" in identifiers


def test_reports_of_sessions_are_removed_when_one_report_is_enough(out):
    in_sessions(out, 3)
    build_participant_report(out, "01", max_sessions=2)
    page = Page(build_participant_report(out, "01", max_sessions=3))
    assert [path.name for path in out.glob("sub-01*.html")] == ["sub-01.html"]
    assert "run-sub-01_ses-2_task-rest" in {attributes.get("id") for _, attributes in page.elements}


def test_images_are_linked(derivatives):
    page = Page(build_participant_report(derivatives.out, "01"))
    links = {link["href"] for link in page.of("a")}
    assert "sub-01/func/sub-01_task-rest_run-1_desc-hmc_boldref.nii.gz" in links
    assert "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz" in links


def test_split_halves_without_information_are_a_sentence_not_a_column(out):
    sidecar = next(out.glob("sub-01/func/*run-1_*_embeddings.json"))
    content = json.loads(sidecar.read_text())
    halves = {"global": 0.9991, "voxel": 0.62}
    content["SplitHalf"] = {k: {"Correlation": v, "SpearmanBrown": v, "Clips": [4, 5]} for k, v in halves.items()}
    sidecar.write_text(json.dumps(content))
    page = Page(build_participant_report(out, "01"))
    assert "the same embedding under global normalisation" in page.words
    assert "voxel normalisation task-rest, run-1 0.62" in page.words
    assert "global normalisation voxel normalisation" not in page.words


def test_figures_have_their_size_so_that_links_to_them_stay_in_place(derivatives):
    page = Page(build_participant_report(derivatives.out, "01"))
    sizes = {image["src"]: (image.get("width"), image.get("height")) for image in page.of("img")}
    assert sizes["sub-01/figures/sub-01_task-rest_run-1_desc-coreg_bold.svg"] == ("1400", "511")
    assert all(width and height for width, height in sizes.values())


def add_region_tables(out, problem=""):
    """Write the tables of two atlases, and the figure of the first; ``problem``: no series, with this reason."""
    func, stem = out / "sub-01" / "func", "sub-01_task-rest_run-1"
    for atlas in ("aal3", "mine"):
        name = f"{stem}_space-MNI152NLin6Asym_seg-{atlas}_stat"
        sidecar = {"Warnings": [problem]} if problem else {}
        (func / f"{name}-coverage_bold.json").write_text(json.dumps(sidecar))
        for table in ("coverage_bold", *(() if problem else ("mean_timeseries", "pearsoncorrelation_relmat"))):
            (func / f"{name}-{table}.tsv").write_text("a\n1\n")
    if not problem:
        figure = out / "sub-01" / "figures" / f"{stem}_desc-aal3connectivity_bold.svg"
        plot_connectivity(np.eye(3), [("left", 3)], figure, title="aal3: 3 of 3 regions, 60 volumes")


def test_connectivity_is_shown_for_each_atlas_with_its_tables(out):
    add_region_tables(out)
    page = Page(build_participant_report(out, "01"))
    assert page.of("section")[[s["id"] for s in page.of("section")].index("connectivity") + 1]["id"] == "grid"
    (figure,) = (image["src"] for image in page.of("img") if "connectivity_bold.svg" in image.get("src", ""))
    assert figure == "sub-01/figures/sub-01_task-rest_run-1_desc-aal3connectivity_bold.svg"
    assert "Functional connectivity (aal3)." in page.words
    links = [link["href"] for link in page.of("a") if "_seg-" in link.get("href", "")]
    assert len(links) == len(set(links)) == 6
    assert all((out / link).is_file() for link in links)


def test_why_there_are_no_series_of_regions_is_a_warning_once(out):
    add_region_tables(out, "Too few volumes <remain>.")
    page = Page(build_participant_report(out, "01"))
    functional = page.source[page.source.index('<section id="functional"') :].partition("</section>")[0]
    assert functional.count("Too few volumes &lt;remain&gt;.") == 1
    assert len([link for link in page.of("a") if "_stat-coverage_bold.tsv" in link.get("href", "")]) == 2


def test_without_tables_by_region_there_is_no_section(derivatives):
    assert 'id="connectivity"' not in build_participant_report(derivatives.out, "01").read_text()
