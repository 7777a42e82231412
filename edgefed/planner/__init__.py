"""Choosing what a device takes on: its memory and its time predicted, the plan decided, with the reasons in words."""
