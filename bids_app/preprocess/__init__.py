"""Preprocessing of raw runs, and ingestion of derivatives of other pipelines.

`io` reads images, `registration` aligns them, `sdc` corrects susceptibility distortion, `ingest` reads derivatives.
The package is independent of models and of the workflow.
"""
