"""Page of the review: what is in it, and that text from files is only data."""

import html
import json
import re

import pytest

from bids_app.errors import CannotCreateError
from bids_app.outputs.ratings import Rating, hash_figure
from bids_app.review.figures import find_review
from bids_app.review.page import policy, render_page, write_static_page
from tests.helpers.machine import run_without_privileges

HOSTILE = '</script><script>alert(1)</script><!-- & \u2028 "'


def content_of(text):
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_loads_nothing_but_figures(out):
    text = html.unescape(write_static_page(find_review(out)).read_text())
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text.partition("<script>")[0])
    assert "://" not in text
    assert "connect-src 'none'" in text
    assert f'content="{policy(connects=False)}"' in text


def test_notes_and_names_are_data_of_the_page_and_never_part_of_its_code(tmp_path, out):
    out = out.rename(tmp_path / "<img src=x onerror=alert(1)>")
    name = "sub-01_desc-norm_T1w"
    text = render_page(
        find_review(out), "AB", {name: Rating(name, "fail", ("motion",), HOSTILE, "", "2026-01-01T00:00:00Z")}
    )
    assert content_of(text)["rated"][name]["note"] == HOSTILE
    assert text.count("<script") == 2
    assert "<img src=x" not in text


def test_the_static_page_has_addresses_beside_it_and_hashes_of_figures(out):
    page = write_static_page(find_review(out))
    content = content_of(page.read_text())
    assert page == out / "review.html"
    assert content["rater"] == content["base"] == ""
    for _, _, name, extension, version in content["figures"]:
        figure = out / name.partition("_")[0] / "figures" / f"{name}{extension}"
        assert version == hash_figure(figure)
    assert "out/" not in page.read_text()


def test_versions_of_figures_are_exact_for_the_browser(out):
    """Nanoseconds as a number would be rounded by JavaScript."""
    versions = [figure[4] for figure in content_of(render_page(find_review(out), "AB"))["figures"]]
    assert all(isinstance(version, str) and int(version) > 2**53 for version in versions)


def test_a_read_only_output_folder_is_an_error(out):
    out.chmod(0o555)
    code = (
        "from pathlib import Path; from bids_app.cli.review import main; import sys\n"
        "sys.exit(main([%r, %r]) if len(sys.argv) < 2 else main(sys.argv[1:]))"
    )
    done = run_without_privileges(code % (str(out), "--static"))
    assert done.returncode == CannotCreateError.exit_code, done.stderr
    assert "review.html: cannot be written" in done.stderr
    code = f"import sys; from bids_app.cli.review import main\nsys.exit(main([{str(out)!r}, '--rater', 'AB']))"
    done = run_without_privileges(code)
    assert done.returncode == CannotCreateError.exit_code, done.stderr
    assert "ratings: cannot be written" in done.stderr


@pytest.mark.parametrize("rater", ["", "AB"])
def test_every_control_has_a_name(out, rater):
    text = render_page(find_review(out), rater).partition('<script type="application')[0]
    for control in re.findall(r"<(?:input|select|textarea)[^>]*>", text):
        before = text[: text.index(control)]
        assert before.rfind("<label") > before.rfind("</label>"), control
    assert all(re.sub(r"<kbd>.*?</kbd>", "", name).strip() for name in re.findall(r"<button[^>]*>(.*?)</button>", text))
