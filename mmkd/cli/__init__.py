"""The command-line tools: argument parsing and one call each."""
