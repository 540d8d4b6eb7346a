"""Pre-training, adaptation, evaluation and calibration of encoders and adapters: ``neurostorm-train``.

`data` turns datasets into batches of clips, `evaluation` measures predictions; nothing here is used by the participant
or the group level.
"""
