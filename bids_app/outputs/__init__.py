"""Output files: their names, the schema of sidecars and tables, and their writers.

Nothing is estimated here; results arrive as dataclasses and are written to files.
"""
