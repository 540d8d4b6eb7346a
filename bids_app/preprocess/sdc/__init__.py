"""Susceptibility distortion correction along the phase-encoding axis: choice of method, field, displacement."""
