"""The participant level: the method as one nipype workflow, the checks before it and the log after it."""
