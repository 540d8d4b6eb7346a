"""Training data: sources, the clip store, labels, examples, splits, augmentation and the batch loader.

No encoder and no optimiser.
"""
