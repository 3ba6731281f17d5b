"""Synthetic data with a privacy guarantee that holds.

Two wings and one door. `dpsw_ray.private` sees records and ends in a `dpsw_ray.release.Release`, which is
already differentially private; `dpsw_ray.flow` turns a release into particles and never sees a record.
"""

__version__ = "0.1.0"
