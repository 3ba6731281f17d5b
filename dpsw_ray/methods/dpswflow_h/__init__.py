"""DPSWflow-h: noisy sliced histograms, released once, and a flow that follows them."""
