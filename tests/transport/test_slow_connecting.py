"""A link on which TCP, TLS and the broker's first word take longer than a broker that knows no MQTT 5 is silent."""

from __future__ import annotations

from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from edgefed.transport.mqtt import MqttOptions, connect_mqtt
from tests.faults.proxy import FaultProxy
from tests.security.secured import Secured, device, tls

pytestmark = pytest.mark.broker


async def test_a_slow_link_is_connected_over_and_not_taken_for_a_broker_without_mqtt_5(tmp_path: Path) -> None:
    secured = Secured(tmp_path)
    secured.enroll(device("one"))
    with secured.running():
        # TLS takes two ways here, 3.2 s: where TCP takes its two as well, that is a link of half the delay.
        async with FaultProxy(secured.port, delay_s=1.6) as proxy:
            files = tls(secured.fleet.place(device("one")))
            options = MqttOptions("127.0.0.1", proxy.port, client_id="far", connect_timeout_s=60.0, **files)
            async with connect_mqtt(options) as transport:
                assert transport._version == MQTTProtocolVersion.MQTTv5
