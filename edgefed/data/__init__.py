"""Training examples: reading them, and splitting them over devices."""
