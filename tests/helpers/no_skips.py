"""Hooks of pytest that report skipped tests as failed, on request."""

from __future__ import annotations

import os

import pytest

NO_SKIPS = "NEUROSTORM_NO_SKIPS"
"""Environment variable that makes skipped tests fail, for machines that have everything the tests need."""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Report a skipped test as failed if `NO_SKIPS` is set; tests that are expected to fail are not affected."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get(NO_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which {NO_SKIPS} forbids: {report.longrepr[-1]}"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """Report a module that skips itself as failed if `NO_SKIPS` is set."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get(NO_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped, which {NO_SKIPS} forbids: {report.longrepr[-1]}"
