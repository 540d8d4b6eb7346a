"""Figure of data efficiency: the main metric by number of training participants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bids_app.reports.figures.style import PALETTE, new_figure, save_figure
from bids_app.training.evaluation.evaluate import Share

MARKERS = "osD^vP"


def plot_shares(path: Path, shares: Sequence[Share], metric: str, name: str, target: str) -> Path:
    """Plot a metric of all methods, with 95 % intervals, by the number of training participants, as SVG.

    Parameters
    ----------
    path : Path
    shares : sequence of Share
    metric, name : str
        Key and name of the metric.
    target : str
    """
    participants = [share.participants for share in shares]
    with new_figure(9, 4.2) as figure:
        axes = figure.add_subplot()
        for k, (key, method) in enumerate(shares[0].methods.items()):
            values = [share.methods[key].metrics[metric] for share in shares]
            limits = [share.methods[key].intervals[metric] for share in shares]
            away = [
                [value - low for value, (low, _) in zip(values, limits, strict=True)],
                [high - value for value, (_, high) in zip(values, limits, strict=True)],
            ]
            shifted = [n * 1.02 ** (k - len(shares[0].methods) / 2) for n in participants]  # intervals side by side
            axes.errorbar(
                shifted,
                values,
                yerr=away,
                color=PALETTE[k % len(PALETTE)],
                marker=MARKERS[k % len(MARKERS)],
                capsize=3,
                linewidth=2 if k == 0 else 1,
                label=method.title,
            )
        axes.set_xscale("log")
        ticks = [f"{share.participants:.0f}\n({share.share:g})" for share in shares]
        axes.set_xticks(participants, ticks)
        axes.minorticks_off()
        axes.set_xlabel("training participants (share)")
        axes.set_ylabel(name)
        axes.set_title(f"Data efficiency: {target}")
        figure.legend(loc="outside right upper", fontsize=9)
        return save_figure(
            figure,
            path,
            f"Data efficiency: {target}",
            f"{name} of {len(shares[0].methods)} methods for {len(shares)} shares of the training participants.",
        )
