"""Base classes, in-memory datasets, samplers, splits, and the reading of image and CSV files."""
