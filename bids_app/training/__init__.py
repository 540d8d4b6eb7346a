"""``neurostorm-train``: encoders and adapters from prepared clips.

sources.py    series of derivatives, found and brought into a store
store.py      scans on the model grid, normalised, as int8 in a folder that several processes may fill
labels.py     what is asked of scans or of stretches of them: tables, sessions, events
splits.py     who trains and who tests, by participant or family, in files
data.py       batches of clips, the same however many processes share them
augment.py    changes to clips that leave their meaning as it is
loop.py       the one training loop: AdamW, warm-up and cosine, logs, a state to resume from, Lightning Fabric
memory.py     what training frees is kept for the next step
pretrain.py   masked autoencoding        adapt.py   prompts, norms, heads for a question
simulated.py  scans of the phantom straight on the model grid, for the demonstration model and for tests
"""
