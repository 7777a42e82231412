"""The aggregator: a pure round machine, a durable store, and the service that performs what the machine decides."""
