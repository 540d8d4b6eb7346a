"""Susceptibility distortion correction: choosing a method, estimating the field, applying its displacement.

Only distortion along the phase-encoding axis; head motion and alignment come from the other modules of `preprocess`.
"""
