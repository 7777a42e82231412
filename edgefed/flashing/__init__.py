"""Putting the agent on a board: what is written, and the ways to write it."""
