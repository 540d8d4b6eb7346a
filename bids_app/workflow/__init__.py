"""The participant level: the method as one nipype workflow, the checks before it and the log after it.

The order of steps and what runs where; the computing itself is in `preprocess`, `adapters` and `outputs`.
"""
