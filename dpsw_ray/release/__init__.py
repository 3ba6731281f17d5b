"""THE DOOR: what is released, its file format, and the free clean-up of its noise."""

from dpsw_ray.release.plan import HistogramPlan, ReleasePlan, SampledHistogramPlan
from dpsw_ray.release.release import Release
from dpsw_ray.release.rows import RowPlan

__all__ = ["HistogramPlan", "Release", "ReleasePlan", "RowPlan", "SampledHistogramPlan"]
