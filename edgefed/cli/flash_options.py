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
    from edgefed.flashing.credentials import Credentials
    from edgefed.flashing.manifest import Installation
    from edgefed.flashing.wifi import Wifi

__all__ = ["Asked", "DryRunOption", "JsonOption", "UpgradeOption", "asked_wifi", "version"]

UpgradeOption = Annotated[bool, typer.Option("--upgrade", help="Bring a board that has edgefed to this version.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Write nothing; say what would be written.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write one JSON document.")]


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
    token: Annotated[
        Path | None, typer.Option("--token", help="Of `edgefed fleet token`: the board enrolls itself by it, once.")
    ] = None
    signed: Annotated[bool, typer.Option("--signed", help="The fleet's members sign what they say.")] = False
    data: Annotated[str, typer.Option("--data", help="Where the examples are on the board.")] = ""
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The board's agent.toml, instead of one made from these options."),
    ] = None
    wifi: Annotated[str | None, typer.Option("--wifi", metavar="NAME", help="A wireless network to join.")] = None
    wifi_password_file: Annotated[
        Path | None, typer.Option("--wifi-password-file", help="Its first line is the network's password.")
    ] = None
    wifi_country: Annotated[
        str, typer.Option("--wifi-country", metavar="CC", help="The country it is in; switches on what waits for that.")
    ] = ""

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
        if self.token and (self.ca or self.certificate):
            raise ConfigError("--token gets the board its certificate, and brings --ca: leave those options out")
        if self.signed and not (self.certificate or self.token):
            raise ConfigError(
                "--signed needs --ca, --certificate and --key, the key to sign with; or --token, for them"
            )
        agent_toml = self._agent_toml()
        credentials = self._credentials()
        return Installation(
            wheels=read_wheelhouse(self.wheelhouse, board),
            agent_toml=agent_toml,
            password=f"{_first_line(self.password_file)}\n".encode() if self.password_file else None,
            ca=credentials.ca or self._authority_of_token(),
            certificate=credentials.certificate,
            key=credentials.key,
            token=self._claim_token(),
            wifi=asked_wifi(self.wifi, self.wifi_password_file, self.wifi_country),
        )

    def _agent_toml(self) -> bytes | None:
        from edgefed.flashing.agent_toml import Access, agent_toml

        identity = {"--device": self.device, "--fleet": self.fleet, "--broker": self.broker}
        missing = [name for name, value in identity.items() if not value]
        others = (self.username, self.password_file, self.ca, self.certificate, self.token, self.signed, self.data)
        if self.config is not None:
            if len(missing) < len(identity) or self.username or self.signed or self.data:
                raise ConfigError("--config says who the board is, how its broker is used and where the examples are")
            given = {"password": self.password_file, "ca": self.ca, "key": self.key, "token": self.token}
            return _given_agent_toml(self.config, **given)
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
            has_token=self.token is not None,
            signed=self.signed,
            data=self.data,
        )
        return agent_toml(access)

    def _credentials(self) -> Credentials:
        """Returns the files of --ca, --certificate and --key, once it is known that this board can use them."""
        from datetime import datetime, timezone

        from edgefed.config import read_agent
        from edgefed.flashing.credentials import read_credentials

        options = read_agent(self.config) if self.config is not None else None
        return read_credentials(
            options.device if options is not None else self.device,
            ca=self.ca,
            certificate=self.certificate,
            key=self.key,
            signed=options.broker.signed if options is not None else self.signed,
            now=datetime.now(timezone.utc),
        )

    def _authority_of_token(self) -> bytes | None:
        """Returns the authority that the token names: as a file of root's, it says whose releases are installed."""
        from edgefed.security.tokens import read_token

        return read_token(self.token).ca if self.token is not None else None

    def _claim_token(self) -> bytes | None:
        """Returns the content of the token's file, once it is known that this board can use it."""
        from datetime import datetime, timezone

        from edgefed.config import read_agent
        from edgefed.security.tokens import matches, read_token

        if self.token is None:
            return None
        token = read_token(self.token)
        options = read_agent(self.config) if self.config is not None else None
        device, fleet = (options.device, options.fleet) if options is not None else (self.device, self.fleet)
        if token.fleet != fleet:
            raise ConfigError(f"{self.token}: is of fleet {token.fleet}, and the board is for fleet {fleet}")
        if not matches(device, token.device):
            raise ConfigError(f"{self.token}: is for {token.device}, and the board will be {device}")
        if token.expires <= datetime.now(timezone.utc):
            raise ConfigError(
                f"{self.token}: has expired on {token.expires:%Y-%m-%d %H:%M} UTC: ask for a new one "
                "(edgefed fleet token)"
            )
        return self.token.read_bytes()


def asked_wifi(name: str | None, password_file: Path | None, country: str = "") -> Wifi | None:
    """Returns the wireless network that was asked for, or None.

    Raises:
        ConfigError: a password or a country is given without a name, or the password cannot be read.
        FlashError: no network can have such a name or password, or it is no country.
    """
    from edgefed.flashing.wifi import Wifi

    if name is None:
        if password_file is not None or country:
            given = "--wifi-country" if password_file is None else "--wifi-password-file"
            raise ConfigError(f"{given} needs --wifi, the network's name")
        return None
    return Wifi(name, _first_line(password_file) if password_file else "", country)


def version(text: str, option: str) -> tuple[int, int]:
    """Returns a version such as 3.12 as numbers.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", text)
    if found is None:
        raise ConfigError(f"{option} {text}: is not a version such as 3.12")
    return int(found[1]), int(found[2])


def _given_agent_toml(
    path: Path, *, password: Path | None, ca: Path | None, key: Path | None, token: Path | None
) -> bytes:
    """Returns an agent.toml as it is, once it is known to work in the places that the board has."""
    from edgefed.config import read_agent
    from edgefed.flashing import agent_toml

    options = read_agent(path)
    if not options.state.startswith(f"{agent_toml.STATE}/"):
        raise ConfigError(f"{path}: state must be an absolute path below {agent_toml.STATE}, where the agent writes")
    agent_toml.check_data(options.data.path)
    broker = options.broker
    enrolled = (broker.tls_ca, broker.tls_certificate, broker.tls_key)
    if token is not None and not all(file.startswith(f"{agent_toml.STATE}/") for file in enrolled):
        raise ConfigError(
            f"{path}: with --token, broker.tls_ca, tls_certificate and tls_key must be below {agent_toml.STATE}, where "
            "the agent can write them"
        )
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
