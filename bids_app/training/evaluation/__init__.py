"""How well an encoder predicts a task in new participants: metrics, baselines, the report."""
