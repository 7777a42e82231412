"""Makes a Debian package of the agent: the files that flashing writes, for people who manage boards with apt."""
