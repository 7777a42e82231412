from __future__ import annotations

from edgefed.devices.network import local_address


def test_the_own_address_on_the_way_to_a_host() -> None:
    assert local_address("127.0.0.1", 1883) == "127.0.0.1"


def test_a_host_that_nobody_knows_gives_no_address() -> None:
    assert local_address("no-such-host.invalid", 1883) == ""
