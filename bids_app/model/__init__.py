"""The encoder, its checkpoints, its heads and what runs them; `bids_app.model.api.load_model` loads one.

Tensors only: nothing of BIDS, images or preprocessing, and of files only checkpoints.
"""
