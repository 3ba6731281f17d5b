"""How good the synthetic records are: distances, classifiers, pictures."""
