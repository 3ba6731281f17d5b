"""`python -m tune`: the same as `dpsw-tune`."""

from tune.cli import main

if __name__ == "__main__":
    main()
