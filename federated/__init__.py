"""Simulated populations, whose users are what is protected."""
