"""Every figure in README and docs comes from a command here, through a file in `benchmarks/results`."""
