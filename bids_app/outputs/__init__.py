"""What is written about a run, and under which names: the schema of sidecars and tables, and their writers.

Nothing is estimated here; results come in as dataclasses and leave as files.
"""
