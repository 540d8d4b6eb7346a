"""From datasets to batches of clips: sources, the clip store, labels, examples, splits, augmentation, the loader.

No encoder and no optimiser.
"""
