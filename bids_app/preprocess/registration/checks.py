"""The gates that an alignment of a boldref has to pass, on either path to the template."""

from __future__ import annotations

MIN_STANDS_OUT = 0.02
MIN_DICE = 0.80
MIN_BRAIN_SEEN = 0.35
BRAIN_ML = (700.0, 2300.0)
SCALES = (0.6, 1.6)


def failed_checks(quality: dict[str, float]) -> list[str]:
    """Which gates an alignment of a boldref does not pass, in words.

    Parameters
    ----------
    quality : dict
        ``coreg_stands_out``, ``coreg_dice``, ``coreg_brain_seen``; on the direct path also the scales of the affine
        part and the volume of the brain.
    """
    failures = []
    if quality["coreg_stands_out"] < MIN_STANDS_OUT:
        failures.append(
            f"it is hardly more similar than 8 mm or 8 degrees beside ({quality['coreg_stands_out']:.1%} better)"
        )
    if quality["coreg_dice"] < MIN_DICE:
        failures.append(f"brain masks overlap by {quality['coreg_dice']:.2f}, below {MIN_DICE}")
    if quality["coreg_brain_seen"] < MIN_BRAIN_SEEN:
        failures.append(f"only {quality['coreg_brain_seen']:.0%} of the brain lies in the field of view")
    if not SCALES[0] <= quality.get("norm_scale_min", 1.0) <= quality.get("norm_scale_max", 1.0) <= SCALES[1]:
        failures.append(f"scaled by {quality['norm_scale_min']:.2f} to {quality['norm_scale_max']:.2f}")
    if not BRAIN_ML[0] <= quality.get("norm_brain_ml", 1500.0) <= BRAIN_ML[1]:
        failures.append(f"a brain of {quality['norm_brain_ml']:.0f} mL")
    return failures
