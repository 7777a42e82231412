"""Whole fleets on one machine: the real programs as real processes."""
