"""What a run is, as it is written: YAML, `--set`, and the sections that every method shares."""
