"""THE DOOR: what is released, and how it is asked for."""
