"""Charts of a group: distributions, scatter plots, sites, embedding maps, similarity and test-retest.

Inputs are arrays; each function writes one SVG file. Scatter plots with many points are rasterised, so that files stay
small for large cohorts.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_app.reports.figures.style import HAIRLINE, INK, MUTED, PALETTE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY_POINTS = 500
"""Scatter plots with more points are rasterised."""
MIN_PER_BIN = 12
"""Minimum points per bin of a median trend."""
COLUMNS = 4
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
VERDICT_COLOURS = {"pass": PALETTE[2], "warn": PALETTE[1], "refuse": PALETTE[7], "no verdict": MUTED}
MAX_SITES = 12
MAX_LABELLED = 40
"""Maximum participants with labels in a similarity matrix."""


@dataclass(frozen=True)
class Distribution:
    """Distribution of a metric over runs."""

    name: str
    """Label with unit."""
    values: np.ndarray
    """(N,); NaN are ignored."""
    outlying: np.ndarray
    """(N,) bool: outliers."""
    limits: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cloud:
    """Points of one panel, with their colour groups."""

    title: str
    points: np.ndarray
    """(N, 2)."""
    kinds: Sequence[str]
    """(N,) colour group of each point; empty if unknown."""
    axes: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Pairs:
    """Pairs of values for one scatter plot."""

    title: str
    x: np.ndarray
    y: np.ndarray
    labels: tuple[str, str]
    note: str = ""
    line: str = ""
    """``trend`` (binned medians), ``identity``, or empty for no line."""


def plot_distributions(measures: Sequence[Distribution], path: Path) -> Path:
    """Plot histograms, one panel per metric; outliers are marked below, limits are dashed."""
    with _grid(len(measures), 1.85) as (figure, panels):
        for axes, measure in zip(panels, measures, strict=True):
            values = measure.values[np.isfinite(measure.values)]
            out = measure.values[measure.outlying]
            axes.hist(values, bins=min(40, max(8, int(np.sqrt(len(values))))), color=PALETTE[0], alpha=0.75)
            bottom = -0.08 * axes.get_ylim()[1]
            _points(axes, out, np.full(len(out), bottom), color=PALETTE[1], marker="D", size=14)
            low, high = axes.get_xlim()
            for limit in measure.limits:
                if low <= limit <= high:
                    axes.axvline(limit, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.set_title(_wrapped(measure.name), fontsize=10)
            axes.tick_params(labelsize=9)
            axes.xaxis.set_major_locator(_few_ticks())
            axes.yaxis.set_major_locator(_few_ticks(integer=True))
        panels[0].set_ylabel("runs", fontsize=9)
        n_out = sum(int(measure.outlying.sum()) for measure in measures)
        text = f"Histograms of {len(measures)} image quality metrics; {n_out} outliers."
        return save_figure(figure, path, "Distributions of image quality metrics", text)


def plot_pairs(panels: Sequence[Pairs], path: Path, *, title: str) -> Path:
    """Plot scatter plots, one panel per pair of variables."""
    with _grid(len(panels), 2.5, columns=3) as (figure, found):
        for axes, pairs in zip(found, panels, strict=True):
            known = np.isfinite(pairs.x) & np.isfinite(pairs.y)
            x, y = pairs.x[known], pairs.y[known]
            _points(axes, x, y, color=PALETTE[0])
            if pairs.line == "trend" and len(x) >= 2 * MIN_PER_BIN:
                axes.plot(*_medians(x, y), color=PALETTE[1], linewidth=2, marker="o", markersize=4)
            if pairs.line == "identity" and len(x):
                ends = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
                axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            axes.set(xlabel=pairs.labels[0], ylabel=pairs.labels[1])
            axes.set_title(f"{_wrapped(pairs.title, 40)}\n{pairs.note}", fontsize=10)
        text = "; ".join(f"{pairs.title}: {pairs.note}" for pairs in panels)
        return save_figure(figure, path, title, text)


def plot_sites(measures: Mapping[str, Sequence[np.ndarray]], sites: Sequence[str], path: Path) -> Path:
    """Plot box plots, one panel per measure and one box per site."""
    with _grid(len(measures), 0.9 + 0.24 * len(sites), columns=3) as (figure, panels):
        for index, (axes, (name, groups)) in enumerate(zip(panels, measures.items(), strict=True)):
            known = [values[np.isfinite(values)] for values in groups]
            parts: Any = axes.boxplot(known, orientation="horizontal", widths=0.6, patch_artist=True, showfliers=False)
            for box in parts["boxes"]:
                box.set(facecolor=PALETTE[0], alpha=0.35, edgecolor=MUTED)
            for line in (*parts["whiskers"], *parts["caps"]):
                line.set_color(MUTED)
            for line in parts["medians"]:
                line.set(color=INK, linewidth=2)
            axes.set_yticks(range(1, len(sites) + 1), list(sites) if index % 3 == 0 else [""] * len(sites))
            axes.invert_yaxis()
            axes.set_title(_wrapped(name, 40), fontsize=10)
            axes.xaxis.set_major_locator(_few_ticks())
            axes.grid(axis="x", linewidth=0.6, color=HAIRLINE)
        text = f"{', '.join(measures)} at {len(sites)} sites; boxes: quartiles, whiskers: 1.5 times the IQR."
        return save_figure(figure, path, "Measures by site", text)


def plot_clouds(clouds: Sequence[Cloud], path: Path, *, title: str, columns: int) -> Path:
    """Plot maps of runs, one panel per colouring; groups differ in colour and marker."""
    from matplotlib.lines import Line2D

    with _grid(len(clouds), 3.6, columns=columns) as (figure, panels):
        for axes, cloud in zip(panels, clouds, strict=True):
            kinds = np.array([kind or "unknown" for kind in cloud.kinds])
            names, counts = np.unique(kinds, return_counts=True)
            shown = names[np.argsort(-counts, kind="stable")][: len(PALETTE)]
            rest = ~np.isin(kinds, shown)
            area, handles = _area(len(kinds)), []
            looks = [(name, kinds == name, *_look(name, index)) for index, name in enumerate(sorted(shown))]
            if rest.any():
                looks.insert(0, (f"{len(names) - len(shown)} others", rest, MUTED, "o"))
            for name, own, color, marker in looks:
                _points(axes, *cloud.points[own].T, color=color, marker=marker, size=area)
                handles.append(Line2D([], [], linestyle="", marker=marker, color=color, label=name, markersize=6))
            if len(names) > 1:
                axes.legend(
                    handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=3,
                            handletextpad=0.2, columnspacing=0.8, borderpad=0)  # fmt: skip
            axes.set_title(cloud.title, fontsize=10)
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(cloud.axes[0], fontsize=9)
            axes.set_ylabel(cloud.axes[1], fontsize=9)
        text = f"Embeddings of {len(clouds[0].points)} runs: {'; '.join(cloud.title for cloud in clouds)}."
        return save_figure(figure, path, title, text)


def plot_identity(
    matrices: Mapping[str, tuple[np.ndarray, Sequence[str]]], path: Path, *, title: str, description: str
) -> Path:
    """Plot similarity matrices of runs, one or two panels; lines separate participants, with labels if there are few.

    Parameters
    ----------
    matrices : mapping of str to (np.ndarray, (N, N), sequence of str, (N,))
        Similarities, and the participant of each run; runs sorted by participant. The diagonal is not shown.
    """
    with new_figure(11, 4.9) as figure:
        panels = figure.subplots(1, 2)
        for axes in panels[len(matrices) :]:
            axes.set_axis_off()
        image = None
        for axes, (name, (matrix, people)) in zip(panels, matrices.items(), strict=False):
            shown = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
            image = axes.imshow(shown, cmap="PuOr_r", vmin=-1, vmax=1, interpolation="nearest")
            _mark_participants(axes, people)
            axes.set_title(name)
        bar = figure.colorbar(image, ax=list(panels), shrink=0.8, aspect=24, pad=0.01)  # type: ignore[arg-type]
        bar.set_label("similarity")
        bar.outline.set_visible(False)  # type: ignore[operator]
        return save_figure(figure, path, title, description)


def _mark_participants(axes: Axes, people: Sequence[str]) -> None:
    """Separate the participants of a matrix by lines and name them, if there are few."""
    names, starts = np.unique(np.asarray(people), return_index=True)
    order = np.argsort(starts)
    names, starts = names[order], starts[order]
    edges = np.append(starts, len(people)) - 0.5
    if len(names) > MAX_LABELLED:
        axes.set(xlabel=f"runs of {len(names)} participants", ylabel="runs", xticks=[], yticks=[])
        return
    for edge in edges[1:-1]:
        axes.axhline(edge, color=MUTED, linewidth=0.5)
        axes.axvline(edge, color=MUTED, linewidth=0.5)
    middles, size = (edges[:-1] + edges[1:]) / 2, float(np.clip(220 / len(names), 5, 9))
    axes.set_xticks(middles, names, rotation=90, fontsize=size)
    axes.set_yticks(middles, names, fontsize=size)
    axes.tick_params(length=0)
    axes.set(xlabel="runs, by participant")


def plot_similarities(
    counts: Mapping[str, tuple[np.ndarray, np.ndarray]], edges: np.ndarray, path: Path, *, title: str
) -> Path:
    """Plot histograms of the similarity within and between participants.

    Parameters
    ----------
    counts : mapping of str to two np.ndarray, (B,)
        Pair counts within and between participants, by normalisation.
    edges : np.ndarray, (B + 1,)
        Bin edges.
    """
    with _grid(len(counts), 2.2, columns=2) as (figure, panels):
        for axes, (name, kinds) in zip(panels, counts.items(), strict=True):
            labels = ("within participant", "between participants")
            for values, color, label in zip(kinds, PALETTE, labels, strict=False):
                share = values / max(1, values.sum())
                axes.stairs(share, edges, fill=True, color=color, alpha=0.35)
                axes.stairs(share, edges, color=color, linewidth=1.6, label=label)
            axes.set(xlabel="similarity", ylabel="fraction of pairs", title=name, ylim=(0, None))
            axes.legend(fontsize=9, loc="upper left")
        text = "Similarity of runs of different sessions, within and between participants."
        return save_figure(figure, path, title, text)


def _medians(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """Return the medians of x and y in up to eight equally populated bins along x."""
    parts = np.array_split(np.argsort(x, kind="stable"), min(8, len(x) // MIN_PER_BIN))
    return [float(np.median(x[part])) for part in parts], [float(np.median(y[part])) for part in parts]


def _points(axes: Axes, x: np.ndarray, y: np.ndarray, *, color: str, marker: str = "o", size: float = 0) -> None:
    """Plot points; many points are rasterised."""
    rasterized = len(x) > MANY_POINTS
    area = size or _area(len(x))
    axes.scatter(x, y, s=area, color=color, marker=marker, alpha=0.75, linewidths=0, rasterized=rasterized)


def _area(n_points: int) -> float:
    """Return the marker area, smaller for more points."""
    return float(np.clip(6000 / max(n_points, 1), 4, 26))


def _look(kind: str, index: int) -> tuple[str, str]:
    """Return colour and marker of a group of points, by its index."""
    usual = MUTED if kind == "unknown" else PALETTE[index % len(PALETTE)]
    return VERDICT_COLOURS.get(kind, usual), MARKERS[index % len(MARKERS)]


class _grid:
    """Figure with a grid of panels; unused panels are hidden."""

    def __init__(self, n_panels: int, height: float, columns: int = COLUMNS) -> None:
        self.n_panels, self.columns = n_panels, columns
        self.n_rows = -(-n_panels // columns)
        self._figure = new_figure(11, 0.3 + self.n_rows * height)

    def __enter__(self) -> tuple[Any, list[Axes]]:
        figure = self._figure.__enter__()
        panels = figure.subplots(self.n_rows, self.columns, squeeze=False).ravel().tolist()
        for axes in panels[self.n_panels :]:
            axes.set_axis_off()
        return figure, panels[: self.n_panels]

    def __exit__(self, *error: Any) -> None:
        self._figure.__exit__(*error)


def _few_ticks(integer: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4, integer=integer)


def _wrapped(text: str, width: int = 32) -> str:
    """Wrap the title of a panel."""
    return "\n".join(textwrap.wrap(text, width))
