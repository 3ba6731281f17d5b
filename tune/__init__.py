"""Sweeps under a fixed epsilon, on top of `dpsw_ray`; `dpsw_ray` never imports this package."""
