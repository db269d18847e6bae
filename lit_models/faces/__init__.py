"""The face embedder, and recognition with it."""
