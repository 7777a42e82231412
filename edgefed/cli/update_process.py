"""The installer's process: `python -m edgefed.cli.update_process HOME CONFIG [--stays SECONDS] [--comes SECONDS]`.

It runs as root, started by `/opt/edgefed/bin/update`, whenever the agent has put a release into its directory. It
trusts what root has written: the agent's configuration, and the authority beside it or named by it. It trusts nothing
else.
"""

from __future__ import annotations

import argparse
import logging
import os
import stat
import sys
from pathlib import Path

from edgefed.agent.options import AgentOptions
from edgefed.config import read_agent
from edgefed.errors import ConfigError, EdgefedError, SignatureError, UpdateError
from edgefed.files import in_shell
from edgefed.logs import start_logging, tell_failure
from edgefed.security.signatures import Verifier, read_verifier
from edgefed.updates.installer import Board, Installer
from edgefed.updates.places import Home
from edgefed.updates.service import Service
from edgefed.updates.trial import Patience

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Installs what has come, and returns the exit code."""
    start_logging(logging.INFO)
    patience = Patience()
    parser = argparse.ArgumentParser(prog="update_process", description="Install releases of the agent.")
    parser.add_argument("home", type=Path, help="where edgefed is installed")
    parser.add_argument("config", type=Path, help="the agent's agent.toml")
    parser.add_argument("--stays", type=float, default=patience.stays_s, help="seconds that a connection has to last")
    parser.add_argument("--comes", type=float, default=patience.comes_s, help="seconds until one has lasted so long")
    given = parser.parse_args(arguments)
    try:
        _check_ours(given.config.resolve())
        options = read_agent(given.config)
        board = Board(
            home=Home(given.home.resolve()),
            fleet=options.fleet,
            state=Path(options.state).absolute(),
            verifier=lambda: _verifier(options, given.config.parent / "tls" / "ca.pem"),
        )
        Installer(board, Service(), Patience(stays_s=given.stays, comes_s=given.comes)).run()
    except EdgefedError as error:
        tell_failure(str(error), error.exit_code)
        return error.exit_code
    except OSError as error:  # a full disk, most of all: the unit starts this again later
        tell_failure(f"what is begun cannot be written down, and is begun again later: {error}", EdgefedError.exit_code)
        return EdgefedError.exit_code
    return 0


def _verifier(options: AgentOptions, beside: Path) -> Verifier:
    """Returns one that trusts the authority of the device's fleet, less what the authority has taken back.

    Args:
        options: of the agent, which name the authority.
        beside: the authority as root has it, which counts where it is there: a board that was enrolled by a claim token
            has the other from the agent.

    Raises:
        UpdateError: the fleet does not sign, or somebody else than root could have put the authority there.
    """
    if not options.broker.signed:
        raise SignatureError(
            "this fleet does not sign ([broker] signed = false), and code is not installed from whoever may come: "
            "update the board by flashing it"
        )
    authority = (beside if beside.exists() else Path(options.broker.tls_ca)).resolve()
    _check_ours(authority)
    revoked = options.broker.tls_crl  # signed by the authority, so whoever has written it has not made it up
    try:
        return read_verifier(authority, Path(revoked) if revoked else None)
    except ConfigError as error:
        raise UpdateError(str(error)) from error


def _check_ours(file: Path) -> None:
    """Sees to it that nobody but root can write a file, or put another one in its place.

    Args:
        file: resolved.

    Raises:
        UpdateError: somebody can, or it is not there.
    """
    for path in (file, *file.parents):
        try:
            status = path.stat()
        except OSError as error:
            raise UpdateError(f"{path} cannot be read: {error.strerror}") from error
        # In a directory with the sticky bit, as /tmp is, others only add what is theirs.
        kept = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        others_write = status.st_mode & 0o022 and not kept
        if status.st_uid not in (0, os.geteuid()) or others_write:
            raise UpdateError(
                f"{path} could be changed by others than root, and whoever changes {file} decides what is installed: "
                f"chown root {in_shell(path)}; chmod go-w {in_shell(path)}"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
