"""Which server optimizer and which noise a federation uses, as `federation.toml` says it.

The steps are in `server_optimizers`, the noise in `client_privacy`. This stands apart from the arithmetic so that
configurations can be read where numpy is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefed.aggregation.gaussian_accounting import gaussian_epsilon
from edgefed.errors import ConfigError

__all__ = ["CLIENT_ASSUMPTIONS", "ClientPrivacy", "OptimizerName", "ServerOptimizer"]

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


CLIENT_ASSUMPTIONS = (
    "for all that one device contributes, replaced by no change at all, against whoever sees the global adapters; the "
    "aggregator is trusted; noise is exact, floating point and all; counted for the device that is in the most sums, "
    "nothing being gained from selection. Not covered: who takes part, and what devices report beside their updates, "
    "evaluated losses and the choice of the best round included"
)
"""What ε of a federation stands on, in words: it is kept and shown beside the number."""


class ClientPrivacy(msgspec.Struct, frozen=True, kw_only=True):
    """Differential privacy of whole devices in what the aggregator makes of them.

    Every device's change of the global adapter is scaled down to a Frobenius norm, over all matrices together; all
    devices weigh the same, and Gaussian noise is added to the mean of each whole matrix before it is cut to the
    server's rank, which then costs nothing more (as in arXiv 1710.06963, in the space of products). The noise is of
    full rank: it takes many devices to see anything through it.

    Attributes:
        noise_multiplier: standard deviation of the noise on the sum, over `clip_norm`; 0 adds none.
        clip_norm: a device's change is scaled down to this norm.
        delta: δ of the guarantee; well below one over the number of devices.
        max_epsilon: the federation ends before ε would pass this; without it ε is only counted.
    """

    noise_multiplier: Annotated[float, Meta(ge=0)] = 0.0
    clip_norm: Annotated[float, Meta(gt=0)] = 1.0
    delta: Annotated[float, Meta(gt=0, lt=1)] = 1e-5
    max_epsilon: Annotated[float, Meta(gt=0)] | None = None

    def __post_init__(self) -> None:
        """Refuses a budget of something that is not counted, or that does not last for a single round."""
        if self.max_epsilon is None:
            return
        if not self.noise_multiplier:
            raise ValueError("max_epsilon is given, and noise_multiplier is 0: without noise there is no ε")
        if (first := self.epsilon(1)) > self.max_epsilon:
            raise ValueError(
                f"max_epsilon is {self.max_epsilon:g}, and one round costs {first:.3g}: raise noise_multiplier"
            )

    def epsilon(self, sums: int) -> float:
        """Returns ε for a device that was in so many sums."""
        return gaussian_epsilon(self.noise_multiplier, sums, self.delta) if self.noise_multiplier else inf
