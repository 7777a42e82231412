"""How updates of different ranks become the next global adapter: one published method per file."""
