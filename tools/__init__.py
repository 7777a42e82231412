"""Programs and helpers for the people who work on edgefed; nothing of it is installed."""
