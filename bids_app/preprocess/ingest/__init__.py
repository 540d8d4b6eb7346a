"""Ingestion of derivatives of other pipelines (fMRIPrep, XCP-D, HCP) as a `PreprocessedRun`."""
