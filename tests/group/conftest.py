"""Derivatives of many made-up runs, as the benchmark of the group level writes them; tiny."""

import csv
from types import SimpleNamespace

import pytest

from bids_app.cli.neurostorm import main
from bids_app.group.cohort import read_cohort
from bids_app.group.overview import answers_section, runs_section
from bids_app.group.tables import write_tables
from bids_app.settings import QuerySettings
from tests.helpers.scripts import load_benchmark


class Group(SimpleNamespace):
    """A study that was written, and the command that gathers it."""

    def run(self, *options):
        return main(
            [str(self.raw), str(self.out), "group", "--nprocs", "1", "-w", str(self.out.parent / "w"), *options]
        )

    def gather(self, **query):
        """Write the tables and no page, which takes most of the time."""
        cohort = read_cohort(sorted(self.out.glob("sub-*")), self.raw, QuerySettings(**query), 1)
        write_tables(self.out, cohort)
        return cohort

    def rows(self, name):
        with (self.out / name).open(newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))

    def page(self):
        return (self.out / "group.html").read_text()


def words_of(section):
    """All that a section says, as text."""
    cells = [cell.text for table in section.tables for row in table.rows for cell in row]
    return " ".join([*section.paragraphs, *(remark.text for remark in section.remarks), *cells])


@pytest.fixture
def told():
    """The words of a cohort's sections on how runs ended and what was answered."""
    return lambda cohort: words_of(runs_section(cohort)) + words_of(answers_section(cohort))


@pytest.fixture(scope="session")
def study():
    """The class that writes made-up studies."""
    return load_benchmark("group").Study


@pytest.fixture
def make_group(tmp_path, study):
    """A function that writes a study of given properties."""

    def make(**properties):
        group = Group(raw=tmp_path / "raw", out=tmp_path / "out", study=study(**properties))
        group.study.write(group.out, group.raw)
        return group

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory, study):
    """A study of 14 participants in two sessions at three sites, gathered; not to be changed."""
    folder = tmp_path_factory.mktemp("group")
    group = Group(raw=folder / "raw", out=folder / "out", study=study(participants=14))
    group.study.write(group.out, group.raw)
    assert group.run() == 0
    return group
