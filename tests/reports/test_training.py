"""Page of a training run: self-contained, with escaped text."""

from __future__ import annotations

import re

from bids_app.reports.training import Picture, TrainingPage, render

EVIL = "<script>alert('x')</script>"


def test_the_page_refers_to_no_other_file_and_escapes_text():
    picture = Picture("<svg xmlns='http://www.w3.org/2000/svg'></svg>", EVIL, EVIL)
    page = TrainingPage(EVIL, [(EVIL, EVIL)], [picture], [[EVIL], [EVIL]], [(EVIL, EVIL)], EVIL)
    html = render(page)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 10
    urls = re.findall(r"(?:src|href)=\"([^\"]*)", html)
    assert [url.partition(",")[0] for url in urls] == ["data:image/svg+xml;base64"]
