"""What ships with the package: a tiny T5 and synthetic dialogues, both made by scripts in `tools/`."""
