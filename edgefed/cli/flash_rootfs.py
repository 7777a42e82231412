"""`edgefed flash rootfs`: the agent onto a root file system that is a directory here."""

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

__all__ = ["rootfs"]


def rootfs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The board's root, as a directory here.")],
    wheelhouse: WheelhouseOption,
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
    """Put the agent onto a root file system: NVIDIA's Linux_for_Tegra/rootfs, a mounted card, a chroot.

    For a Jetson, do this between apply_binaries.sh and NVIDIA's flash.sh or l4t_initrd_flash.sh. The wheels must fit
    what is in the directory, and are checked against it. Files get the owner that the directory has, so that of a real
    board it takes root (sudo). What fails is undone; what is there already is not overwritten.

    With --token, the board makes its key at its first start, asks to be admitted (`edgefed fleet admit`) until it is,
    and removes the token; without one, give it the --ca, --certificate and --key of `edgefed fleet enroll`.

    Examples:
      edgefed flash rootfs /media/card --wheelhouse wheels --device board-07 --fleet kitchen --broker broker.local
      edgefed flash rootfs /media/card -w wheels -d board-07 -f kitchen -b broker.local --token board-07.token
      edgefed flash rootfs /media/card --wheelhouse newer-wheels --upgrade
    """
    from edgefed.cli.flash_view import progress_bar, show
    from edgefed.cli.output import told_where
    from edgefed.flashing.board import inspect
    from edgefed.flashing.changes import compare
    from edgefed.flashing.manifest import manifest
    from edgefed.flashing.rootfs import DirectoryTree, write

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
    with told_where(directory):
        tree = DirectoryTree(directory)
        board = inspect(tree)
        changes = compare(tree, manifest(asked.installation(board), board), upgrade=upgrade)
        if not dry_run:
            with progress_bar(changes.size_bytes, "writing") as progress:
                write(tree, changes, progress)
    show(changes, board, str(directory), dry_run=dry_run, json=json)
