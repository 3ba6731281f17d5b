"""One run from data to report: its order, its folder, and what it tells."""
