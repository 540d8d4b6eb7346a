"""Charts of short and long runs, with missing values, for classes and values."""

import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from bids_app.reports.figures.charts import _carpet, plot_carpet, plot_embeddings, plot_predictions

SVG = "{http://www.w3.org/2000/svg}"


def texts(path):
    return " ".join("".join(node.itertext()) for node in ElementTree.parse(path).iter(f"{SVG}text"))


def clips(n, **columns):
    onset = [0.0, *(16.0 * i for i in range(n))]
    table = {"clip": ["mean", *range(n)], "onset": onset, "duration": [16.0 * n, *[16.0] * n]}
    return pd.DataFrame(table | columns)


def test_a_carpet_plot_shows_mean_motion(tmp_path):
    rng = np.random.default_rng(0)
    confounds = pd.DataFrame({"framewise_displacement": [np.nan, *[0.1] * 38, 0.9], "std_dvars": np.ones(40)})
    path = plot_carpet(rng.normal(size=(40, 200)), 2.0, confounds, tmp_path / "x.svg", title="run")
    assert "mean 0.12 mm, 1 of 40 volumes above the threshold" in texts(path)
    assert ElementTree.parse(path).getroot().find(f"{SVG}title").text == "run"


def test_carpet_rows_are_sorted_by_group():
    values = np.zeros((20, 6))
    values[:, [0, 2, 4]] = np.sin(np.arange(20))[:, None]
    values[:, [1, 3, 5]] = np.cos(np.arange(20))[:, None]
    rows, edges = _carpet(values, np.array([0, 1, 0, 1, 0, 1]), 2)
    assert len(edges) == 2
    (a, b), (c, d) = edges
    assert b == c
    assert np.corrcoef(rows[int(a) : int(b)].mean(axis=0), np.sin(np.arange(20)))[0, 1] > 0.95
    assert np.corrcoef(rows[int(c) : int(d)].mean(axis=0), np.cos(np.arange(20)))[0, 1] > 0.95


def test_carpet_plots_of_long_runs_are_small(tmp_path):
    values = np.random.default_rng(0).normal(size=(1500, 3000)).astype(np.float32)
    path = plot_carpet(values, 0.8, pd.DataFrame({"dvars": np.ones(1500)}), tmp_path / "x.svg", title="t")
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    "confounds",
    [
        pd.DataFrame({"x": range(12)}),
        pd.DataFrame({"framewise_displacement": [np.nan] * 12, "std_dvars": [np.nan] * 12}),
    ],
)
def test_a_carpet_plot_without_motion(tmp_path, confounds):
    values = np.ones((12, 30))
    shown = texts(plot_carpet(values, 2.0, pd.DataFrame(confounds), tmp_path / "x.svg", title="t"))
    assert "not available" in shown
    assert "nan" not in shown


def test_confounds_of_removed_volumes_are_ignored(tmp_path):
    confounds = pd.DataFrame({"framewise_displacement": [5.0, 5.0, *[0.1] * 20], "std_dvars": np.ones(22)})
    path = plot_carpet(np.random.default_rng(0).normal(size=(20, 9)), 2.0, confounds, tmp_path / "x.svg", title="t")
    assert "mean 0.10 mm, 0 of 20" in texts(path)


def test_predicted_labels_are_sorted_by_probability(tmp_path):
    table = clips(3, label=["b"] * 4, p_a=[0.2, 0.1, 0.2, 0.3], **{"p_b & c": [0.8, 0.9, 0.8, 0.7]})
    shown = texts(plot_predictions(table, tmp_path / "x.svg", title="t"))
    assert shown.index("b & c") < shown.rindex(" a ")
    assert "0.80" in shown
    assert "probability" in shown


def test_a_predicted_value_has_a_unit(tmp_path):
    path = plot_predictions(clips(3, value=[30.0, 29, 30, 31]), tmp_path / "x.svg", title="t", unit="years")
    assert "value (years)" in texts(path)
    assert "30.00" in texts(path)
    assert "range 29.00 to 31.00" in ElementTree.parse(path).getroot().find(f"{SVG}desc").text


@pytest.mark.parametrize("columns", [{"value": [3.0, 3.0]}, {"label": ["a", "a"], "p_a": [1.0, 1.0]}])
def test_predictions_of_one_clip(tmp_path, columns):
    assert plot_predictions(clips(1, **columns), tmp_path / "x.svg", title="t").exists()


@pytest.mark.parametrize(("n_clips", "n_dims", "names"), [(1, 4, ["global"]), (12, 288, ["global", "voxel"])])
def test_embeddings_are_plotted_by_normalisation(tmp_path, n_clips, n_dims, names):
    rng = np.random.default_rng(0)
    columns = {f"e{i:04d}": rng.normal(size=n_clips + 1) for i in range(n_dims)}
    table = pd.concat([clips(n_clips, **columns).assign(normalisation=name) for name in names])
    path = plot_embeddings(table, tmp_path / "x.svg", title="t")
    for name in names:
        assert f"{name} normalisation" in texts(path)
    assert f"{n_dims} features of {n_clips} clips" in ElementTree.parse(path).getroot().find(f"{SVG}desc").text


def test_similarity_of_clips_is_without_what_all_clips_share(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.imshow",
        lambda self, *a, _imshow=Axes.imshow, **k: shown.append((a[0], k)) or _imshow(self, *a, **k),
    )
    rng = np.random.default_rng(0)
    state = np.array([1, 1, 1, -1, -1, -1])[:, None] * rng.normal(size=(1, 40))
    values = 100 + state + 0.1 * rng.normal(size=(6, 40))
    columns = {f"e{i:04d}": [values[:, i].mean(), *values[:, i]] for i in range(40)}
    plot_embeddings(clips(6, **columns).assign(normalisation="global"), tmp_path / "x.svg", title="t")
    matrix, options = shown[-1]
    assert np.isnan(np.diag(matrix)).all()
    assert matrix[0, 1] > 0.9
    assert matrix[0, 4] < -0.9
    assert options["vmax"] == -options["vmin"]


def test_charts_follow_the_colour_scheme_and_work_offline(tmp_path):
    text = plot_predictions(clips(2, value=[1.0, 1, 2]), tmp_path / "x.svg", title="a < b").read_text()
    assert "prefers-color-scheme: dark" in text
    assert "<title>a &lt; b</title>" in text
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", text))
    assert all("w3.org" in address or "purl.org" in address or "creativecommons" in address for address in addresses)
