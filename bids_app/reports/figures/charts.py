"""Charts of a run: carpet plot with head motion, predictions per clip, and embeddings.

Inputs are arrays or tables; each function writes one SVG file that follows the colour scheme of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_app.reports.figures.style import HAIRLINE, INK, MUTED, PALETTE, new_figure, save_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MAX_ROWS, MAX_COLUMNS = 500, 1200
"""Maximum size of a carpet plot; larger ones are averaged in blocks."""

PROBABILITIES = (0.0, 1.0)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Markers of series, in addition to their colours."""


def plot_carpet(
    values: np.ndarray,
    tr: float,
    confounds: pd.DataFrame,
    path: Path,
    *,
    groups: np.ndarray | None = None,
    group_names: Sequence[str] = (),
    fd_threshold_mm: float = 0.5,
    title: str,
) -> Path:
    """Plot framewise displacement, DVARS and a carpet of voxel time series.

    Parameters
    ----------
    values : np.ndarray, (T, V)
        Voxel time series, in any unit; may be memory-mapped.
    tr : float
        Repetition time, s.
    confounds : pandas.DataFrame
        T rows with ``framewise_displacement`` (mm) and ``std_dvars`` or ``dvars``.
    path : pathlib.Path
        The SVG file to write.
    groups : np.ndarray, (V,), optional
        Index into ``group_names`` for each voxel; rows are sorted by it.
    group_names : sequence of str
        Names of the groups.
    fd_threshold_mm : float
        FD threshold, plotted as a line, mm.
    title : str
        Title of the figure, for its text alternative.
    """
    carpet, edges = _carpet(values, groups, len(group_names))
    n_vols = len(values)
    times = (np.arange(n_vols) + 0.5) * tr  # the middle of a volume's column in the carpet
    fd = _column(confounds, "framewise_displacement", n_vols)
    dvars_name = "std_dvars" if "std_dvars" in confounds else "dvars"
    dvars = _column(confounds, dvars_name, n_vols)
    with new_figure(11, 6.2) as figure:
        top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[1, 1, 3.4])
        spikes = int(np.nansum(fd > fd_threshold_mm))
        _trace(
            top,
            times,
            fd,
            PALETTE[1],
            "FD (mm)",
            _note(fd, f"mean {_mean(fd):.2f} mm, {spikes} of {n_vols} volumes above the threshold"),
        )
        top.axhline(fd_threshold_mm, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        top.set_ylim(0, max(float(np.nanmax(fd, initial=0)) * 1.08, 1.6 * fd_threshold_mm))
        label = "std. DVARS" if dvars_name == "std_dvars" else "DVARS"
        _trace(middle, times, dvars, PALETTE[0], label, _note(dvars, f"mean {_mean(dvars):.3g}"))
        extent = (0, n_vols * tr, len(carpet), 0)
        image = bottom.imshow(
            carpet, aspect="auto", cmap="gray", vmin=-2, vmax=2, extent=extent, interpolation="nearest"
        )
        bottom.set(xlabel="time (s)", yticks=[], xlim=(0, n_vols * tr))
        bottom.set_ylabel("voxels")
        for name, (low, high), color in zip(group_names, edges, PALETTE[2:] + PALETTE, strict=False):
            bottom.axhspan(low, high, xmin=-0.012, xmax=-0.004, color=color, clip_on=False)
            if high - low > len(carpet) / 40:
                bottom.text(-0.016, (low + high) / 2, name, ha="right", va="center", fontsize=9,
                            transform=bottom.get_yaxis_transform())  # fmt: skip
                bottom.set_ylabel("")
        bar = figure.colorbar(image, ax=bottom, shrink=0.7, aspect=18, pad=0.01)
        bar.set_label("voxel-wise z-score")
        bar.outline.set_visible(False)  # type: ignore[operator]
        motion = _note(fd, f"mean {_mean(fd):.2f} mm")
        text = f"Framewise displacement ({motion}), DVARS and {values.shape[1]} voxels in {n_vols} volumes."
        return save_figure(figure, path, title, text, span=bottom)


def plot_predictions(table: pd.DataFrame, path: Path, *, title: str, unit: str = "") -> Path:
    """Plot the prediction of each clip and the spread over clips.

    Parameters
    ----------
    table : pandas.DataFrame
        Predictions table: rows ``mean`` and clips; ``onset`` and ``duration`` (s); ``p_<label>`` columns, or
        ``value``.
    path : pathlib.Path
        The SVG file to write.
    title : str
        Title of the figure, for its text alternative.
    unit : str
        Unit of ``value``.
    """
    clips, mean = split_clips(table)
    labels = [column.removeprefix("p_") for column in table.columns if column.startswith("p_")]
    if labels:
        series = {label: clips[f"p_{label}"].to_numpy(float) for label in labels}
        means = {label: float(mean[f"p_{label}"]) for label in labels}
        axis, limits = "probability", PROBABILITIES
    else:
        series, means = {"value": clips["value"].to_numpy(float)}, {"value": float(mean["value"])}
        axis = f"value ({unit})" if unit else "value"
        spread = np.concatenate([series["value"], [means["value"]]])
        margin = 0.1 * float(np.ptp(spread)) or 1.0
        limits = (float(spread.min()) - margin, float(spread.max()) + margin)
    order = sorted(series, key=lambda label: -means[label]) if labels else list(series)
    middles = (clips["onset"] + clips["duration"] / 2).to_numpy(float)
    with new_figure(11, 1.6 + max(1.4, 0.42 * len(series))) as figure:
        spread_axes, time_axes = figure.subplots(1, 2, width_ratios=[1, 1.5])
        _spread(spread_axes, {label: series[label] for label in order}, means, axis, limits)
        for label, color, marker in zip(order[: len(PALETTE)], PALETTE, MARKERS, strict=False):
            time_axes.plot(middles, series[label], color=color, marker=marker, markersize=4.5, linewidth=1.4)
            time_axes.axhline(means[label], color=color, linewidth=0.7, linestyle=(0, (4, 3)))
        time_axes.set(xlabel="time (s)", ylim=limits, title="Predictions over time")
        time_axes.grid(axis="y", linewidth=0.6)
        best = order[0]
        text = (
            f"{best}: mean {means[best]:.2f} over {len(clips)} clips, range {series[best].min():.2f} "
            f"to {series[best].max():.2f}." if len(clips) else f"{best}: {means[best]:.2f}."
        )  # fmt: skip
        return save_figure(figure, path, title, text)


def plot_embeddings(table: pd.DataFrame, path: Path, *, title: str) -> Path:
    """Plot the embeddings of the clips, by normalisation, and the similarity between clips, without their mean.

    Parameters
    ----------
    table : pandas.DataFrame
        Embeddings table: ``normalisation``, ``clip`` (``mean`` or a number), ``onset``, and features ``e0000``, ….
    path : pathlib.Path
        The SVG file to write.
    title : str
        Title of the figure, for its text alternative.
    """
    columns = [column for column in table.columns if column.startswith("e") and column[1:].isdigit()]
    names = list(dict.fromkeys(table["normalisation"]))
    parts = {name: split_clips(table[table["normalisation"] == name])[0] for name in names}
    with new_figure(11, 0.6 + 2.5 * len(names)) as figure:
        axes = np.atleast_2d(figure.subplots(len(names), 2, width_ratios=[3.2, 1]))
        for (heat, similarity), name in zip(axes, names, strict=True):
            values = parts[name][columns].to_numpy(float)
            centred = values - values.mean(axis=0)
            deviation = values.std(axis=0)
            scaled = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 1e-12)
            shown = _shrink(scaled, MAX_ROWS, MAX_COLUMNS)
            extent = (0, len(columns), len(values), 0)
            image = heat.imshow(
                shown, aspect="auto", cmap="PuOr_r", vmin=-2.5, vmax=2.5, extent=extent, interpolation="nearest"
            )
            heat.set(title=f"{name} normalisation", ylabel="clip", xlabel="feature")
            bar = figure.colorbar(image, ax=heat, aspect=12, pad=0.01)
            bar.set_label("z-score over clips")
            bar.outline.set_visible(False)  # type: ignore[operator]
            _plot_similarity(figure, similarity, values)
        text = f"{len(columns)} features of {len(parts[names[0]])} clips; normalisations: {' and '.join(names)}."
        return save_figure(figure, path, title, text)


