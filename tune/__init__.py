"""Sweeps under a fixed epsilon."""
