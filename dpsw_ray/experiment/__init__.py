"""Many runs as one experiment: trials in folders of their own, resumed, tabulated, shown on a page."""
