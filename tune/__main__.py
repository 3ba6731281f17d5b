"""`python -m tune`: the same as `dpsw tune`."""

from dpsw_ray.cli import main

if __name__ == "__main__":
    main("tune")
