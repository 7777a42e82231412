"""A complete configuration of Mosquitto for one fleet: who gets in, what they may do, and how much of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from edgefed.errors import ConfigError
from edgefed.files import check_private, replace_file
from edgefed.protocol.topics import Topics
from edgefed.security.broker_password import LOCAL_AGGREGATOR, broker_password, mosquitto_passwords
from edgefed.security.broker_rules import Access, rules_for
from edgefed.security.fleet_directory import CA_FILE, CERTIFICATE_FILE, CRL_FILE, KEY_FILE, FleetDirectory
from edgefed.security.identities import AGGREGATOR, BROKER, Identity

__all__ = [
    "ACL_FILE",
    "ACL_PLUGIN",
    "CONFIG_FILE",
    "MosquittoOptions",
    "find_acl_plugin",
    "mosquitto_acl",
    "mosquitto_conf",
    "write_mosquitto",
]

CONFIG_FILE, ACL_FILE, PASSWORDS_FILE, DATA_DIRECTORY = "mosquitto.conf", "acl", "passwords", "data"
_HEADER_ROOM_BYTES = 1024  # what the transport leaves for topic and properties of a packet
_QUEUED_MESSAGES, _QUEUED_BYTES = 10_000, 64 << 20
ACL_PLUGIN = Path("/usr/lib/mosquitto_acl_file.so")  # as Mosquitto's own images have it
_PASSWORD_PLUGIN = "mosquitto_password_file.so"  # beside it
_ACL_PLUGINS = ("usr/lib/*/mosquitto/", "usr/lib/", "usr/local/lib/")
_ACCESS: dict[Access, str] = {"hears": "read", "says": "write", "both": "readwrite"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MosquittoOptions:
    """What differs between one broker and another.

    Attributes:
        installed_at: the absolute directory in which the broker will find the files.
        version: `2.0`, or `2.1` for what replaces the options that it calls deprecated.
        acl_plugin: where 2.1 has its plugin for ACL files.
        bind: the address it listens on; empty for all.
        port: the TCP port.
        local_port: a second port, of 127.0.0.1 alone, at which the aggregator comes in without TLS; None has none.
        max_payload_bytes: the largest message; `[broker] max_payload_bytes` of the members must not be larger.
    """

    installed_at: Path
    version: Literal["2.0", "2.1"] = "2.0"
    acl_plugin: Path = ACL_PLUGIN
    bind: str = ""
    port: int = 8883
    local_port: int | None = None
    max_payload_bytes: int = 262_144


def find_acl_plugin(root: Path = Path("/")) -> Path | None:
    """Returns where this machine's Mosquitto 2.1 has its plugin for ACL files; None where there is none.

    Args:
        root: of the file system; Debian has it in a directory of the architecture's.
    """
    found = (plugin for pattern in _ACL_PLUGINS for plugin in sorted(root.glob(pattern + ACL_PLUGIN.name)))
    return next(found, None)


def write_mosquitto(fleet: FleetDirectory, output: Path, options: MosquittoOptions, now: datetime) -> list[Path]:
    """Writes everything that the broker needs into one directory, and returns the files.

    They are plain files: Mosquitto 2.1 does not follow a link to its rules.

    Args:
        fleet: whose broker it is.
        output: the directory, which is made where it is missing.
        options: what differs between one broker and another.
        now: in UTC, with its zone.

    Raises:
        ConfigError: the broker has no certificate in force, or its key is not kept secret.
        OSError: something cannot be read or written.
    """
    members = fleet.members(now)
    source = fleet.place(BROKER)
    if BROKER not in members:
        raise ConfigError(
            f"the broker has no certificate in force, by this machine's clock ({now:%Y-%m-%d %H:%M} UTC): "
            "`edgefed fleet rotate role:broker` gives it one"
        )
    if not (source / KEY_FILE).exists():
        raise ConfigError(f"{source / KEY_FILE} is not here: `edgefed fleet rotate role:broker` makes a new one")
    check_private(source / KEY_FILE)
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    (output / DATA_DIRECTORY).mkdir(mode=0o700, exist_ok=True)
    contents = {
        KEY_FILE: (source / KEY_FILE).read_bytes(),
        CERTIFICATE_FILE: (source / CERTIFICATE_FILE).read_bytes(),
        CA_FILE: fleet.ca_file.read_bytes(),
        CRL_FILE: fleet.revocation_list.read_bytes(),
        ACL_FILE: mosquitto_acl(Topics(fleet.fleet), members, local=options.local_port is not None).encode(),
        CONFIG_FILE: mosquitto_conf(fleet.fleet, options).encode(),
    }
    if options.local_port is not None:
        contents[PASSWORDS_FILE] = mosquitto_passwords(broker_password(fleet, now)).encode()
    for name, content in contents.items():
        replace_file(output / name, [content], mode=0o600)
        if os.geteuid() == 0:  # the broker reads them as a user of its own: whoever has the directory
            owner = output.stat()
            os.chown(output / name, owner.st_uid, owner.st_gid)
    return [output / name for name in contents]


def mosquitto_conf(fleet: str, options: MosquittoOptions) -> str:
    """Returns mosquitto.conf: mutual TLS on every network, names out of certificates, bounded packets and queues.

    Client ids stay what clients say (no `use_username_as_clientid`): tied to the names, `edgefed status` with the
    aggregator's certificate would throw the aggregator out. Instead, nobody can guess those that edgefed takes.
    """
    here = options.installed_at
    if options.version == "2.0":
        acl = [f"acl_file {here / ACL_FILE}"]
    else:
        acl = [f"global_plugin {options.acl_plugin}", f"plugin_opt_acl_file {here / ACL_FILE}"]
    lines = [
        f"# Mosquitto {options.version}, fleet {fleet}. `edgefed fleet broker-config` overwrites what is changed here.",
        "# This directory has to belong to the user that the broker runs as, and nobody else should read it.",
        "",
        f"listener {options.port} {options.bind}".rstrip(),
        f"cafile {here / CA_FILE}",
        f"certfile {here / CERTIFICATE_FILE}",
        f"keyfile {here / KEY_FILE}",
        f"crlfile {here / CRL_FILE}",
        "tls_version tlsv1.2",  # and newer
        "require_certificate true",
        "use_identity_as_username true",
        "",
        *_local_listener(options),
        "allow_anonymous false",
        "allow_zero_length_clientid false",
        *acl,
        "",
        f"max_packet_size {options.max_payload_bytes + _HEADER_ROOM_BYTES}",
        f"max_queued_messages {_QUEUED_MESSAGES}",
        f"max_queued_bytes {_QUEUED_BYTES}",
        "set_tcp_nodelay true",
        "",
        "persistence true",
        f"persistence_location {here / DATA_DIRECTORY}/",
        "autosave_interval 60",
    ]
    return "\n".join(lines) + "\n"


def _local_listener(options: MosquittoOptions) -> list[str]:
    """Who comes in by certificate is not asked for a password (`use_identity_as_username`), whatever it says."""
    if options.local_port is None:
        return []
    passwords = options.installed_at / PASSWORDS_FILE
    if options.version == "2.0":
        asked = [f"password_file {passwords}"]
    else:
        asked = [f"plugin {options.acl_plugin.with_name(_PASSWORD_PLUGIN)}", f"plugin_opt_password_file {passwords}"]
    return [f"listener {options.local_port} 127.0.0.1", *asked, ""]


def mosquitto_acl(topics: Topics, members: Iterable[Identity], *, local: bool = False) -> str:
    """Returns the access control list: who is not in it may do nothing.

    Args:
        topics: of the fleet.
        members: with a certificate in force.
        local: whether the aggregator may come in by its password, too.
    """
    users = {member.common_name: rules_for(member, topics) for member in members}
    if local and AGGREGATOR.common_name in users:
        users[LOCAL_AGGREGATOR] = users[AGGREGATOR.common_name]
    blocks = (
        "\n".join([f"user {user}", *(f"topic {_ACCESS[rule.access]} {rule.topic}" for rule in rules)])
        for user, rules in users.items()
        if rules
    )
    return "\n\n".join(blocks) + "\n"
