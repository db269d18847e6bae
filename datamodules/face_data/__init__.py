"""Detection of faces, published data sets of faces, and their splits."""
