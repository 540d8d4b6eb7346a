"""Ingestion of derivatives of other pipelines (fMRIPrep, XCP-D, HCP, UK Biobank) as a `PreprocessedRun`."""
