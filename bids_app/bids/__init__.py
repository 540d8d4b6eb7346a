"""BIDS datasets and derivatives: layout, queries, sidecars, names, and the writing of whole files.

Files and metadata only: no tensors, no image processing, no models.
"""
