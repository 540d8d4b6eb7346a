"""Susceptibility distortion correction: estimating the field, and applying its displacement."""
