"""`edgefed flash`: putting the agent on boards. The ways to do it are in `flash_*` modules."""

from __future__ import annotations

__all__ = ["flash"]


def flash() -> None:
    """Put the agent on a board, whether it runs or not.

    What is written is the same everywhere: units that start and watch the agent, a user of its own, the wheels of its
    Python environment (which the board builds at its first start, without a network), its configuration, and a record
    of all that. --dry-run shows it.

    Examples:
      edgefed flash rootfs Linux_for_Tegra/rootfs -w wheels --device board-07 --fleet kitchen --broker host
      edgefed flash image os.img.xz -w wheels --device board-07 --fleet kitchen --broker host --output board-07.img
      edgefed flash ssh pi@board-07.local -w wheels --device board-07 --fleet kitchen --broker host
    """
