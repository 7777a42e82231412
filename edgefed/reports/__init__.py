"""What happened, for people and machines: records of a run as a page, tables and metrics."""
