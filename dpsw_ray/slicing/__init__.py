"""Directions, bin grids, exact projections, and the kernels that bin records and move particles."""
