"""The participant level on a cluster: shards of participants as array jobs, their states, resubmission, progress page.

What belongs here: lists of participants, job scripts, calls of job schedulers, and reading of how far participants are.
Not here: processing itself, which the jobs do with the command ``neurostorm``.
"""
