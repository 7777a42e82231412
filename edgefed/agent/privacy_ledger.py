"""The privacy that a device has spent, on disk before anything that cost it leaves, and the limits that it keeps to.

::

    <state>/privacy.json     by run: steps of DP-SGD, by noise and sampling rate

It outlives the runs: whoever sees what several federations were sent sees it together. A round is charged just before
its update is made ready to leave, so a kill in between costs budget and never privacy. Nothing is ever taken back.

A ledger that this release cannot read, be it damaged or of a newer one, is not written over, and the device takes part
in nothing. It stays in the fleet meanwhile: whoever runs that sees why, and can give it the newer release back.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from edgefed.agent.options import PrivacyLimits
from edgefed.agent.plan import CannotTakePart
from edgefed.files import replace_file
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.records import RoundRecord
from edgefed.training.privacy_budget import EXAMPLE_ASSUMPTIONS, PrivacyCost, PrivacySpent, SpentSteps

__all__ = ["PrivacyLedger"]

_log = logging.getLogger(__name__)


class PrivacyLedger:
    """What was spent, and whether more may be.

    Args:
        limits: the owner's.
        path: of the file.
    """

    def __init__(self, limits: PrivacyLimits, path: Path) -> None:
        self._limits = limits
        self._path = path
        self._runs: dict[str, list[SpentSteps]] = {}
        self._unreadable = ""  # why nobody knows what was spent
        try:
            if path.exists():
                self._runs = msgspec.json.decode(path.read_bytes(), type=dict[str, list[SpentSteps]])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._unreadable = (  # its name only: it is shown to the fleet
                f"{path.name} in this device's state cannot be read: {error}. It says how much privacy the device has "
                "spent: if a newer release has written it, install that one; else put a copy back, or remove it if the "
                "data has never been trained on with a privacy limit; and start the agent anew"
            )
            _log.error("%s: this device takes part in nothing: %s", path.parent, self._unreadable)

    def spent(self, run: str) -> PrivacySpent:
        """Returns what was spent, for the worker to count with.

        Raises:
            CannotTakePart: nobody knows, because the ledger could not be read.
        """
        if self._unreadable:
            raise CannotTakePart(self._unreadable)
        others = [steps for other, spent in self._runs.items() if other != run for steps in spent]
        return PrivacySpent(this_run=self._runs.get(run, []), other_runs=others, owners_delta=self._limits.delta)

    def check(self, announced: RoundOpen, cost: PrivacyCost | None) -> None:
        """Lets a round pass that keeps to the federation's limit and to the owner's.

        Raises:
            CannotTakePart: it does not, or the owner has set a limit and the federation trains without noise.
        """
        if announced.kind != "train":
            return
        owners = self._limits.max_epsilon
        if cost is None:
            if owners is not None:
                raise CannotTakePart(
                    f"the owner limits ε to {owners:g}, and this federation trains without noise: its ε has no bound"
                )
            return
        federations = announced.privacy.max_epsilon
        if federations is not None and cost.run_epsilon > federations:
            raise CannotTakePart(
                f"the privacy budget has run out: with this round ε would be {cost.run_epsilon:.3g} "
                f"(δ = {announced.privacy.delta:g}), and the federation allows {federations:g}"
            )
        if owners is not None and cost.device_epsilon > owners:
            raise CannotTakePart(
                f"the privacy budget has run out: with this round ε of all that this device has sent would be "
                f"{cost.device_epsilon:.3g} (δ = {self._limits.delta:g}), and the owner allows {owners:g}"
            )

    def charge(self, run: str, cost: PrivacyCost) -> None:
        """Counts a round as spent; survives a power cut once this returns.

        Raises:
            CannotTakePart: there is a ledger that could not be read, and it is left as it is.
        """
        if self._unreadable:
            raise CannotTakePart(self._unreadable)
        mine, more = list(self._runs.get(run, [])), cost.steps
        for at, known in enumerate(mine):
            if (known.noise_multiplier, known.sample_rate) == (more.noise_multiplier, more.sample_rate):
                mine[at] = msgspec.structs.replace(known, steps=known.steps + more.steps)
                break
        else:
            mine.append(more)
        runs = {**self._runs, run: mine}
        replace_file(self._path, [msgspec.json.encode(runs)])
        self._runs = runs

    @staticmethod
    def described(record: RoundRecord, announced: RoundOpen, cost: PrivacyCost | None) -> RoundRecord:
        """Returns the record with ε so far, this round included, and what it stands on."""
        if cost is None:
            return record
        return msgspec.structs.replace(
            record, epsilon=cost.run_epsilon, delta=announced.privacy.delta, privacy_assumptions=EXAMPLE_ASSUMPTIONS
        )
