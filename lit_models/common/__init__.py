"""What all three packages use: argument checks, error messages, files."""
