"""A new release of the agent: its signed bundle, and its installation beside the old one with a way back."""
