"""`python -m federated`: the same as `dpsw federated`."""

from dpsw_ray.cli import main

if __name__ == "__main__":
    main("federated")
