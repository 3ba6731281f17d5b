"""Noisy slices after the door: their file format, the free clean-up of their noise, and the planner."""
