"""Adapters, which turn an encoder into a prediction of a task: their files, predictions, calibration and attribution.

Arrays and adapter files only: which runs are predicted, and where predictions are written, is decided elsewhere.
"""
