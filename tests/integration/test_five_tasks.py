"""The five tasks, from cohort to report: simulated effects are recovered."""

from __future__ import annotations

import pytest

from tests.helpers.scripts import load_benchmark


@pytest.fixture(scope="module")
def five_tasks(tmp_path_factory):
    """The benchmark, and a folder for its cohorts."""
    return load_benchmark("five_tasks"), tmp_path_factory.mktemp("five-tasks")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["age", "sex", "phenotype", "diagnosis", "identity", "images", "states"])
def test_a_task_recovers_its_simulated_effect(name, five_tasks):
    module, work = five_tasks
    found = module.run(name, work, quick=True)
    metric = module.ALL[name].metric
    assert found["encoder"][metric][0] >= module.minimum_of(name, work)
    assert {"encoder", "connectivity", "mean", "amplitude"} <= set(found)
