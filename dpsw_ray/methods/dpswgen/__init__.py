"""DPSWgen: noisy projections in batches, and a generator that is trained on them."""
