"""Quality checks of boldref registrations, to the T1w or directly to the template."""

from __future__ import annotations

MIN_STANDS_OUT = 0.02
MIN_DICE = 0.80
MIN_BRAIN_SEEN = 0.35
BRAIN_ML = (700.0, 2300.0)
SCALES = (0.6, 1.6)


def failed_checks(quality: dict[str, float]) -> list[str]:
    """Return the quality checks that a boldref registration fails, as phrases for an error message.

    Parameters
    ----------
    quality : dict
        ``coreg_stands_out``, ``coreg_dice``, ``coreg_brain_seen``; without a T1w also ``norm_scale_min``,
        ``norm_scale_max`` and ``norm_brain_ml``.
    """
    failures = []
    if quality["coreg_stands_out"] < MIN_STANDS_OUT:
        failures.append(
            f"similarity is only {quality['coreg_stands_out']:.1%} higher than at 8 mm or 8 degrees away "
            f"(at least {MIN_STANDS_OUT:.0%} are required)"
        )
    if quality["coreg_dice"] < MIN_DICE:
        failures.append(f"Dice overlap of brain masks is {quality['coreg_dice']:.2f}, below {MIN_DICE}")
    if quality["coreg_brain_seen"] < MIN_BRAIN_SEEN:
        failures.append(
            f"only {quality['coreg_brain_seen']:.0%} of the brain is in the field of view, below {MIN_BRAIN_SEEN:.0%}"
        )
    if not SCALES[0] <= quality.get("norm_scale_min", 1.0) <= quality.get("norm_scale_max", 1.0) <= SCALES[1]:
        failures.append(
            f"scaled by {quality['norm_scale_min']:.2f} to {quality['norm_scale_max']:.2f}, outside {SCALES[0]} to "
            f"{SCALES[1]}"
        )
    if not BRAIN_ML[0] <= quality.get("norm_brain_ml", 1500.0) <= BRAIN_ML[1]:
        failures.append(
            f"brain volume is {quality['norm_brain_ml']:.0f} mL, outside {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f} mL"
        )
    return failures
