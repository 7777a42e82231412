"""`edgefed fleet`: the devices of an operator as a whole. What can be done with them is in `fleet_*` modules."""

from __future__ import annotations

__all__ = ["fleet"]


def fleet() -> None:
    """Make a fleet, say who belongs to it, and manage the devices of a running federation.

    A fleet has an authority of its own: a directory with which certificates are made for its broker, its aggregator and
    its devices, and taken back. Keep it where no network reaches it, and keep a copy.

    What devices are wanted for is said in the directory of a run, on the aggregator's machine.

    Examples:
      edgefed fleet init kitchen --broker-host broker.local
      edgefed fleet enroll board-07 --fleet kitchen
      edgefed fleet broker-config mosquitto --fleet kitchen --output /etc/mosquitto/edgefed
      edgefed fleet list --run edgefed-run
      edgefed fleet pause board-07 --run edgefed-run
    """
