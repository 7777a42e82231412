"""What a device can afford: bytes and seconds of a plan, predicted, and the choice among plans. Pure."""
