"""NeuroSTORM as a BIDS App: from a scanner's BOLD runs to embeddings, predictions and a report."""

__version__ = "0.1.0"
