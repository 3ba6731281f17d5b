"""`python -m federated CONFIG`."""

from federated.cli import main

if __name__ == "__main__":
    main()
