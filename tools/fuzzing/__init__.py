"""Throws damaged and hostile input at everything that reads bytes from outside."""
