"""PRIVATE WING: the only code that may see a private record. It ends in a `dpsw_ray.release.Release`."""
