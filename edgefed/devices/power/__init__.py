"""Power sensors: one kind per file, each with what it sees and what it does not."""
