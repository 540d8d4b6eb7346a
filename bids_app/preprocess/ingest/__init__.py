"""Derivatives of other pipelines (fMRIPrep, XCP-D, HCP) as a `PreprocessedRun`.

What they hold is read and checked; nothing is estimated anew.
"""
