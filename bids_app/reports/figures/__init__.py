"""Figures as SVG: brain slices, charts of a run, charts of a group. Arrays in, files out."""
