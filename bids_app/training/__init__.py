"""``neurostorm-train``: encoders and adapters from prepared clips.

store.py      scans on the model grid, normalised, as int8 in a folder that several processes may fill
data.py       which scans and labels: from the app's outputs, from tables; splits by participant; batches
loop.py       the one training loop: AdamW, warm-up and cosine, a log, a state to resume from
pretrain.py   masked autoencoding        adapt.py   prompts, norms, heads for a question
simulated.py  scans of the phantom straight on the model grid, for the demonstration model and for tests
"""
