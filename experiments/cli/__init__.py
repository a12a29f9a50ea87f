"""The command line: flags, their limits, one-line errors."""
