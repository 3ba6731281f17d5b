"""Attacks on our own mechanisms: lower bounds on what they leak, held against what the accountants claim."""
