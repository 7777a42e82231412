"""A paho client as our options want it, and what it says in CONNECT."""

from __future__ import annotations

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgefed.transport.base import Will
from edgefed.transport.mqtt_options import MqttOptions

__all__ = ["RECEIVE_MAXIMUM", "connect_blocking", "make_client"]

RECEIVE_MAXIMUM = 32
"""Messages the broker may have sent us without our acknowledgement: bounds our memory, and is plenty to fill a
link."""

_LARGEST_INCOMING_BYTES = 1 << 20
"""A broker that knows MQTT 5 discards larger packets instead of sending them to us."""


def make_client(options: MqttOptions, version: MQTTProtocolVersion, will: Will | None) -> paho.Client:
    """Return a client that leaves reconnecting, acknowledging and the count of publishes under way to us."""
    is_v5 = version == MQTTProtocolVersion.MQTTv5
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=options.client_id,
        clean_session=None if is_v5 else options.session_expiry_s == 0,
        protocol=version,
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.connect_timeout = options.connect_timeout_s
    client.max_inflight_messages_set(0)  # our slots decide, and know the broker's limit
    if options.username is not None:
        client.username_pw_set(options.username, options.password)
    if will is not None:
        client.will_set(will.topic, will.payload, qos=1, retain=True)
    return client


def connect_blocking(client: paho.Client, options: MqttOptions, version: MQTTProtocolVersion) -> None:
    """Resolve, connect, shake hands and send CONNECT.

    Raises:
        OSError: Nobody is there, or TLS failed.
        ConfigError: TLS files cannot be used.
    """
    if options.uses_tls:
        client.tls_set_context(options.tls_context())
    if version == MQTTProtocolVersion.MQTTv5:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = options.session_expiry_s
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.MaximumPacketSize = max(_LARGEST_INCOMING_BYTES, 2 * options.max_payload_bytes)
        client.connect(
            options.host,
            options.port,
            options.keepalive_s,
            clean_start=options.session_expiry_s == 0,
            properties=properties,
        )
    else:
        client.connect(options.host, options.port, options.keepalive_s)
