"""Simulated BIDS datasets with known ground truth: ``neurostorm-phantom``, and its parts for training and tests.

The modules, from the template to files: `tissues` (tissue maps and contrast), `head_shape` (a participant's warp and
affine), `protocol` (scanner settings), `motion`, `distortion`, `activity` (states, networks, physiology), `bold`, `t1w`
and `fieldmaps` (scans in memory), `dataset` and `truth` (files). `grid_scans` and `cohorts` simulate on the model grid.

Effects in dynamics, on the model grid: `regional_series` (time series of regions), `dynamic_scans` (heads, nuisances,
sites) and `dynamic_cohorts` (who differs in what).

Whole heads, as difficult as real ones: `brain_anatomy` and `face` (parts), `whole_head` (maps), `whole_head_t1w`,
`epi` and `artefacts` (scanners), `kinds` (named participants and protocols), and `spoiled` (scans spoiled on purpose).
"""
