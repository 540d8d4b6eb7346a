"""Pre-training, adaptation, evaluation and calibration of encoders and adapters: ``neurostorm-train``.

`data` prepares batches of clips, `evaluation` cross-validates predictions. The participant and group levels do not use
this package.
"""
