"""Adapters, which predict a task from an encoder's features: files, predictions, calibration and attribution.

This package handles arrays and adapter files only; it knows neither BIDS datasets nor output files.
"""
