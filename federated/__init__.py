"""User-level simulation, on top of `dpsw_ray`; `dpsw_ray` never imports this package."""
