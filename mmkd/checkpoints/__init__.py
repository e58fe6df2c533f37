"""Safe checkpoints: read as data without running code, verified, downloaded within limits."""
