"""Faces in photographs, sources of people's pictures, and their splits."""
