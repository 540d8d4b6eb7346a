"""From datasets to batches of clips: sources, the clip store, labels, splits, the loader."""
