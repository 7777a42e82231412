"""Looks over one board: what the agent needs there, one check per module, and what to do about each finding."""
