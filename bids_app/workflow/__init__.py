"""Participant level: processing graph, workflow engine, checks before the start, and logs.

The processing itself is in `preprocess`, `adapters` and `outputs`.
"""
