"""A wireless network as a keyfile of NetworkManager, whatever characters its name and password have.

The format is GLib's key file with NetworkManager's additions (nm-settings-keyfile(5)). It has no country: which
channels a radio may use is the kernel's to know, whose module cfg80211 is told when it is loaded.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from dataclasses import dataclass

from edgefed.errors import FlashError

__all__ = ["Wifi"]

_HEXADECIMAL_KEY = re.compile(r"[0-9A-Fa-f]{64}")
_ESCAPES = {" ": r"\s", "\\": r"\\"}
_MAX_SSID_BYTES = 32
_COUNTRY = re.compile(r"[A-Z]{2}")


@dataclass(frozen=True, slots=True)
class Wifi:
    """A network that the board joins.

    Attributes:
        ssid: its name.
        password: its passphrase, or its key as 64 hexadecimal digits; empty for an open network.
        country: where the board is, as two letters (ISO 3166-1); empty leaves it to the system.

    Raises:
        FlashError: it is nothing that a network can have (IEEE 802.11, and its annex on passphrases).
    """

    ssid: str
    password: str
    country: str = ""

    def __post_init__(self) -> None:
        """Refuses what no network can have."""
        if self.country and not _COUNTRY.fullmatch(self.country):
            raise FlashError(f"the Wi-Fi country {self.country!r} is not two capital letters, such as DE, GB or US")
        size_bytes = len(os.fsencode(self.ssid))  # a name is bytes, and need not be UTF-8
        if not 0 < size_bytes <= _MAX_SSID_BYTES:
            raise FlashError(f"the Wi-Fi name {self.ssid!r} has {size_bytes} bytes: 1 to 32 are possible")
        if not self.password or _HEXADECIMAL_KEY.fullmatch(self.password):
            return
        odd = sorted({character for character in self.password if not " " <= character <= "~"})
        if odd:
            raise FlashError(
                f"the Wi-Fi password has {', '.join(map(ascii, odd))}: a passphrase has printable ASCII characters; "
                "give the key instead, as 64 hexadecimal digits (wpa_passphrase prints it)"
            )
        if not 8 <= len(self.password) <= 63:
            raise FlashError(f"the Wi-Fi password has {len(self.password)} characters: 8 to 63 are possible")

    def keyfile(self) -> str:
        """Returns the text of `edgefed-wifi.nmconnection`, which must be readable by root alone."""
        name = os.fsencode(self.ssid)
        digest = hashlib.sha256(name).digest()
        # As bytes: a name such as "1;2" written as text would be taken for them.
        ssid = "".join(f"{byte};" for byte in name)
        # Leading blanks of a value are skipped, so a blank is written as an escape wherever it is.
        password = "".join(_ESCAPES.get(character, character) for character in self.password)
        security = f"[wifi-security]\nkey-mgmt=wpa-psk\npsk={password}\n\n" if password else ""
        return (
            f"[connection]\nid=edgefed-wifi\nuuid={uuid.UUID(bytes=digest[:16], version=4)}\ntype=wifi\n\n"
            f"[wifi]\nmode=infrastructure\nssid={ssid}\n\n{security}[ipv4]\nmethod=auto\n\n[ipv6]\nmethod=auto\n"
        )

    def regulatory_options(self) -> str:
        """Returns the text of a file in modprobe.d(5) that tells the kernel the country."""
        return f"options cfg80211 ieee80211_regdom={self.country}\n"
