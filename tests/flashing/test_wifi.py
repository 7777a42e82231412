"""Wi-Fi names and passwords with odd characters, read back by GLib, with which NetworkManager reads them."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.errors import FlashError
from edgefed.flashing.wifi import Wifi

_GLIB = ctypes.util.find_library("glib-2.0")
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))


def read_by_glib(text: str, group: str, key: str) -> str:
    glib = ctypes.CDLL(_GLIB)
    glib.g_key_file_new.restype = glib.g_key_file_get_string.restype = ctypes.c_void_p
    pointer, text_type = ctypes.c_void_p, ctypes.c_char_p
    glib.g_key_file_load_from_data.argtypes = [pointer, text_type, ctypes.c_size_t, ctypes.c_int, pointer]
    glib.g_key_file_get_string.argtypes = [pointer, text_type, text_type, pointer]
    file = glib.g_key_file_new()
    data = text.encode()
    assert glib.g_key_file_load_from_data(file, data, len(data), 0, None), text
    value = glib.g_key_file_get_string(file, group.encode(), key.encode(), None)
    assert value is not None, text
    return ctypes.string_at(value).decode()


@pytest.mark.skipif(_GLIB is None, reason="GLib is not here")
@given(
    st.binary(min_size=1, max_size=32).map(os.fsdecode),  # as it comes from a command line
    st.text(_PRINTABLE, min_size=8, max_size=63),
)
def test_any_network_comes_out_as_it_went_in(name: str, password: str) -> None:
    text = Wifi(name, password).keyfile()
    assert read_by_glib(text, "wifi-security", "psk") == password
    numbers = read_by_glib(text, "wifi", "ssid").split(";")
    assert bytes(map(int, numbers[:-1])) == os.fsencode(name)
    assert numbers[-1] == ""


@pytest.mark.parametrize("password", ["  both ends  ", "#not a comment", "a=b;c\\sd[e]", "'quoted\"" * 2, "f" * 64])
def test_odd_passwords_are_kept(password: str) -> None:
    assert Wifi("net", password).password == password


def test_a_key_in_hexadecimal_is_not_a_passphrase() -> None:
    key = string.hexdigits[:16] * 4
    assert f"psk={key}\n" in Wifi("net", key).keyfile()
    with pytest.raises(FlashError, match="64 characters"):
        Wifi("net", "x" * 64)


def test_an_open_network_has_no_security() -> None:
    assert "wifi-security" not in Wifi("café", "").keyfile()


def test_the_kernel_is_told_the_country() -> None:
    wifi = Wifi("net", "", "NO")
    assert wifi.regulatory_options() == "options cfg80211 ieee80211_regdom=NO\n"
    for wrong in ("no", "GBR", "0", "D\n", "Ö1"):
        with pytest.raises(FlashError, match="not two capital letters"):
            Wifi("net", "", wrong)


@pytest.mark.parametrize(
    ("name", "password", "message"),
    [
        ("", "long enough", "0 bytes: 1 to 32"),
        ("é" * 17, "long enough", "34 bytes"),
        ("net", "short", "5 characters: 8 to 63"),
        ("net", "pässwört", r"'\\xe4', '\\xf6': a passphrase has printable ASCII.*wpa_passphrase"),
        ("net", "two\nlines", r"'\\n'"),
    ],
)
def test_what_no_network_has_is_refused(name: str, password: str, message: str) -> None:
    with pytest.raises(FlashError, match=message):
        Wifi(name, password)