def split_clips(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Split a table into the rows of the clips and the row of their mean."""
    is_mean = table["clip"].astype(str) == "mean"
    return table[~is_mean], table[is_mean].iloc[0]


def _carpet(
    values: np.ndarray, groups: np.ndarray | None, n_groups: int
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Return detrended z-scores, (rows, columns), sorted by group, and the row range of each group."""
    if groups is None:
        groups, n_groups = np.zeros(values.shape[1], int), 1
    chosen = np.arange(values.shape[1])[:: max(1, -(-values.shape[1] // 20_000))]
    series = np.asarray(values[:, chosen], np.float32)
    trend = np.stack([np.ones(len(series)), np.linspace(-1, 1, len(series))], axis=1)  # (T, 2)
    series = series - trend @ np.linalg.lstsq(trend, series, rcond=None)[0]
    deviation = series.std(axis=0)
    alive = deviation > 1e-6 * max(float(deviation.max()), 1e-30)
    series = np.divide(series, deviation, out=np.zeros_like(series), where=alive)
    rows: list[np.ndarray] = []
    edges: list[tuple[float, float]] = []
    for group in range(n_groups):
        members = series[:, groups[chosen] == group].T
        share = max(1, round(MAX_ROWS * len(members) / len(chosen))) if len(members) else 0
        part = _shrink(members, share, MAX_COLUMNS) if share else members[:0]
        start = sum(len(row) for row in rows)
        edges.append((float(start), float(start + len(part))))
        rows.append(part)
    return np.concatenate([part for part in rows if len(part)]), edges


def _shrink(values: np.ndarray, n_rows: int, n_columns: int) -> np.ndarray:
    """Average neighbours down to a maximum number of rows and columns."""
    for axis, maximum in enumerate((n_rows, n_columns)):
        if values.shape[axis] > maximum:
            pieces = np.array_split(values, maximum, axis=axis)
            values = np.stack([piece.mean(axis=axis) for piece in pieces], axis=axis)
    return values


def _column(confounds: pd.DataFrame, name: str, n_vols: int) -> np.ndarray:
    """Return a confound for the last volumes of the run (dummy volumes excluded); NaN if missing."""
    if name not in confounds:
        return np.full(n_vols, np.nan)
    values = confounds[name].to_numpy(float)[-n_vols:]
    return np.concatenate([np.full(n_vols - len(values), np.nan), values])


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _note(values: np.ndarray, text: str) -> str:
    """Return the text, or ``not available`` without finite values."""
    return text if np.isfinite(values).any() else "not available"


def _trace(axes: Axes, times: np.ndarray, values: np.ndarray, color: str, label: str, note: str) -> None:
    axes.plot(times, values, color=color, linewidth=1.1)
    axes.set_ylabel(label)
    axes.margins(x=0)
    axes.tick_params(labelbottom=False)
    axes.text(0.995, 1.02, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=9, color=MUTED)


def _spread(
    axes: Axes, series: Mapping[str, np.ndarray], means: Mapping[str, float], label: str, limits: tuple[float, float]
) -> None:
    """Plot one row per label: clips as markers, mean as a line; bars for probabilities, a band of ±1 SD for a value."""
    jitter = np.random.default_rng(0)
    for row, (name, values) in enumerate(series.items()):
        color = PALETTE[row % len(PALETTE)]
        if limits == PROBABILITIES:
            axes.barh(row, means[name], height=0.62, color=color, alpha=0.28, linewidth=0)
        elif len(values) > 1:
            band = means[name] + np.array([-1, 1]) * values.std(ddof=1)
            axes.fill_betweenx([row - 0.3, row + 0.3], *band, color=color, alpha=0.2, linewidth=0)
        offsets = row + jitter.uniform(-0.2, 0.2, len(values))
        axes.plot(
            values, offsets, linestyle="", marker=MARKERS[row % len(MARKERS)], markersize=5, color=color, alpha=0.8
        )
        axes.plot([means[name]] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=2)
        axes.text(1.02, row, f"{means[name]:.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=11)
    axes.set(xlabel=label, xlim=limits, title="Clips (markers) and mean (line)")
    axes.set_yticks(range(len(series)), list(series))
    axes.set_ylim(len(series) - 0.45, -0.55)
    axes.grid(axis="x", linewidth=0.6, color=HAIRLINE)
    axes.set_axisbelow(True)


def _plot_similarity(figure: Any, axes: Axes, values: np.ndarray) -> None:
    """Plot the similarity of the deviations of each pair of clips from the mean of the run.

    The mean, which all clips share, would make all of them alike.
    """
    values = _shrink(values - values.mean(axis=0), 200, values.shape[1])
    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, np.nan)
    limit = float(np.nanmax(np.abs(similarity), initial=0.1))
    image = axes.imshow(similarity, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set(title="Similarity", xlabel="clip", ylabel="clip")
    bar = figure.colorbar(image, ax=axes, aspect=12, pad=0.02)
    bar.outline.set_visible(False)
