"""`python -m dpsw_ray`: the same as `dpsw`."""

from dpsw_ray.cli import main

if __name__ == "__main__":
    main()
