"""How messages travel: one interface, a broker behind it."""
