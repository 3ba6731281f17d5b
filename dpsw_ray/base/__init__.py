"""What every floor stands on: errors, files, paths, numbers as text, progress."""
