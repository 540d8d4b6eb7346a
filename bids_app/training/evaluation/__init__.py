"""How well an encoder predicts a task in participants that it has not seen: folds, baselines, metrics, the report.

What is fitted here is thrown away; adapters that are kept come from `bids_app.training.adapt`.
"""
