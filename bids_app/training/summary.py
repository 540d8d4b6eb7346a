"""Page on a training run, ``summary.html``, from its logs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_app.reports.figures.curves import Curve, plot_curves
from bids_app.reports.training import Picture, TrainingPage, write_training_page
from bids_app.training.logs import EPOCHS, SPEED, STEPS, read_table

SUMMARY = "summary.html"
HEADINGS = {
    "epoch": "Epoch", "loss": "Loss", "rate": "Learning rate", "seconds": "Time, s", "clips_per_s": "Clips per second",
    "waiting": "Waiting for data, share", "held_out": "Held-out loss",
}  # fmt: skip
Table = Mapping[str, list[float]]


def write_summary(folder: Path, settings: Mapping[str, Any], error: str = "") -> Path:
    """Write the page of a training run from its logs.

    Parameters
    ----------
    folder : Path
        Folder of the logs.
    settings : mapping
        Shown as a table.
    error : str
        Why the run was stopped.
    """
    steps, speed, epochs = (read_table(folder / name) for name in (STEPS, SPEED, EPOCHS))
    table = [[HEADINGS.get(name, name) for name in epochs]] if epochs else []
    table += [[f"{value:.4g}" for value in row] for row in zip(*epochs.values(), strict=True)]
    page = TrainingPage(
        name=folder.stem,
        counts=_counts(steps, speed, epochs),
        pictures=_pictures(steps, speed, epochs) if steps else (),
        epochs=table,
        settings=[(name, str(value)) for name, value in settings.items()],
        error=error,
    )
    return write_training_page(folder / SUMMARY, page)


def _counts(steps: Table, speed: Table, epochs: Table) -> list[tuple[str, str]]:
    found = [("Steps", str(len(steps.get("step", ()))))]
    found += [("Epochs", str(len(epochs["epoch"])))] if epochs else []
    found += [("Last loss", f"{steps['loss'][-1]:.4g}")] if steps else []
    if "held_out" in epochs:
        found.append(("Lowest held-out loss", f"{min(epochs['held_out']):.4g}"))
    if speed:
        seconds = max(sum(speed["seconds"]), 1e-9)
        found.append(("Clips per second", f"{sum(speed['clips']) / seconds:.3g}"))
        found.append(("Time waiting for data", f"{sum(speed['waiting']) / seconds:.1%}"))
    return found


def _pictures(steps: Table, speed: Table, epochs: Table) -> list[Picture]:
    x = steps["step"]
    loss = [Curve("training", x, steps["loss"])]
    if "held_out" in epochs:
        ends = [number * steps["epoch"].count(1) for number in epochs["epoch"]]  # all epochs have as many steps
        loss.append(Curve("held out", ends, epochs["held_out"], has_points=True))
    found = [
        (loss, "Loss", "Mean of the clips of each step; held out: participants that are not trained with"),
        ([Curve("", x, steps["rate"])], "Learning rate", "Of each step"),
        ([Curve("", x, steps["norm"])], "Norm of the gradients", "Before they are clipped"),
    ]
    pictures = [
        Picture(plot_curves(curves, title, ("step", title.lower())), title, f"{text}.") for curves, title, text in found
    ]
    if speed:
        per_step = [clips / max(s, 1e-9) for clips, s in zip(speed["clips"], speed["seconds"], strict=True)]
        curve = Curve("", speed["step"], per_step)
        text = "Of all processes, in the steps; validation and saving are not counted."
        pictures.append(
            Picture(plot_curves([curve], "Clips per second", ("step", "clips per second")), "Clips per second", text)
        )
    return pictures
