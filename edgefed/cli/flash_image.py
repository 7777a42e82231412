"""`edgefed flash image`: the agent into a disk image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgefed.cli.flash_options import (
    Asked,
    BrokerOption,
    CaOption,
    CertificateOption,
    ConfigOption,
    DataOption,
    DeviceOption,
    DryRunOption,
    FleetOption,
    JsonOption,
    KeyOption,
    PasswordOption,
    SignedOption,
    TokenOption,
    UpgradeOption,
    UsernameOption,
    WheelhouseOption,
    WifiCountryOption,
    WifiOption,
    WifiPasswordOption,
)

__all__ = ["image"]


def image(
    file: Annotated[Path, typer.Argument(metavar="FILE.img", help="The image, plain or as .xz, .zst or .gz.")],
    wheelhouse: WheelhouseOption,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the flashed image goes.")] = None,
    partition: Annotated[int | None, typer.Option("--partition", help="Number of the one with the root.")] = None,
    device: DeviceOption = "",
    fleet: FleetOption = "",
    broker: BrokerOption = "",
    username: UsernameOption = "",
    password_file: PasswordOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    token: TokenOption = None,
    signed: SignedOption = False,
    data: DataOption = "",
    config: ConfigOption = None,
    wifi: WifiOption = None,
    wifi_password_file: WifiPasswordOption = None,
    wifi_country: WifiCountryOption = "",
    upgrade: UpgradeOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Put the agent into a disk image: of Raspberry Pi OS, Debian, Ubuntu, or of a Jetson for SD cards.

    The root file system must be ext4. Neither root nor a mount is needed, only e2fsprogs. A copy of the image is
    written to, read back and checked as a whole; then it takes the place of FILE.img, or that of --output. A compressed
    image is unpacked and stays as it is.

    Examples:
      edgefed flash image os.img.xz -w wheels --device board-07 --fleet kitchen --broker host --output board-07.img
      edgefed flash image os.img -w wheels -d board-07 -f kitchen -b host --token board-07.token -o board-07.img
      edgefed flash image board-07.img -w newer-wheels --upgrade
    """
    from edgefed.cli.flash_view import progress_bar, show
    from edgefed.cli.output import told_where
    from edgefed.flashing.board import Board, inspect
    from edgefed.flashing.changes import Changes, compare
    from edgefed.flashing.ext4 import Ext4Tree
    from edgefed.flashing.image import flash_image, output_of
    from edgefed.flashing.manifest import manifest

    asked = Asked(
        wheelhouse=wheelhouse,
        device=device,
        fleet=fleet,
        broker=broker,
        username=username,
        password_file=password_file,
        ca=ca,
        certificate=certificate,
        key=key,
        token=token,
        signed=signed,
        data=data,
        config=config,
        wifi=wifi,
        wifi_password_file=wifi_password_file,
        wifi_country=wifi_country,
    )
    boards: list[Board] = []

    def plan(tree: Ext4Tree) -> Changes:
        board = inspect(tree)
        boards.append(board)
        return compare(tree, manifest(asked.installation(board), board), upgrade=upgrade)

    with told_where(file):
        target = output_of(file, output)
        with progress_bar(file.stat().st_size, "copying") as progress:
            changes = flash_image(file, None if dry_run else target, plan, partition=partition, progress=progress)
    show(changes, boards[0], str(target), dry_run=dry_run, json=json)
