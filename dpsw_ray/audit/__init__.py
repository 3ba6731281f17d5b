"""Attacks on the product itself: what an adversary can measure, against what is promised."""
