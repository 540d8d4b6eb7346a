"""Table of all runs within a page: compact, safe within HTML, and limited in size."""

import json

import pytest

from bids_app.reports.run_table import CATEGORY, NUMBER, Column, RunTable, guess_column, metric_column


def read(table, **options):
    text = table.to_json(**options)
    return text, json.loads(text)


def test_numbers_are_short_and_what_is_no_number_is_missing():
    values = [0.123456, 1234567.0, None, float("nan"), float("inf"), 3.0]
    column = Column("x", "X", values, NUMBER, digits=0).to_json()
    assert column["values"] == [0.1235, 1235000, None, None, None, 3]
    assert column["digits"] == 0


def test_levels_keep_their_order_and_missing_ones_have_no_code():
    column = Column("v", "V", ["refuse", "pass", "", "odd"], CATEGORY, ("pass", "warn", "refuse")).to_json()
    assert column["levels"] == ["pass", "refuse", "odd"]
    assert column["values"] == [1, 0, -1, 2]


def test_hostile_names_cannot_end_the_script_element():
    evil = "</script><img src=x onerror=alert(1)>&\u2028"
    text, content = read(RunTable([evil], ["a.html"], [Column("t", evil, [evil])]))
    assert not set("<>&\u2028") & set(text)
    assert content["runs"] == [evil]
    assert content["columns"][0]["values"] == [evil]


def test_columns_beyond_the_limit_are_left_out_and_named():
    columns = [Column("a", "First", ["x" * 50]), Column("b", "Long", ["y" * 5000]), Column("c", "Third", ["z"])]
    text, content = read(RunTable(["run"], [""], columns), limit=1000)
    assert [column["title"] for column in content["columns"]] == ["First", "Third"]
    assert content["left_out"] == ["Long"]
    assert len(text) < 1100


def test_metrics_have_the_units_and_limits_of_the_reports():
    column = metric_column("coverage", [0.91]).to_json()
    assert (column["title"], column["unit"], column["factor"], column["limit"]) == (
        "Brain coverage",
        "%",
        100,
        "≥ 90 %",
    )


@pytest.mark.parametrize(
    ("texts", "kind"),
    [(["20.5", "", "31", "7"], NUMBER), (["F", "M", ""], CATEGORY), (["1", "2", "1"], CATEGORY), (["", ""], CATEGORY)],
)
def test_columns_of_participants_are_numbers_or_categories(texts, kind):
    assert guess_column("x", "x", texts).kind == kind
