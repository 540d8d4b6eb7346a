"""Small simulated derivatives, written by the benchmark of the group level."""

import csv
from types import SimpleNamespace

import pytest

from bids_app.cli.neurostorm import main
from bids_app.group.cohort import read_cohort
from bids_app.group.overview import predictions_section, runs_section
from bids_app.group.tables import write_tables
from bids_app.settings import QuerySettings
from tests.helpers.scripts import load_benchmark


class Group(SimpleNamespace):
    """Simulated study with methods to run the group level."""

    def run(self, *options):
        return main(
            [str(self.raw), str(self.out), "group", "--nprocs", "1", "-w", str(self.out.parent / "w"), *options]
        )

    def write_tables(self, **query):
        """Write the tables without the page, which takes most of the time."""
        cohort = read_cohort(sorted(self.out.glob("sub-*")), self.raw, QuerySettings(**query), 1)
        write_tables(self.out, cohort)
        return cohort

    def rows(self, name):
        with (self.out / name).open(newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))

    def page(self):
        return (self.out / "group.html").read_text()


def words_of(section):
    """Return the text of a section."""
    cells = [cell.text for table in section.tables for row in table.rows for cell in row]
    return " ".join([*section.paragraphs, *(remark.text for remark in section.remarks), *cells])


@pytest.fixture
def section_text():
    """Return a function for the text of the sections on runs and predictions."""
    return lambda cohort: words_of(runs_section(cohort)) + words_of(predictions_section(cohort))


@pytest.fixture(scope="session")
def study():
    """Class that writes simulated studies."""
    return load_benchmark("group").Study


@pytest.fixture
def make_group(tmp_path, study):
    """Return a function that writes a study with given properties."""

    def make(**properties):
        group = Group(raw=tmp_path / "raw", out=tmp_path / "out", study=study(**properties))
        group.study.write(group.out, group.raw)
        return group

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory, study):
    """Study of 14 participants in two sessions at three sites, after the group level; read-only."""
    folder = tmp_path_factory.mktemp("group")
    group = Group(raw=folder / "raw", out=folder / "out", study=study(participants=14))
    group.study.write(group.out, group.raw)
    assert group.run() == 0
    return group
