"""paho-mqtt's network loop on asyncio: connecting without blocking, and reading and writing when the socket is ready.

It uses paho's public callbacks only. paho calls two of them also from the connecting thread, before the loop knows of
the socket, so these hand their work over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho

__all__ = ["PahoLoop"]

_log = logging.getLogger(__name__)


class PahoLoop:
    """Drives one client, from its connecting until ``stop``.

    Args:
        client: Not connected yet. Its socket callbacks are taken.
        failed: Called with the reason when a packet makes paho raise: what is hostile ends this connection only.
    """

    def __init__(self, client: paho.Client, failed: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._failed = failed
        self._stopped = False
        self._misc_timer: asyncio.TimerHandle | None = None
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_socket_register_write
        client.on_socket_unregister_write = self._on_socket_unregister_write

    async def connect(self, connect_blocking: Callable[[], None]) -> None:
        """Run a function that connects the client, and raise what it raises."""
        # paho resolves, connects and shakes hands blocking. A daemon thread of its own, because one of the loop's
        # executor would hold up the end of the process until the connect timeout.
        opened: asyncio.Future[None] = self._loop.create_future()

        def settle(error: Exception | None) -> None:
            if opened.done():  # we were given up on meanwhile
                self.close_socket()
            elif error is None:
                opened.set_result(None)
            else:
                opened.set_exception(error)

        def connect() -> None:
            error: Exception | None = None
            try:
                connect_blocking()
            except Exception as raised:  # noqa: BLE001 - handed to the loop, raised there
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is gone: so is everybody who cares
                self._loop.call_soon_threadsafe(settle, error)

        threading.Thread(target=connect, name="mqtt-connect", daemon=True).start()
        await opened

    def stop(self) -> None:
        """Do nothing more for the client."""
        self._stopped = True
        if self._misc_timer is not None:
            self._misc_timer.cancel()

    def close_socket(self) -> None:
        """Close the socket without a word, as a crash would."""
        sock = self._client.socket()
        if sock is not None and sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()

    # ------------------------------------------------------------------ the socket's side

    def _on_socket_open(self, _client: Any, _data: Any, sock: Any) -> None:
        # Without it a small message behind another waits for the other end's delayed TCP acknowledgement, up to 40 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def watch() -> None:
            if sock.fileno() >= 0 and not self._stopped:
                self._loop.add_reader(sock.fileno(), self._read)
                self._misc()

        self._loop.call_soon_threadsafe(watch)

    def _on_socket_close(self, _client: Any, _data: Any, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())

    def _on_socket_register_write(self, _client: Any, _data: Any, sock: Any) -> None:
        def watch() -> None:
            if sock.fileno() >= 0 and not self._stopped:
                self._loop.add_writer(sock.fileno(), self._drive, self._client.loop_write)

        self._loop.call_soon_threadsafe(watch)

    def _on_socket_unregister_write(self, _client: Any, _data: Any, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.remove_writer(sock.fileno())

    def _read(self) -> None:
        self._drive(self._client.loop_read)
        sock = self._client.socket()
        while isinstance(sock, ssl.SSLSocket) and not self._stopped and sock.pending():
            self._drive(self._client.loop_read)

    def _misc(self) -> None:
        self._misc_timer = self._loop.call_later(1.0, self._misc)
        self._drive(self._client.loop_misc)

    def _drive(self, step: Callable[[], Any]) -> None:
        if self._stopped:
            return
        try:
            step()
        except Exception as error:  # noqa: BLE001 - whatever it is, the connection is what it costs
            _log.warning("connection given up: %r", error)
            self._failed(str(error) or type(error).__name__)
