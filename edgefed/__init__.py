"""Federated fine-tuning of small language models on the edge devices that hold the data, over MQTT."""

__version__ = "0.1.0"
