"""THE DOOR: what is released, its file format, and the free clean-up of its noise."""

from dpsw_ray.release.plan import ReleasePlan
from dpsw_ray.release.release import Release

__all__ = ["Release", "ReleasePlan"]
