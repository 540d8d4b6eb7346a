"""Cross-validation of an encoder: folds, baselines, metrics and the report.

Models fitted here are discarded; `bids_app.training.adapt` trains the adapters that are saved.
"""
