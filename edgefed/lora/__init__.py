"""Low-rank adapters: the value type, exact sums of them, and the files that hold them."""
