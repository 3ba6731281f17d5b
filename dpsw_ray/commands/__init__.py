"""The commands of `dpsw`, a module for each family; `dpsw_ray.cli` puts them together."""
