"""BIDS datasets and derivatives: layout, queries, sidecars, file names and writing of outputs.

Files and metadata only: no tensors, no image processing, no models.
"""
