"""The aggregation methods by name."""

from __future__ import annotations

from collections.abc import Mapping

from edgefed.aggregation.delta import DELTA
from edgefed.aggregation.fedit import FEDIT
from edgefed.aggregation.flexlora import FLEXLORA
from edgefed.aggregation.flora import FLORA
from edgefed.aggregation.frozen_global import FROZEN_GLOBAL
from edgefed.aggregation.hetlora import HETLORA
from edgefed.aggregation.method import Aggregation

__all__ = ["METHODS"]

METHODS: Mapping[str, Aggregation] = {
    method.name: method for method in (FLEXLORA, DELTA, FROZEN_GLOBAL, HETLORA, FLORA, FEDIT)
}
