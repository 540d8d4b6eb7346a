"""The encoder, its checkpoints, heads and kernels; `bids_app.model.api.load_model` loads a model.

This package handles tensors and checkpoint files only; it knows neither BIDS nor images nor preprocessing.
"""
