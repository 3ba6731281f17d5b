"""DPSWflow-r: a sequence of noisy slices, with fresh directions in every round, and a flow that follows them."""
