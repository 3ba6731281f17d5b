"""What is promised and what it costs: relations, events, accountants, calibration, noise, ledger."""
