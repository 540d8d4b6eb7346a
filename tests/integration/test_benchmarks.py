"""Benchmarks of pre-training: correct measurements, and a cohort with the intended differences."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.scripts import load_benchmark


class Slow:
    """Three batches with a delay of 50 ms each."""

    steps = 3

    def epoch(self, number: int, first: int = 0):
        for k in range(first, self.steps):
            time.sleep(0.05)
            yield k


def test_waiting_time_is_separated_from_the_step():
    watched = load_benchmark("pretraining").Watched(Slow())
    given = watched.epoch(0)
    for k in range(3):
        assert next(given) == k
        time.sleep(0.02)
    given.close()  # as the loop does after its last step
    assert [step.first for step in watched.found] == [True, False, False]
    for step in watched.found:
        assert step.waiting >= 0.05
        assert step.wall - step.waiting >= 0.02


@pytest.mark.slow
def test_groups_of_the_masking_cohort_differ_in_limbic_and_cerebellar_parcels_only():
    module = load_benchmark("region_masking")
    plan = replace(module.QUICK, effect=0.5)
    owners, names = module.parcels(plan.parcels)
    assert set(owners) == set(range(len(names)))
    spread = []
    for group in module.GROUPS:
        values = np.asarray(module.simulate("a", group, plan).values)
        courses = np.stack([values[:, owners == k].mean(axis=1) for k in range(len(names))])
        spread.append(courses.std(axis=1))
    ratio = spread[1] / spread[0]
    affected = np.array([not name.startswith("other") for name in names])
    assert ratio[affected] == pytest.approx(3.0, rel=0.1)
    assert ratio[~affected] == pytest.approx(1.0, rel=0.01)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_masks_are_compared_from_cohort_to_table(tmp_path, capsys):
    module = load_benchmark("region_masking")
    right, missed = module.run(tmp_path, module.QUICK)
    assert set(right) == {module.UNTRAINED, *module.MASKS}
    assert set(missed) == set(module.MASKS)
    assert all(values.shape == (1, module.QUICK.labelled) for values in right.values())
    assert all(np.isfinite(values).all() for values in missed.values())
    module.report(right, missed, module.parcels(module.QUICK.parcels)[1])
    assert "| atlas |" in capsys.readouterr().out
