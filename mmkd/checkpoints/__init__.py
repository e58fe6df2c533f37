"""Checkpoints are data: read without running what they name, verified, and downloaded within bounds."""
