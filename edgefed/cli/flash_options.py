"""What the ways of flashing have in common on the command line: what a board gets, read and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from edgefed.errors import ConfigError

if TYPE_CHECKING:
    from edgefed.flashing.board import Board
    from edgefed.flashing.manifest import Installation
    from edgefed.flashing.wifi import Wifi

__all__ = ["Asked", "DryRunOption", "JsonOption", "UpgradeOption", "asked_wifi", "version"]

UpgradeOption = Annotated[bool, typer.Option("--upgrade", help="Bring a board that has edgefed to this version.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Write nothing; say what would be written.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write one JSON document.")]

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_KEYS = (b"-----BEGIN PRIVATE KEY-----", b"-----BEGIN EC PRIVATE KEY-----", b"-----BEGIN RSA PRIVATE KEY-----")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a board shall get, as it stands on the command line; a command takes it by `with_option_groups`."""

    wheelhouse: Annotated[Path, typer.Option("--wheelhouse", "-w", help="Directory with the wheels for the board.")]
    device: Annotated[str, typer.Option("--device", "-d", help="The board's id in the fleet.")] = ""
    fleet: Annotated[str, typer.Option("--fleet", "-f", help="The fleet that it belongs to.")] = ""
    broker: Annotated[str, typer.Option("--broker", "-b", metavar="HOST[:PORT]", help="The fleet's broker.")] = ""
    username: Annotated[str, typer.Option("--username", help="At the broker, where it wants one.")] = ""
    password_file: Annotated[Path | None, typer.Option("--password-file", help="Its first line is the password.")] = (
        None
    )
    ca: Annotated[Path | None, typer.Option("--ca", help="Certificate of the broker's authority; turns TLS on.")] = None
    certificate: Annotated[Path | None, typer.Option("--certificate", help="The board's own certificate.")] = None
    key: Annotated[Path | None, typer.Option("--key", help="The key of that certificate.")] = None
    data: Annotated[str, typer.Option("--data", help="Where the examples are on the board.")] = ""
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The board's agent.toml, instead of one made from these options."),
    ] = None
    wifi: Annotated[str | None, typer.Option("--wifi", metavar="NAME", help="A wireless network to join.")] = None
    wifi_password_file: Annotated[
        Path | None, typer.Option("--wifi-password-file", help="Its first line is the network's password.")
    ] = None

    def installation(self, board: Board) -> Installation:
        """Returns what the board gets.

        Raises:
            ConfigError: options contradict each other, or a file that they name cannot be used.
            FlashError: the wheels do not fit the board, or it could not use what it would get.
        """
        from edgefed.flashing.manifest import Installation
        from edgefed.flashing.wheelhouse import read_wheelhouse

        if bool(self.certificate) != bool(self.key):
            raise ConfigError("--certificate and --key belong together: give both or neither")
        if self.certificate and not self.ca:
            raise ConfigError("--certificate needs --ca, the authority that signed the broker's certificate")
        return Installation(
            wheels=read_wheelhouse(self.wheelhouse, board),
            agent_toml=self._agent_toml(),
            password=f"{_first_line(self.password_file)}\n".encode() if self.password_file else None,
            ca=_pem(self.ca, (_CERTIFICATE,), "a certificate"),
            certificate=_pem(self.certificate, (_CERTIFICATE,), "a certificate"),
            key=_pem(self.key, _KEYS, "a private key without a passphrase"),
            wifi=asked_wifi(self.wifi, self.wifi_password_file),
        )

    def _agent_toml(self) -> bytes | None:
        from edgefed.flashing.agent_toml import Access, agent_toml

        identity = {"--device": self.device, "--fleet": self.fleet, "--broker": self.broker}
        missing = [name for name, value in identity.items() if not value]
        others = (self.username, self.password_file, self.ca, self.certificate, self.data)
        if self.config is not None:
            if len(missing) < len(identity) or self.username or self.data:
                raise ConfigError("--config says who the board is, where its broker is and where the examples are")
            return _given_agent_toml(self.config, password=self.password_file, ca=self.ca, key=self.key)
        if len(missing) == len(identity) and not any(others):
            return None
        if missing:
            raise ConfigError(f"{' and '.join(missing)} must be given: the board's configuration is written anew")
        host, port = _host_and_port(self.broker)
        access = Access(
            device=self.device,
            fleet=self.fleet,
            host=host,
            port=port,
            username=self.username,
            has_password=self.password_file is not None,
            has_ca=self.ca is not None,
            has_certificate=self.certificate is not None,
            data=self.data,
        )
        return agent_toml(access)


def asked_wifi(name: str | None, password_file: Path | None) -> Wifi | None:
    """Returns the wireless network that was asked for, or None.

    Raises:
        ConfigError: a password is given without a name, or cannot be read.
        FlashError: no network can have such a name or password.
    """
    from edgefed.flashing.wifi import Wifi

    if name is None:
        if password_file is not None:
            raise ConfigError("--wifi-password-file needs --wifi, the network's name")
        return None
    return Wifi(name, _first_line(password_file) if password_file else "")


def version(text: str, option: str) -> tuple[int, int]:
    """Returns a version such as 3.12 as numbers.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", text)
    if found is None:
        raise ConfigError(f"{option} {text}: is not a version such as 3.12")
    return int(found[1]), int(found[2])


def _given_agent_toml(path: Path, *, password: Path | None, ca: Path | None, key: Path | None) -> bytes:
    """Returns an agent.toml as it is, once it is known to work in the places that the board has."""
    from edgefed.config import read_agent
    from edgefed.flashing import agent_toml

    options = read_agent(path)
    if not options.state.startswith(f"{agent_toml.STATE}/"):
        raise ConfigError(f"{path}: state must be an absolute path below {agent_toml.STATE}, where the agent writes")
    agent_toml.check_data(options.data.path)
    broker = options.broker
    places = (
        ("password_file", broker.password_file, "--password-file", password, agent_toml.PASSWORD),
        ("tls_ca", broker.tls_ca, "--ca", ca, agent_toml.CA),
        ("tls_key", broker.tls_key, "--key", key, agent_toml.KEY),
    )
    for name, said, option, given, place in places:
        if (given is not None or said == place) and (given is None or said != place):
            raise ConfigError(f'{path}: {option} and broker.{name} = "{place}" belong together: give both or neither')
    return path.read_bytes()


def _host_and_port(broker: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(f"//{broker}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.path or parts.username or broker.endswith(":"):
        raise ConfigError(f"--broker {broker}: is not HOST, HOST:PORT or [ADDRESS]:PORT")
    return host, port


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not lines or not lines[0]:
        raise ConfigError(f"{path}: its first line is empty, and should be a password")
    return lines[0]


def _pem(path: Path | None, beginnings: tuple[bytes, ...], what: str) -> bytes | None:
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not any(beginning in content for beginning in beginnings):
        raise ConfigError(f"{path}: is not {what} in PEM format")
    return content
