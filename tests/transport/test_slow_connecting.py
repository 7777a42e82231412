"""Slow and dead links: connecting takes longer than a broker that knows no MQTT 5 is silent; a goodbye goes nowhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from edgefed.transport.base import Message
from edgefed.transport.mqtt import MqttOptions, connect_mqtt
from tests.faults.proxy import FaultProxy
from tests.security.secured import Secured, device, tls
from tools.mosquitto import RunningMosquitto

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


async def test_a_goodbye_over_a_dead_link_is_not_waited_for_as_long_as_a_connection(
    mosquitto: RunningMosquitto,
) -> None:
    async with FaultProxy(mosquitto.port) as proxy:
        options = MqttOptions("127.0.0.1", proxy.port, client_id="leaving", connect_timeout_s=3600.0, keepalive_s=3600)
        async with connect_mqtt(options) as transport:
            await transport.publish("state", b"here")
            proxy.black_hole()
            await asyncio.wait_for(transport.close(Message("state", b"gone", retained=True)), 60)
