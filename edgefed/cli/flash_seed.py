"""`edgefed flash seed`: the agent by way of cloud-init, onto a stock image at its first start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edgefed.cli.flash_options import Asked, DryRunOption, JsonOption, asked_wifi, version
from edgefed.cli.option_groups import with_option_groups

__all__ = ["seed"]

_DEBIAN_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}


@with_option_groups
def seed(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the seed's files go.")],
    architecture: Annotated[
        str, typer.Option("--architecture", "-a", help="Of the board: aarch64 or arm64, x86_64 or amd64.")
    ],
    python: Annotated[str, typer.Option("--python", metavar="3.N", help="Version of the board's python3.")],
    glibc: Annotated[str, typer.Option("--glibc", metavar="2.N", help="Its C library; what is left out fits.")] = "",
    iso: Annotated[Path | None, typer.Option("--iso", help="Write an ISO image of the seed as well.")] = None,
    fat: Annotated[Path | None, typer.Option("--fat", help="Write a FAT image of the seed as well.")] = None,
    *,
    asked: Asked,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Write a seed for cloud-init: it puts the agent onto a stock image at the board's first start.

    DIR may be the boot partition of a card with Raspberry Pi OS, or anywhere: then give the board the ISO or the FAT
    image as a second disk (its label is CIDATA). The image must have cloud-init. As it cannot be looked at from here,
    say what it has: architecture (as wheels or as Debian names it) and Python.

    A seed holds whatever the board shall know: with --key, --token or --wifi, keep it like a key. The board leaves the
    seed as it is; a token in it is of no use once the board has been admitted.

    Examples:
      edgefed flash seed seed -w wheels -a aarch64 --python 3.12 -d board-07 -f kitchen -b host --iso seed.iso
    """
    from edgefed.cli.flash_view import progress_bar, show
    from edgefed.cli.output import told_where
    from edgefed.flashing.board import Board, check_python
    from edgefed.flashing.changes import for_new_board
    from edgefed.flashing.manifest import manifest
    from edgefed.flashing.seed import write_fat, write_iso, write_seed

    board = Board(
        architecture=_DEBIAN_NAMES.get(architecture, architecture),
        python=version(python, "--python"),
        glibc=version(glibc, "--glibc") if glibc else None,
        system="a board with cloud-init",
    )
    check_python(board, f"--python {python}: the board's Python")
    network = asked_wifi(asked.wifi, asked.wifi_password_file, asked.wifi_country)
    # cloud-init sets it up, by network-config
    without = replace(asked, wifi=None, wifi_password_file=None, wifi_country="")
    changes = for_new_board(manifest(without.installation(board), board))
    written: tuple[str, ...] = ()
    if not dry_run:
        with told_where(directory), progress_bar(changes.size_bytes, "writing") as progress:
            device = asked.device or _device_in(asked.config)
            written = write_seed(directory, changes, device=device, wifi=network, progress=progress)
            if iso is not None:
                write_iso(directory, iso)
            if fat is not None:
                write_fat(directory, fat)
    show(changes, board, str(directory), dry_run=dry_run, json=json, packed_in=written)


def _device_in(config: Path | None) -> str:
    from edgefed.config import read_agent

    assert config is not None, "without --device there is --config, or there would be no manifest"
    return read_agent(config).device
