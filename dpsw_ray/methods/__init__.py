"""The systems: a folder each, and a line in the registry."""
