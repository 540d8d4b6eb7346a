"""A simulated BIDS dataset with known truth: ``neurostorm-phantom``, and its parts for training and tests.

From template to files, the modules are `tissues` (what a head is made of), `anatomy` (one person's shape), `protocol`
(scanner settings), `motion`, `distortion`, `activity` (states, networks, physiology), `bold`, `t1w` and `fieldmaps`
(scans in memory), `dataset` and `truth` (files); `grid_scans` and `cohorts` simulate directly on the model grid.
"""
