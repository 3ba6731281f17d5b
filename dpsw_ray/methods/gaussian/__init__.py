"""Gaussian: noisy first and second moments of every class, and a Gaussian that is fitted to them."""
