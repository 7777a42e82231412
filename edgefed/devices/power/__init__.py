"""Readers of power sensors, one kind per module, behind the small interface of `base`."""
