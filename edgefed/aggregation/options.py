"""Which server optimizer a federation uses, as `federation.toml` says it; the steps are in `server_optimizers`.

It stands apart from the arithmetic so that configurations can be read where numpy is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from edgefed.errors import ConfigError

__all__ = ["OptimizerName", "ServerOptimizer"]

OptimizerName = Literal["averaging", "momentum", "adam", "adamw"]

_DEFAULT_RATES: Mapping[str, float] = {"averaging": 1.0, "momentum": 1.0, "adam": 1e-3, "adamw": 1e-3}
_USERS: Mapping[str, tuple[str, ...]] = {
    "beta1": ("momentum", "adam", "adamw"),
    "beta2": ("adam", "adamw"),
    "epsilon": ("adam", "adamw"),
    "weight_decay": ("adamw",),
}


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """Which step the server takes along the aggregate of a round.

    Attributes:
        name: averaging, momentum, adam or adamw.
        learning_rate: η > 0; where it is not given, 1 (averaging, momentum) or 0.001 (adam, adamw).
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        epsilon: added to the root of the second moment, > 0: sizes below it are not blown up.
        weight_decay: λ >= 0 of adamw.

    Raises:
        ConfigError: a value out of range, or set for an optimizer that has no use for it.
    """

    name: OptimizerName = "averaging"
    learning_rate: float | None = None
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in _DEFAULT_RATES:
            raise ConfigError(f"server optimizer {self.name!r}; allowed are {', '.join(_DEFAULT_RATES)}")
        for field, users in _USERS.items():
            default = type(self).__dataclass_fields__[field].default
            if self.name not in users and getattr(self, field) != default:
                raise ConfigError(f"{field} has no effect on {self.name}; it belongs to {', '.join(users)}")
        allowed = {
            "learning_rate": (self.rate > 0, "over 0"),
            "beta1": (0 <= self.beta1 < 1, "in [0, 1)"),
            "beta2": (0 <= self.beta2 < 1, "in [0, 1)"),
            "epsilon": (self.epsilon > 0, "over 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
        }
        for field, (holds, range_) in allowed.items():
            value = self.rate if field == "learning_rate" else getattr(self, field)
            if not (holds and isfinite(value)):
                raise ConfigError(f"{field} of the server optimizer is {value}; it must be {range_}")

    @property
    def rate(self) -> float:
        """The learning rate η, the name's default where none was given."""
        return _DEFAULT_RATES[self.name] if self.learning_rate is None else self.learning_rate
