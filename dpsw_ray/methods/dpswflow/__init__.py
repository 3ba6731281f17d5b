"""DPSWflow: noisy projections of every record, and a flow that follows them."""
