"""The configs that ship with the package, as `dpsw_ray.configs`."""
