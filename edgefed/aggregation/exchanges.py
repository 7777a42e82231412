"""Which code does which method's part of the aggregator: a plain dictionary."""

from __future__ import annotations

from collections.abc import Mapping

from edgefed.aggregation.exchange import ExchangeMaker
from edgefed.aggregation.lora_exchange import LoraExchange

__all__ = ["EXCHANGES"]

EXCHANGES: Mapping[str, ExchangeMaker] = {"lora": LoraExchange}
"""By the tag of `edgefed.protocol.tasks.Method`."""
