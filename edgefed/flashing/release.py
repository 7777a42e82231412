"""A release of the agent, made of a directory of wheels that was looked at as one to be flashed is."""

from __future__ import annotations

from pathlib import Path

from edgefed.flashing.board import Board
from edgefed.flashing.wheelhouse import lock, read_wheelhouse
from edgefed.security.signatures import Signer
from edgefed.updates.bundle import Bundle, make_bundle

__all__ = ["bundle_wheelhouse"]


def bundle_wheelhouse(
    path: Path,
    directory: Path,
    board: Board,
    *,
    fleet: str,
    number: int,
    signer: Signer,
    at_unix_s: float,
    name: str = "",
) -> Bundle:
    """Writes the bundle of a release, whole or not at all, and returns it.

    Args:
        path: the file to write.
        directory: the wheels: edgefed, pip, and all that edgefed needs.
        board: the kind of machine that it is for; its architecture and its Python count.
        fleet: whose release it is.
        number: above those of all releases before; the seconds since 1970 are.
        signer: the aggregator's.
        at_unix_s: the time of the signature.
        name: what people call it; empty takes edgefed's version.

    Raises:
        FlashError: the wheels do not fit the board, or are not all there.
        UpdateError: the signer is not the aggregator, or a name is not allowed.
        OSError: a file cannot be read or written.
    """
    wheels = read_wheelhouse(directory, board)
    (version,) = [wheel.version for wheel in wheels if wheel.name == "edgefed"]
    return make_bundle(
        path,
        fleet=fleet,
        name=name or version,
        version=version,
        number=number,
        architecture=board.architecture,
        python=f"{board.python[0]}.{board.python[1]}",
        wheels=[wheel.path for wheel in wheels],
        lock=lock(wheels).encode(),
        signer=signer,
        at_unix_s=at_unix_s,
    )
