"""Volume-wise series in the page: equal to the confounds, compact, and aligned with the figure."""

import math

import pandas as pd
import pytest

from bids_app.bids.writer import write_json, write_tsv
from bids_app.reports.figures.charts import plot_carpet
from bids_app.reports.participant import PAGE_LIMIT, build_participant_report
from bids_app.reports.traces import Trace, compact, read_trace

STEM = "sub-01_task-rest_run-1"


def numbers(text):
    return [int(point) if point else None for point in text.split(",")]


def test_a_trace_equals_the_confounds_table(tmp_path):
    table = pd.DataFrame(
        {"framewise_displacement": [math.nan, 0.1234, 0.5], "dvars": [math.nan, 20.0, 30.0],
         "global_signal": [99.0, 100.0, 101.0]}
    )  # fmt: skip
    write_tsv(tmp_path / "x.tsv", table)
    (tmp_path / "x.svg").write_text("<svg>")
    found = compact(read_trace(tmp_path / "x.tsv", tmp_path / "x.svg", "url", 2.0), 100)
    assert numbers(found.fd) == [None, 12, 50]
    assert numbers(found.dvars) == [None, 2000, 3000]
    assert numbers(found.signal) == [-100, 0, 100]
    assert (found.trace.dvars_name, found.trace.left, found.n_points) == ("DVARS", 0, 3)


def test_the_figure_stores_the_position_of_its_volumes(tmp_path):
    table = pd.DataFrame({"framewise_displacement": [0.1] * 20, "std_dvars": [1.0] * 20})
    write_tsv(tmp_path / "x.tsv", table)
    values = pd.DataFrame({i: range(20) for i in range(8)}).to_numpy(float)
    figure = plot_carpet(values, 2.0, table, tmp_path / "x.svg", title="t")
    found = read_trace(tmp_path / "x.tsv", figure, "url", 2.0)
    assert 0 < found.left < 0.2 < 0.7 < found.right < 1
    assert found.signal == [None] * 20


def test_compact_traces_keep_maximum_motion_and_mean_signal():
    fd = [0.1] * 10
    fd[7] = 0.9
    found = compact(Trace("", 1.0, fd, [None] * 10, [0.0, 2.0] * 5), 3)
    assert (found.per_point, found.n_points) == (4, 3)
    assert numbers(found.fd) == [10, 90, 10]
    assert numbers(found.dvars) == [None] * 3
    assert numbers(found.signal) == [100, 100, 100]


@pytest.mark.parametrize(("n_runs", "n_volumes"), [(1, 1200), (20, 1200)])
def test_pages_with_long_or_many_runs_are_small(out, n_runs, n_volumes):
    """Each run has a verdict with eleven checks, a prediction set and views."""
    for path in [*out.glob("sub-01/func/*run-2*"), *out.glob("sub-01/figures/*run-2*")]:
        path.unlink()
    table = next(out.glob(f"sub-01/func/{STEM}_desc-confounds_timeseries.tsv"))
    signal = [math.sin(i) * 100 + 800 for i in range(n_volumes)]
    fd = [abs(math.sin(i / 3)) for i in range(n_volumes)]
    write_tsv(table, pd.DataFrame({"framewise_displacement": fd, "std_dvars": fd, "global_signal": signal}))
    sidecar = next(out.glob(f"sub-01/func/{STEM}*_predictions.json"))
    check = {"Check": "fd_mean", "Level": "warn", "Value": 0.6123, "Limits": "at most 0.55 mm", "Message": "x" * 120}
    view = {"Answer": "rest", "Probabilities": {"rest": 0.5}}
    views = {"Normalisation": "voxel", "Other": view, "MeanImageOnly": view, "FromMeanImage": 0.2}
    set_of_two = {"Level": 0.9, "LabelSet": ["left hand", "rest"], "EffectiveClips": 4.0, "StandardError": 0.01}
    card = {"Verdict": {"Level": "warn", "Checks": [check] * 11}, "Views": views, "Uncertainty": set_of_two}
    write_json(sidecar, card | {"Target": "state"})
    for path in [*out.glob(f"sub-01/func/{STEM}_*"), *out.glob(f"sub-01/figures/{STEM}_*")]:
        for run in range(2, n_runs + 1):
            (path.parent / path.name.replace("run-1", f"run-{run}")).symlink_to(path)
    source = build_participant_report(out, "01").read_text()
    assert source.count('class="trace"') == n_runs
    assert len(source.encode()) < 380_000
    assert len(source.encode()) < PAGE_LIMIT
    if n_runs == 1:
        assert 'data-n="1200" data-per="1"' in source


def test_an_unreadable_confounds_table_is_listed(out):
    table = next(out.glob(f"sub-01/func/{STEM}_desc-confounds_timeseries.tsv"))
    table.write_text("framewise_displacement\nmuch\n")
    source = build_participant_report(out, "01").read_text()
    assert source.count('class="trace"') == 1
    assert table.name in source[source.index("could not be read") :]
