"""Image quality metrics, checks of the verdict and figures of the report, from ``bids_app/reports/spec.yml``."""

from __future__ import annotations

from bids_app.reports.contents import format_limit, spec
from site_pages.markdown import code, escape, table


def quality_metrics() -> str:
    """Describe the image quality metrics: name in the tables, label in the report, limit, and meaning."""
    group = spec()["group"]["worse"]
    rows = [
        [
            code(name),
            escape(entry["label"]),
            escape(str(entry.get("unit", ""))),
            escape(format_limit(name)),
            {"both": "high or low"}.get(group.get(name, ""), group.get(name, "")),
            escape(entry.get("help", "")),
        ]
        for name, entry in spec()["quality"].items()
    ]
    return table(["name", "label in the report", "unit", "limit", "worse if", "meaning"], rows)


def checks() -> str:
    """Describe the checks of verdicts with their labels in the report."""
    return table(
        ["check", "label in the report"], [[code(name), escape(text)] for name, text in spec()["checks"].items()]
    )


def figures() -> str:
    """Describe the figures of a participant report by section."""
    rows = []
    for section, entries in spec()["figures"].items():
        rows += [
            [section, code(f"desc-{each['desc']}"), escape(each["title"]), escape(each["caption"])] for each in entries
        ]
    return table(["section", "file", "title", "content"], rows)
