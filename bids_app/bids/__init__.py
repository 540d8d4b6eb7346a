"""BIDS: files in, files out."""
